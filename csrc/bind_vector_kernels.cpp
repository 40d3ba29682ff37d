// The kernels of cpu/vector_kernels.h as Python functions. The GIL is released around every kernel.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <numeric>
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

bool update_diagonal_bound(Address payload, Address scales, int64_t n, Address a, Address b, double beta, double weight,
                           uint64_t seed, bool by_chance, int threads) {
    py::gil_scoped_release release;
    const DiagonalUpdate update = diagonal_update(payload, scales, a, b, beta, weight, seed, by_chance);
    std::vector<double> failures = chunk_sums(n);
    LMCLEANER_DISPATCH(update_diagonal, update, n, threads, failures.data());
    return sum(failures) == 0;
}

std::vector<double> row_squares_bound(const std::vector<Address>& payloads, const std::vector<Address>& scales,
                                      const std::vector<int>& formats, int64_t n, int threads) {
    py::gil_scoped_release release;
    const std::vector<EncodedVector> rows = encoded_vectors(payloads, scales, formats);
    const size_t chunks = chunk_sums(n).size();
    std::vector<double> parts(rows.size() * chunks), squares;
    LMCLEANER_DISPATCH(row_squares, rows, n, threads, parts.data());
    for (size_t row = 0; row < rows.size(); ++row)
        squares.push_back(std::accumulate(parts.begin() + row * chunks, parts.begin() + (row + 1) * chunks, 0.0));
    return squares;
}

void gram_bound(const std::vector<Address>& payloads, const std::vector<Address>& scales,
                const std::vector<int>& formats, int64_t rows, int64_t n, Address out, int threads) {
    py::gil_scoped_release release;
    const std::vector<EncodedVector> vectors = encoded_vectors(payloads, scales, formats);
    const size_t count = vectors.size(), wanted = size_t(rows);
    const size_t strips = size_t(gram_strips(int64_t(count), rows, n));
    std::vector<double> parts(strips * count * wanted);
    LMCLEANER_DISPATCH(gram, vectors, rows, n, int64_t(strips), threads, parts.data());
    double* matrix = pointer<double>(out);
    for (size_t row = 0; row < count; ++row) {
        for (size_t column = 0; column <= row && column < wanted; ++column) {
            double sum = 0;
            for (size_t strip = 0; strip < strips; ++strip) sum += parts[(strip * count + row) * wanted + column];
            matrix[column * count + row] = sum;
            if (row < wanted) matrix[row * count + column] = sum;
        }
    }
}

void combine_bound(Address out, int64_t n, int64_t requests, const std::vector<Address>& payloads,
                   const std::vector<Address>& scales, const std::vector<int>& formats, Address coefficients,
                   int threads) {
    py::gil_scoped_release release;
    LMCLEANER_DISPATCH(combine, pointer<float>(out), n, requests, encoded_vectors(payloads, scales, formats),
                       pointer<const float>(coefficients), threads);
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
    module.def("update_diagonal", &update_diagonal_bound, arg("payload"), arg("scales"), arg("n"), arg("a"), arg("b"),
               arg("beta"), arg("weight"), arg("seed"), arg("by_chance"), arg("threads"),
               "h = beta h + weight a b in block-scaled fp16. False: not all values fit.");
    module.def("row_squares", &row_squares_bound, arg("payloads"), arg("scales"), arg("formats"), arg("n"),
               arg("threads"), "The sum of squares of each vector.");
    module.def("gram", &gram_bound, arg("payloads"), arg("scales"), arg("formats"), arg("rows"), arg("n"), arg("out"),
               arg("threads"), "out[i, j] = <vector i, vector j> in double, for the first rows.");
    module.def("combine", &combine_bound, arg("out"), arg("n"), arg("requests"), arg("payloads"), arg("scales"),
               arg("formats"), arg("coefficients"), arg("threads"),
               "out [requests, n] += coefficients [requests, vectors] times the vectors.");
}
