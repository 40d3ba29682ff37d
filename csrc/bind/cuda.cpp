// The Python module lmcleaner_ext._cuda: the kernels of cuda/kernels.h on the tensors of a device. Importing it does
// not touch a device.

#include "bind/arguments.h"
#include "cuda/kernels.h"

namespace lmcleaner {
namespace {

// The kernel is queued without the GIL, once its arguments have been read.
template <class Kernel, class... Arguments>
void queue(const Kernel& kernel, const Arguments&... arguments) {
    const py::gil_scoped_release release;
    kernel(arguments...);
}

CUstream_st* stream_of(uintptr_t address) {
    return reinterpret_cast<CUstream_st*>(address);
}

void encode_bound(const py::object& x, const py::object& out, const py::object& overflowed, uintptr_t stream) {
    const py::object payload = payload_of(out);
    queue(cuda::encode, data<const float>(x), numel(x), format_of(payload), data<void>(payload),
          data<uint8_t>(scales_of(out)), data<int>(overflowed), stream_of(stream));
}

void encode_difference_bound(const py::object& theta, const py::object& shadow, const py::object& out,
                             const py::object& overflowed, uintptr_t stream) {
    const py::object payload = payload_of(out);
    queue(cuda::encode_difference, data<const float>(theta), data<float>(shadow), numel(theta), format_of(payload),
          data<void>(payload), data<uint8_t>(scales_of(out)), data<int>(overflowed), stream_of(stream));
}

void decode_bound(const py::object& vector, const py::object& out, uintptr_t stream) {
    const EncodedVector x = encoded_vector(vector);
    queue(cuda::decode, x.payload, x.scales, numel(out), x.format, data<float>(out), stream_of(stream));
}

void dot_bound(const py::object& a, const py::object& b, const py::object& product, const py::object& workspace,
               uintptr_t stream) {
    const EncodedVector x = encoded_vector(a), y = encoded_vector(b);
    queue(cuda::dot, x.payload, x.scales, x.format, y.payload, y.scales, y.format, numel(payload_of(a)),
          data<double>(product), data<double>(workspace), stream_of(stream));
}

void replay_bound(const py::object& window, const py::object& squares, uintptr_t stream) {
    queue(cuda::optimizer_replay_window, replay_arguments(window), data<double>(squares), stream_of(stream));
}

void propagate_bound(const py::object& window, const py::object& results, const py::object& workspace,
                     uintptr_t stream) {
    queue(cuda::propagate, propagation_arguments(window), data<double>(results), data<double>(workspace),
          stream_of(stream));
}

void update_diagonal_bound(const py::object& h, const py::object& a, const py::object& b, double beta, double weight,
                           uint64_t seed, bool by_chance, const py::object& failures, const py::object& workspace,
                           uintptr_t stream) {
    queue(cuda::update_diagonal, diagonal_update(h, a, b, beta, weight, seed, by_chance), numel(a),
          data<double>(failures), data<double>(workspace), stream_of(stream));
}

void row_squares_bound(const py::object& vectors, int64_t n, const py::object& squares, const py::object& workspace,
                       uintptr_t stream) {
    queue(cuda::row_squares, encoded_list(vectors), n, data<double>(squares), data<double>(workspace),
          stream_of(stream));
}

void gram_bound(const py::object& vectors, int64_t n, const py::object& groups, const py::object& workspace,
                uintptr_t stream) {
    queue(cuda::gram, encoded_list(vectors), n, data<double>(groups), data<double>(workspace), stream_of(stream));
}

void combine_bound(const py::object& out, const py::object& vectors, const py::object& coefficients, uintptr_t stream) {
    queue(cuda::combine, data<float>(out), size(out, 1), size(out, 2), encoded_list(vectors),
          data<const float>(coefficients), stream_of(stream));
}

}  // namespace
}  // namespace lmcleaner

PYBIND11_MODULE(_cuda, module) {
    using namespace lmcleaner;
    using py::arg;
    module.doc() = "The CUDA kernels, queued on `stream`; results and workspace are the caller's device tensors.";
    module.attr("workspace_doubles") = cuda::workspace_doubles;
    module.attr("gram_group") = cuda::gram_group;
    module.attr("gram_workspace_doubles") = cuda::gram_workspace_doubles;
    module.def("device_count", &cuda::device_count, "CUDA devices this process can use; 0 without a driver.");
    module.def("encode", &encode_bound, arg("x"), arg("out"), arg("overflowed"), arg("stream"),
               "overflowed, an int32, is set where a value does not fit.");
    module.def("encode_difference", &encode_difference_bound, arg("theta"), arg("shadow"), arg("out"),
               arg("overflowed"), arg("stream"), "q = Q(theta - shadow), shadow += decoded q.");
    module.def("decode", &decode_bound, arg("vector"), arg("out"), arg("stream"),
               "The values of an encoded vector as float32.");
    module.def("dot", &dot_bound, arg("a"), arg("b"), arg("product"), arg("workspace"), arg("stream"),
               "Inner product, accumulated in double.");
    module.def("optimizer_replay_window", &replay_bound, arg("window"), arg("squares"), arg("stream"),
               "squares = each request's sum of delta^2.");
    module.def("propagate", &propagate_bound, arg("window"), arg("results"), arg("workspace"), arg("stream"),
               "results = (sum of v^2, largest factor).");
    module.def("update_diagonal", &update_diagonal_bound, arg("h"), arg("a"), arg("b"), arg("beta"), arg("weight"),
               arg("seed"), arg("by_chance"), arg("failures"), arg("workspace"), arg("stream"),
               "h = beta h + weight a b in block-scaled fp16; failures = blocks that do not fit.");
    module.def("row_squares", &row_squares_bound, arg("vectors"), arg("n"), arg("squares"), arg("workspace"),
               arg("stream"), "The sum of squares of each vector.");
    module.def("gram", &gram_bound, arg("vectors"), arg("n"), arg("groups"), arg("workspace"), arg("stream"),
               "The inner products of each pair of groups of vectors, lower triangle.");
    module.def("combine", &combine_bound, arg("out"), arg("vectors"), arg("coefficients"), arg("stream"),
               "out [requests, n] += coefficients [requests, vectors] times the vectors.");
}
