// The Python module lmcleaner_ext._cuda. Importing it does not touch a device.

#include <pybind11/pybind11.h>

#include "bind_arguments.h"

// Not cuda/optimizer_replay.h: this file is compiled without CUDA's headers.
struct CUstream_st;

namespace lmcleaner::cuda {
int device_count();  // cuda/device.cu
void optimizer_replay_window(const ReplayArguments& arguments, double* sum_of_squares, CUstream_st* stream);
}  // namespace lmcleaner::cuda

namespace py = pybind11;

void bind_cuda_vectors(py::module_& module);  // bind_cuda_vectors.cpp

namespace {

using lmcleaner::Address;

void replay_bound(int rule, int64_t n, const std::vector<Address>& delta, Address theta,
                  const std::vector<Address>& state, const std::vector<Address>& counterfactual, Address coefficients,
                  int64_t classes, int64_t steps, Address segments, int64_t segment_count,
                  const std::vector<Address>& gradients, const std::vector<Address>& gradient_scales,
                  int gradient_format, const std::vector<Address>& injections,
                  const std::vector<Address>& injection_scales, int injection_format, Address injection_table,
                  int64_t injection_columns, Address diagonal, int64_t lead, Address sum_of_squares, Address stream) {
    py::gil_scoped_release release;
    const lmcleaner::ReplayArguments arguments = lmcleaner::replay_arguments(
        rule, n, delta, theta, state, counterfactual, coefficients, classes, steps, segments, segment_count, gradients,
        gradient_scales, gradient_format, injections, injection_scales, injection_format, injection_table,
        injection_columns, diagonal, lead);
    lmcleaner::cuda::optimizer_replay_window(arguments, lmcleaner::pointer<double>(sum_of_squares),
                                             lmcleaner::pointer<CUstream_st>(stream));
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    using py::arg;
    module.def("device_count", &lmcleaner::cuda::device_count,
               "CUDA devices this process can use; 0 without a driver.");
    bind_cuda_vectors(module);
    module.def("optimizer_replay_window", &replay_bound, arg("rule"), arg("n"), arg("delta"), arg("theta"),
               arg("state"), arg("counterfactual"), arg("coefficients"), arg("classes"), arg("steps"), arg("segments"),
               arg("segment_count"), arg("gradients"), arg("gradient_scales"), arg("gradient_format"),
               arg("injections"), arg("injection_scales"), arg("injection_format"), arg("injection_table"),
               arg("injection_columns"), arg("diagonal"), arg("lead"), arg("sum_of_squares"), arg("stream"),
               "lmcleaner_ext.ops.optimizer_replay_window_ on device pointers, queued on `stream`.");
}
