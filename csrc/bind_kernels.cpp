// The CPU kernels as Python functions. The GIL is released around every kernel.

#include <pybind11/pybind11.h>

#include <optional>
#include <vector>

#include "bind_arguments.h"
#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "store/format.h"

namespace py = pybind11;

namespace lmcleaner {
namespace {

bool encode_bound(Address x, int64_t n, int format, Address payload, Address scales, int threads) {
    py::gil_scoped_release release;
    return LMCLEANER_DISPATCH(encode, pointer<const float>(x), n, Format(format), pointer<void>(payload),
                              pointer<uint8_t>(scales), threads);
}

bool encode_difference_bound(Address theta, Address shadow, int64_t n, int format, Address payload, Address scales,
                             int threads) {
    py::gil_scoped_release release;
    return LMCLEANER_DISPATCH(encode_difference, pointer<const float>(theta), pointer<float>(shadow), n, Format(format),
                              pointer<void>(payload), pointer<uint8_t>(scales), threads);
}

void decode_bound(Address payload, Address scales, int64_t n, int format, Address out, int threads) {
    py::gil_scoped_release release;
    const EncodedVector x{pointer<const void>(payload), pointer<const uint8_t>(scales), Format(format)};
    LMCLEANER_DISPATCH(decode, x, n, pointer<float>(out), threads);
}

double dot_bound(Address payload_a, Address scales_a, int format_a, Address payload_b, Address scales_b, int format_b,
                 int64_t n, int threads) {
    py::gil_scoped_release release;
    const EncodedVector a{pointer<const void>(payload_a), pointer<const uint8_t>(scales_a), Format(format_a)};
    const EncodedVector b{pointer<const void>(payload_b), pointer<const uint8_t>(scales_b), Format(format_b)};
    std::vector<double> parts = chunk_sums(n);
    LMCLEANER_DISPATCH(dot, a, b, n, threads, parts.data());
    return sum(parts);
}

std::pair<double, double> exchange_bound(Address theta, Address v, int64_t n, int threads) {
    py::gil_scoped_release release;
    std::vector<double> before = chunk_sums(n), after = chunk_sums(n);
    LMCLEANER_DISPATCH(exchange, pointer<float>(theta), pointer<float>(v), n, threads, before.data(), after.data());
    return {sum(before), sum(after)};
}

std::optional<std::vector<double>> replay_bound(
    int rule, int64_t n, const std::vector<Address>& delta, Address theta, const std::vector<Address>& state,
    const std::vector<Address>& counterfactual, Address coefficients, int64_t classes, int64_t steps, Address segments,
    int64_t segment_count, const std::vector<Address>& gradients, const std::vector<Address>& gradient_scales,
    int gradient_format, const std::vector<Address>& injections, const std::vector<Address>& injection_scales,
    int injection_format, Address injection_table, int64_t injection_columns, Address diagonal, int64_t lead,
    int threads, const std::vector<const VectorChecks*>& checks, int64_t first_chunk, int64_t chunk_elements) {
    py::gil_scoped_release release;
    ReplayArguments arguments =
        replay_arguments(rule, n, delta, theta, state, counterfactual, coefficients, classes, steps, segments,
                         segment_count, gradients, gradient_scales, gradient_format, injections, injection_scales,
                         injection_format, injection_table, injection_columns, diagonal, lead);
    ReplayChecks all{{}, first_chunk, chunk_elements, int64_t(store::CHUNK) / chunk_elements};
    for (const VectorChecks* some : checks)
        all.vectors.insert(all.vectors.end(), some->vectors.begin(), some->vectors.end());
    if (!checks.empty()) arguments.checks = &all;
    const ReplayPlan plan(arguments);
    std::vector<char> workspace(size_t(replay_workspace_per_step * steps * threads));
    std::vector<std::vector<double>> parts(delta.size(), chunk_sums(n));
    if (!LMCLEANER_DISPATCH(optimizer_replay_window, arguments, plan, threads, workspace.data(), parts))
        return std::nullopt;
    std::vector<double> sums;
    for (const std::vector<double>& some : parts) sums.push_back(sum(some));
    return sums;
}

}  // namespace
}  // namespace lmcleaner

void bind_kernels(py::module_& module) {
    using namespace lmcleaner;
    using py::arg;
    module.def("encode", &encode_bound, arg("x"), arg("n"), arg("format"), arg("payload"), arg("scales"),
               arg("threads"),
               "Float32 to a payload of format 0 fp32, 1 fp16, 2 bf16, 3 int8, 4 fp8. False: not all values fit.");
    module.def("encode_difference", &encode_difference_bound, arg("theta"), arg("shadow"), arg("n"), arg("format"),
               arg("payload"), arg("scales"), arg("threads"),
               "q = Q(theta - shadow), shadow += decoded q. False: not all differences fit.");
    module.def("decode", &decode_bound, arg("payload"), arg("scales"), arg("n"), arg("format"), arg("out"),
               arg("threads"), "The values of an encoded vector as float32.");
    module.def("dot", &dot_bound, arg("payload_a"), arg("scales_a"), arg("format_a"), arg("payload_b"), arg("scales_b"),
               arg("format_b"), arg("n"), arg("threads"),
               "Inner product, accumulated in double; the same for any number of threads.");
    module.def("exchange", &exchange_bound, arg("theta"), arg("v"), arg("n"), arg("threads"),
               "theta <- theta - v, v <- what theta was. Returns the sums of theta^2 before and after, in double.");
    module.def(
        "optimizer_replay_window", &replay_bound, arg("rule"), arg("n"), arg("delta"), arg("theta"), arg("state"),
        arg("counterfactual"), arg("coefficients"), arg("classes"), arg("steps"), arg("segments"), arg("segment_count"),
        arg("gradients"), arg("gradient_scales"), arg("gradient_format"), arg("injections"), arg("injection_scales"),
        arg("injection_format"), arg("injection_table"), arg("injection_columns"), arg("diagonal"), arg("lead"),
        arg("threads"), arg("checks") = py::list(), arg("first_chunk") = 0, arg("chunk_elements") = 1,
        "lmcleaner_ext.ops.optimizer_replay_window_ on pointers, one delta per request. Returns each one's sum of "
        "delta^2; None, and all results are void, if the bytes of the vectors in `checks` do not match their "
        "checksums.");
}
