// damped_propagate, damped_propagate_window and the prefix form on the CPU: a block of v takes all steps in the
// first-level cache while the log streams past. The formulas are in math/damped_propagation.h.

#include "math/damped_propagation.h"

#include "cpu/block.h"
#include "cpu/vector_kernels.h"

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {
namespace {

LMC_REGISTER void take(const PropagationEntry& entry, const Block& x, Block& v, Pack& largest) {
    if (entry.injection) {
        for (int i = 0; i < block_size; i += Pack::width)
            store_pack(v.x + i, fnma(Pack(entry.lr), load_pack(x.x + i), load_pack(v.x + i)));
        return;
    }
    for (int i = 0; i < block_size; i += Pack::width) {
        const Pack factor = math::propagation_factor(load_pack(x.x + i), entry.keep, entry.lr);
        largest = greater(magnitude(factor), largest);
        store_pack(v.x + i, factor * load_pack(v.x + i));
    }
}

LMC_REGISTER float largest_lane(const Pack& pack) {
    const Partial<float> lane(pack);
    float largest = 0;
    for (float x : lane.values) largest = x > largest ? x : largest;
    return largest;
}

// Like `take` for the end of a vector: the zeros that fill the block are no elements, their factors do not count.
void take_some(const PropagationEntry& entry, const Block& x, int count, Block& v, Pack& largest) {
    Pack filled(0.0f);
    take(entry, x, v, filled);
    Block factors;
    for (int i = 0; i < block_size; i += Pack::width)
        store_pack(factors.x + i, magnitude(math::propagation_factor(load_pack(x.x + i), entry.keep, entry.lr)));
    for (int i = 0; i < count && !entry.injection; ++i) largest = greater(Pack(factors.x[i]), largest);
}

}  // namespace

void propagate(const PropagationArguments& a, const std::vector<PropagationEntry>& entries, int threads,
               double* chunk_squares, float* chunk_factors) {
    for_each_chunk(a.n, threads, [&](int64_t chunk, int64_t begin, int64_t end) {
        DoubleSum squares;
        Pack largest(0.0f);
        for_each_block_of(begin, end, [&](int64_t block, int64_t at, int count) __attribute__((always_inline)) {
            Block v, x;
            load_block(a.v + at, count, v);
            for (const PropagationEntry& entry : entries) {
                const Format format = entry.injection ? a.injections.format : a.diagonals.format;
                decode_block(entry.payload, entry.scales, format, block, count, x);
                if (count == block_size)
                    take(entry, x, v, largest);
                else
                    take_some(entry, x, count, v, largest);
            }
            std::memcpy(a.v + at, v.x, size_t(count) * sizeof(float));
            std::memset(v.x + count, 0, size_t(block_size - count) * sizeof(float));  // inf * 0 there would be NaN
            squares.add_squares(v);
        });
        chunk_squares[chunk] = squares.value();
        chunk_factors[chunk] = largest_lane(largest);
    });
}

void accumulate_prefix(float* prefix, const EncodedVector& h, int64_t n, float lr, float shift, int threads,
                       double* chunk_clamped) {
    for_each_chunk(n, threads, [&](int64_t chunk, int64_t begin, int64_t end) {
        int64_t clamped = 0;
        for_each_block_of(begin, end, [&](int64_t block, int64_t at, int count) __attribute__((always_inline)) {
            Block x, sum;
            decode_block(h.payload, h.scales, h.format, block, count, x);
            load_block(prefix + at, count, sum);
            for (int i = 0; i < block_size; i += Pack::width) {
                const Pack asked = math::decrement(load_pack(x.x + i), lr, shift);
                store_pack(x.x + i, asked);
                const Pack taken = lesser(Pack(math::largest_decrement), asked);
                store_pack(sum.x + i, math::accumulate_prefix(load_pack(sum.x + i), taken));
            }
            int32_t beyond = 0;
            for (int i = 0; i < count; ++i) beyond += x.x[i] > math::largest_decrement;
            clamped += beyond;
            std::memcpy(prefix + at, sum.x, size_t(count) * sizeof(float));
        });
        chunk_clamped[chunk] = double(clamped);
    });
}

void propagate_by_prefix(float* v, int64_t n, const std::vector<const float*>& prefixes,
                         const std::vector<float>& signs, int threads, double* chunk_squares) {
    for_each_chunk(n, threads, [&](int64_t chunk, int64_t begin, int64_t end) {
        DoubleSum squares;
        for_each_block_of(begin, end, [&](int64_t, int64_t at, int count) __attribute__((always_inline)) {
            Block x, some, sum{};
            for (size_t j = 0; j < prefixes.size(); ++j) {
                load_block(prefixes[j] + at, count, some);
                for (int i = 0; i < block_size; i += Pack::width)
                    store_pack(sum.x + i, fma(Pack(signs[j]), load_pack(some.x + i), load_pack(sum.x + i)));
            }
            load_block(v + at, count, x);
            for (int i = 0; i < block_size; i += Pack::width)
                store_pack(x.x + i, load_pack(x.x + i) * exponential(load_pack(sum.x + i)));
            std::memcpy(v + at, x.x, size_t(count) * sizeof(float));
            squares.add_squares(x);
        });
        chunk_squares[chunk] = squares.value();
    });
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
