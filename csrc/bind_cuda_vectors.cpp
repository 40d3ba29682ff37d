// The kernels of cuda/vector_kernels.h as Python functions of the module _cuda.

#include <pybind11/pybind11.h>

#include "bind_arguments.h"
#include "cuda/vector_kernels.h"

namespace py = pybind11;

namespace lmcleaner {
namespace {

void encode_bound(Address x, int64_t n, int format, Address payload, Address scales, Address overflowed,
                  Address stream) {
    py::gil_scoped_release release;
    cuda::encode(pointer<const float>(x), n, Format(format), pointer<void>(payload), pointer<uint8_t>(scales),
                 pointer<int>(overflowed), pointer<CUstream_st>(stream));
}

void encode_difference_bound(Address theta, Address shadow, int64_t n, int format, Address payload, Address scales,
                             Address overflowed, Address stream) {
    py::gil_scoped_release release;
    cuda::encode_difference(pointer<const float>(theta), pointer<float>(shadow), n, Format(format),
                            pointer<void>(payload), pointer<uint8_t>(scales), pointer<int>(overflowed),
                            pointer<CUstream_st>(stream));
}

void decode_bound(Address payload, Address scales, int64_t n, int format, Address out, Address stream) {
    py::gil_scoped_release release;
    cuda::decode(pointer<const void>(payload), pointer<const uint8_t>(scales), n, Format(format), pointer<float>(out),
                 pointer<CUstream_st>(stream));
}

void dot_bound(Address payload_a, Address scales_a, int format_a, Address payload_b, Address scales_b, int format_b,
               int64_t n, Address product, Address workspace, Address stream) {
    py::gil_scoped_release release;
    cuda::dot(pointer<const void>(payload_a), pointer<const uint8_t>(scales_a), Format(format_a),
              pointer<const void>(payload_b), pointer<const uint8_t>(scales_b), Format(format_b), n,
              pointer<double>(product), pointer<double>(workspace), pointer<CUstream_st>(stream));
}

void propagate_bound(Address v, int64_t n, const std::vector<Address>& diagonals,
                     const std::vector<Address>& diagonal_scales, int diagonal_format, Address coefficients,
                     const std::vector<Address>& injections, const std::vector<Address>& injection_scales,
                     int injection_format, Address injection_table, Address results, Address workspace,
                     Address stream) {
    py::gil_scoped_release release;
    cuda::propagate(propagation_arguments(v, n, diagonals, diagonal_scales, diagonal_format, coefficients, injections,
                                          injection_scales, injection_format, injection_table),
                    pointer<double>(results), pointer<double>(workspace), pointer<CUstream_st>(stream));
}

void accumulate_prefix_bound(Address prefix, int64_t n, Address h, Address scales, int format, double lr,
                             double damping, Address clamped, Address workspace, Address stream) {
    py::gil_scoped_release release;
    cuda::accumulate_prefix(pointer<float>(prefix), n, pointer<const void>(h), pointer<const uint8_t>(scales),
                            Format(format), float(lr), float(lr * damping), pointer<double>(clamped),
                            pointer<double>(workspace), pointer<CUstream_st>(stream));
}

void propagate_by_prefix_bound(Address v, int64_t n, const std::vector<Address>& prefixes,
                               const std::vector<float>& signs, Address squares, Address workspace, Address stream) {
    py::gil_scoped_release release;
    cuda::propagate_by_prefix(pointer<float>(v), n, pointers<const float>(prefixes), signs, pointer<double>(squares),
                              pointer<double>(workspace), pointer<CUstream_st>(stream));
}

}  // namespace
}  // namespace lmcleaner

void bind_cuda_vectors(py::module_& module) {
    using namespace lmcleaner;
    using py::arg;
    module.attr("workspace_doubles") = cuda::workspace_doubles;
    module.def("encode", &encode_bound, arg("x"), arg("n"), arg("format"), arg("payload"), arg("scales"),
               arg("overflowed"), arg("stream"),
               "Float32 to a payload; overflowed, an int32, is set where one does not fit.");
    module.def("encode_difference", &encode_difference_bound, arg("theta"), arg("shadow"), arg("n"), arg("format"),
               arg("payload"), arg("scales"), arg("overflowed"), arg("stream"),
               "q = Q(theta - shadow), shadow += decoded q.");
    module.def("decode", &decode_bound, arg("payload"), arg("scales"), arg("n"), arg("format"), arg("out"),
               arg("stream"), "The values of an encoded vector as float32.");
    module.def("dot", &dot_bound, arg("payload_a"), arg("scales_a"), arg("format_a"), arg("payload_b"), arg("scales_b"),
               arg("format_b"), arg("n"), arg("product"), arg("workspace"), arg("stream"),
               "Inner product, accumulated in double.");
    module.def("propagate", &propagate_bound, arg("v"), arg("n"), arg("diagonals"), arg("diagonal_scales"),
               arg("diagonal_format"), arg("coefficients"), arg("injections"), arg("injection_scales"),
               arg("injection_format"), arg("injection_table"), arg("results"), arg("workspace"), arg("stream"),
               "damped_propagate_window_ on device pointers: results = (sum of v^2, largest factor).");
    module.def("accumulate_prefix", &accumulate_prefix_bound, arg("prefix"), arg("n"), arg("h"), arg("scales"),
               arg("format"), arg("lr"), arg("damping"), arg("clamped"), arg("workspace"), arg("stream"),
               "prefix += log(1 - lr (h + damping)); clamped = how many factors were.");
    module.def("propagate_by_prefix", &propagate_by_prefix_bound, arg("v"), arg("n"), arg("prefixes"), arg("signs"),
               arg("squares"), arg("workspace"), arg("stream"),
               "v *= exp(sum of sign * prefix); squares = sum of v^2.");
}
