// The CPU kernels beside the replay and the encodings (cpu/kernels.h), compiled once per instruction set like those.

#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.h"
#include "math/propagation_plan.h"

namespace lmcleaner {

#define LMCLEANER_DECLARE_VECTOR_KERNELS(instruction_set)                                                            \
    namespace instruction_set {                                                                                      \
    void propagate(const PropagationArguments& arguments, const std::vector<PropagationEntry>& entries, int threads, \
                   double* chunk_squares, float* chunk_factors);                                                     \
    void accumulate_prefix(float* prefix, const EncodedVector& h, int64_t n, float lr, float shift, int threads,     \
                           double* chunk_clamped);                                                                   \
    void propagate_by_prefix(float* v, int64_t n, const std::vector<const float*>& prefixes,                         \
                             const std::vector<float>& signs, int threads, double* chunk_squares);                   \
    void row_squares(const std::vector<EncodedVector>& rows, int64_t n, int threads, double* chunk_squares);         \
    void gram(const std::vector<EncodedVector>& vectors, int64_t wanted, int64_t n, int64_t strips, int threads,     \
              double* strip_sums);                                                                                   \
    void combine(float* out, int64_t n, int64_t requests, const std::vector<EncodedVector>& vectors,                 \
                 const float* coefficients, int threads);                                                            \
    void update_diagonal(const DiagonalUpdate& update, int64_t n, int threads, double* chunk_failures);              \
    }

LMCLEANER_DECLARE_VECTOR_KERNELS(portable)
#if defined(__x86_64__)
LMCLEANER_DECLARE_VECTOR_KERNELS(avx2)
LMCLEANER_DECLARE_VECTOR_KERNELS(avx512)
#endif

// Gram matrices are summed over strips of neighbouring columns, as many as 64 MiB of partial sums allow: their number
// depends on the sizes alone.
inline int64_t gram_strips(int64_t vectors, int64_t wanted, int64_t n) {
    const int64_t most = (int64_t(1) << 23) / (vectors * wanted + 1), blocks = (n + block_size - 1) / block_size;
    const int64_t strips = most < 16 ? 16 : most > 512 ? 512 : most;
    return strips < blocks ? strips : blocks;
}

}  // namespace lmcleaner
