// The CPU kernels as Python functions. The GIL is released around every kernel.

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "bind/arguments.h"
#include "cpu/dispatch.h"
#include "cpu/recording.h"
#include "store/format.h"

namespace lmcleaner {
namespace {

using Release = py::gil_scoped_release;

// Room for an encoded vector.
EncodedRoom room(py::handle vector) {
    const py::object payload = payload_of(vector);
    return {data<void>(payload), data<uint8_t>(scales_of(vector)), format_of(payload)};
}

bool encode_bound(const py::object& x, const py::object& out, int threads) {
    const EncodedRoom to = room(out);
    const float* values = data<const float>(x);
    const int64_t n = numel(x);
    const Release release;
    return LMCLEANER_DISPATCH(encode, values, n, to.format, to.payload, to.scales, threads);
}

bool encode_difference_bound(const py::object& theta, const py::object& shadow, const py::object& out, int threads) {
    const EncodedRoom to = room(out);
    const float* values = data<const float>(theta);
    float* before = data<float>(shadow);
    const int64_t n = numel(theta);
    const Release release;
    return LMCLEANER_DISPATCH(encode_difference, values, before, n, to.format, to.payload, to.scales, threads);
}

void decode_bound(const py::object& vector, const py::object& out, int threads) {
    const EncodedVector x = encoded_vector(vector);
    float* values = data<float>(out);
    const int64_t n = numel(out);
    const Release release;
    LMCLEANER_DISPATCH(decode, x, n, values, threads);
}

double dot_bound(const py::object& a, const py::object& b, int threads) {
    const EncodedVector x = encoded_vector(a), y = encoded_vector(b);
    const int64_t n = numel(payload_of(a));
    const Release release;
    std::vector<double> parts = chunk_sums(n);
    LMCLEANER_DISPATCH(dot, x, y, n, threads, parts.data());
    return sum(parts);
}

std::pair<double, double> exchange_bound(const py::object& theta, const py::object& v, int threads) {
    float *weights = data<float>(theta), *correction = data<float>(v);
    const int64_t n = numel(theta);
    const Release release;
    std::vector<double> before = chunk_sums(n), after = chunk_sums(n);
    LMCLEANER_DISPATCH(exchange, weights, correction, n, threads, before.data(), after.data());
    return {sum(before), sum(after)};
}

std::optional<std::vector<double>> replay_bound(const py::object& window, int threads,
                                                const std::vector<const VectorChecks*>& checks, int64_t first_chunk,
                                                int64_t chunk_elements) {
    ReplayArguments arguments = replay_arguments(window);
    const Release release;
    ReplayChecks all{{}, first_chunk, chunk_elements, int64_t(store::CHUNK) / chunk_elements};
    for (const VectorChecks* some : checks)
        all.vectors.insert(all.vectors.end(), some->vectors.begin(), some->vectors.end());
    if (!checks.empty()) arguments.checks = &all;
    const ReplayPlan plan(arguments);
    std::vector<char> workspace(size_t(replay_workspace_per_step * arguments.steps * threads));
    std::vector<std::vector<double>> parts(arguments.delta.size(), chunk_sums(arguments.n));
    if (!LMCLEANER_DISPATCH(optimizer_replay_window, arguments, plan, threads, workspace.data(), parts))
        return std::nullopt;
    std::vector<double> sums;
    for (const std::vector<double>& some : parts) sums.push_back(sum(some));
    return sums;
}

std::pair<double, double> propagate_bound(const py::object& window, int threads) {
    const PropagationArguments arguments = propagation_arguments(window);
    const Release release;
    const std::vector<PropagationEntry> entries = propagation_entries(arguments);
    std::vector<double> squares = chunk_sums(arguments.n);
    std::vector<float> factors(squares.size());
    LMCLEANER_DISPATCH(propagate, arguments, entries, threads, squares.data(), factors.data());
    return {sum(squares), factors.empty() ? 0.0 : double(*std::max_element(factors.begin(), factors.end()))};
}

bool update_diagonal_bound(const py::object& h, const py::object& a, const py::object& b, double beta, double weight,
                           uint64_t seed, bool by_chance, int threads) {
    const DiagonalUpdate update = diagonal_update(h, a, b, beta, weight, seed, by_chance);
    const int64_t n = numel(a);
    const Release release;
    std::vector<double> failures = chunk_sums(n);
    LMCLEANER_DISPATCH(update_diagonal, update, n, threads, failures.data());
    return sum(failures) == 0;
}

std::vector<double> row_squares_bound(const py::object& vectors, int64_t n, int threads) {
    const std::vector<EncodedVector> rows = encoded_list(vectors);
    const Release release;
    const size_t chunks = chunk_sums(n).size();
    std::vector<double> parts(rows.size() * chunks), squares;
    LMCLEANER_DISPATCH(row_squares, rows, n, threads, parts.data());
    for (size_t row = 0; row < rows.size(); ++row)
        squares.push_back(std::accumulate(parts.begin() + row * chunks, parts.begin() + (row + 1) * chunks, 0.0));
    return squares;
}

void gram_bound(const py::object& list, int64_t rows, int64_t n, const py::object& out, int threads) {
    const std::vector<EncodedVector> vectors = encoded_list(list);
    double* matrix = data<double>(out);
    const Release release;
    const size_t count = vectors.size(), wanted = size_t(rows);
    const size_t strips = size_t(gram_strips(int64_t(count), rows, n));
    std::vector<double> parts(strips * count * wanted);
    LMCLEANER_DISPATCH(gram, vectors, rows, n, int64_t(strips), threads, parts.data());
    for (size_t row = 0; row < count; ++row) {
        for (size_t column = 0; column <= row && column < wanted; ++column) {
            double sum = 0;
            for (size_t strip = 0; strip < strips; ++strip) sum += parts[(strip * count + row) * wanted + column];
            matrix[column * count + row] = sum;
            if (row < wanted) matrix[row * count + column] = sum;
        }
    }
}

void combine_bound(const py::object& out, const py::object& list, const py::object& coefficients, int threads) {
    const std::vector<EncodedVector> vectors = encoded_list(list);
    float* rows = data<float>(out);
    const float* factors = data<const float>(coefficients);
    const int64_t requests = size(out, 2), n = size(out, 1);
    const Release release;
    LMCLEANER_DISPATCH(combine, rows, n, requests, vectors, factors, threads);
}

std::vector<Part> parts_of(py::handle tensors, const std::vector<int64_t>& sizes) {
    std::vector<Part> found;
    for (py::handle tensor : tensors) found.push_back({data<const float>(tensor), sizes.at(found.size())});
    return found;
}

bool encode_parts_bound(const py::object& tensors, const std::vector<int64_t>& sizes, const py::object& out,
                        int threads) {
    const std::vector<Part> parts = parts_of(tensors, sizes);
    const EncodedRoom to = room(out);
    const Release release;
    return encode_parts(parts, to, threads);
}

bool encode_parts_difference_bound(const py::object& tensors, const std::vector<int64_t>& sizes,
                                   const py::object& shadow, const py::object& out, int threads) {
    const std::vector<Part> parts = parts_of(tensors, sizes);
    const EncodedRoom to = room(out);
    float* before = data<float>(shadow);
    const Release release;
    return encode_parts_difference(parts, before, to, threads);
}

std::pair<bool, bool> record_gradient_bound(const py::object& tensors, const std::vector<int64_t>& sizes,
                                            const py::object& h, double beta, double weight, uint64_t seed,
                                            const py::object& out, int threads) {
    const std::vector<Part> parts = parts_of(tensors, sizes);
    const DiagonalUpdate update = diagonal_update(h, py::none(), py::none(), beta, weight, seed, true);
    std::optional<EncodedRoom> to;
    if (!out.is_none()) to = room(out);
    const Release release;
    return record_gradient(parts, update, to, threads);
}

}  // namespace
}  // namespace lmcleaner

void bind_cpu(pybind11::module_& module) {
    using namespace lmcleaner;
    using py::arg;
    module.def("encode", &encode_bound, arg("x"), arg("out"), arg("threads"), "False: not all values fit.");
    module.def("encode_difference", &encode_difference_bound, arg("theta"), arg("shadow"), arg("out"), arg("threads"),
               "q = Q(theta - shadow), shadow += decoded q. False: not all differences fit.");
    module.def("decode", &decode_bound, arg("vector"), arg("out"), arg("threads"),
               "The values of an encoded vector as float32.");
    module.def("dot", &dot_bound, arg("a"), arg("b"), arg("threads"),
               "Inner product, accumulated in double; the same for any number of threads.");
    module.def("exchange", &exchange_bound, arg("theta"), arg("v"), arg("threads"),
               "theta <- theta - v, v <- what theta was. Returns the sums of theta^2 before and after, in double.");
    module.def("optimizer_replay_window", &replay_bound, arg("window"), arg("threads"), arg("checks") = py::list(),
               arg("first_chunk") = 0, arg("chunk_elements") = 1,
               "Each request's sum of delta^2; None, and all results are void, if the bytes of the vectors in `checks` "
               "do not match their checksums.");
    module.def("propagate", &propagate_bound, arg("window"), arg("threads"), "(sum of v^2, largest factor).");
    module.def("update_diagonal", &update_diagonal_bound, arg("h"), arg("a"), arg("b"), arg("beta"), arg("weight"),
               arg("seed"), arg("by_chance"), arg("threads"),
               "h = beta h + weight a b in block-scaled fp16. False: not all values fit.");
    module.def("row_squares", &row_squares_bound, arg("vectors"), arg("n"), arg("threads"),
               "The sum of squares of each vector.");
    module.def("gram", &gram_bound, arg("vectors"), arg("rows"), arg("n"), arg("out"), arg("threads"),
               "out[i, j] = <vector i, vector j> in double, for the first rows.");
    module.def("combine", &combine_bound, arg("out"), arg("vectors"), arg("coefficients"), arg("threads"),
               "out [requests, n] += coefficients [requests, vectors] times the vectors.");
    module.def("encode_parts", &encode_parts_bound, arg("parts"), arg("sizes"), arg("out"), arg("threads"),
               "encode() of a float32 vector in parts (None: zeros). False: not all values fit.");
    module.def("encode_parts_difference", &encode_parts_difference_bound, arg("parts"), arg("sizes"), arg("shadow"),
               arg("out"), arg("threads"),
               "encode_difference() of a float32 theta in parts. False: not all differences fit.");
    module.def("record_gradient", &record_gradient_bound, arg("parts"), arg("sizes"), arg("h"), arg("beta"),
               arg("weight"), arg("seed"), arg("out"), arg("threads"),
               "h = beta h + weight g^2, rounded by chance, and encode() of g unless `out` is None, for a float32 g in "
               "parts. Whether all values fit: (encoded, averaged).");
}
