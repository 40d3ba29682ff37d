// The kernels of cpu/vector_kernels.h as Python functions. The GIL is released around every kernel.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "bind_arguments.h"
#include "cpu/dispatch.h"
#include "cpu/vector_kernels.h"

namespace py = pybind11;

namespace lmcleaner {
namespace {

std::pair<double, double> propagate_bound(Address v, int64_t n, const std::vector<Address>& diagonals,
                                          const std::vector<Address>& diagonal_scales, int diagonal_format,
                                          Address coefficients, const std::vector<Address>& injections,
                                          const std::vector<Address>& injection_scales, int injection_format,
                                          Address injection_table, int threads) {
    py::gil_scoped_release release;
    const PropagationArguments arguments =
        propagation_arguments(v, n, diagonals, diagonal_scales, diagonal_format, coefficients, injections,
                              injection_scales, injection_format, injection_table);
    const std::vector<PropagationEntry> entries = propagation_entries(arguments);
    std::vector<double> squares = chunk_sums(n);
    std::vector<float> factors(squares.size());
    LMCLEANER_DISPATCH(propagate, arguments, entries, threads, squares.data(), factors.data());
    return {sum(squares), factors.empty() ? 0.0 : double(*std::max_element(factors.begin(), factors.end()))};
}

int64_t accumulate_prefix_bound(Address prefix, int64_t n, Address h, Address scales, int format, double lr,
                                double damping, int threads) {
    py::gil_scoped_release release;
    const EncodedVector vector{pointer<const void>(h), pointer<const uint8_t>(scales), Format(format)};
    std::vector<double> clamped = chunk_sums(n);
    LMCLEANER_DISPATCH(accumulate_prefix, pointer<float>(prefix), vector, n, float(lr), float(lr * damping), threads,
                       clamped.data());
    return int64_t(sum(clamped));
}

double propagate_by_prefix_bound(Address v, int64_t n, const std::vector<Address>& prefixes,
                                 const std::vector<float>& signs, int threads) {
    py::gil_scoped_release release;
    std::vector<double> squares = chunk_sums(n);
    LMCLEANER_DISPATCH(propagate_by_prefix, pointer<float>(v), n, pointers<const float>(prefixes), signs, threads,
                       squares.data());
    return sum(squares);
}

}  // namespace
}  // namespace lmcleaner

void bind_vector_kernels(py::module_& module) {
    using namespace lmcleaner;
    using py::arg;
    module.def("propagate", &propagate_bound, arg("v"), arg("n"), arg("diagonals"), arg("diagonal_scales"),
               arg("diagonal_format"), arg("coefficients"), arg("injections"), arg("injection_scales"),
               arg("injection_format"), arg("injection_table"), arg("threads"),
               "damped_propagate_window_ on pointers: (sum of v^2, largest factor).");
    module.def("accumulate_prefix", &accumulate_prefix_bound, arg("prefix"), arg("n"), arg("h"), arg("scales"),
               arg("format"), arg("lr"), arg("damping"), arg("threads"),
               "prefix += log(1 - lr (h + damping)). Returns how many factors were clamped.");
    module.def("propagate_by_prefix", &propagate_by_prefix_bound, arg("v"), arg("n"), arg("prefixes"), arg("signs"),
               arg("threads"), "v *= exp(sum of sign * prefix). Returns the sum of v^2.");
}
