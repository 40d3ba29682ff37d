// The CPU kernels, compiled once per instruction set (KERNEL_SOURCES in CMakeLists.txt) and chosen at run time.

#pragma once

#include <cstdint>
#include <vector>

#include "math/propagation_plan.h"
#include "math/replay_plan.h"

namespace lmcleaner {

// Declared once per instruction set. Partial sums come back per chunk of `chunk_size` elements, so that their sum does
// not depend on the number of threads.
inline constexpr int64_t chunk_size = 64 * block_size;

#define LMCLEANER_DECLARE_KERNELS(instruction_set)                                                                   \
    namespace instruction_set {                                                                                      \
    bool encode(const float* x, int64_t n, Format format, void* payload, uint8_t* scales, int threads);              \
    bool encode_difference(const float* theta, float* shadow, int64_t n, Format format, void* payload,               \
                           uint8_t* scales, int threads);                                                            \
    void decode(const EncodedVector& x, int64_t n, float* out, int threads);                                         \
    void dot(const EncodedVector& a, const EncodedVector& b, int64_t n, int threads, double* chunk_sums);            \
    /* theta <- theta - v, v <- what theta was; sums of theta^2 before and after. */                                 \
    void exchange(float* theta, float* v, int64_t n, int threads, double* before, double* after);                    \
    /* False: a payload does not match its checksum, and the results are to be thrown away. */                       \
    bool optimizer_replay_window(const ReplayArguments& arguments, const ReplayPlan& plan, int threads,              \
                                 void* workspace, std::vector<std::vector<double>>& chunk_sums);                     \
    void propagate(const PropagationArguments& arguments, const std::vector<PropagationEntry>& entries, int threads, \
                   double* chunk_squares, float* chunk_factors);                                                     \
    void row_squares(const std::vector<EncodedVector>& rows, int64_t n, int threads, double* chunk_squares);         \
    void gram(const std::vector<EncodedVector>& vectors, int64_t wanted, int64_t n, int64_t strips, int threads,     \
              double* strip_sums);                                                                                   \
    void combine(float* out, int64_t n, int64_t requests, const std::vector<EncodedVector>& vectors,                 \
                 const float* coefficients, int threads);                                                            \
    void update_diagonal(const DiagonalUpdate& update, int64_t n, int threads, double* chunk_failures);              \
    }

LMCLEANER_DECLARE_KERNELS(portable)
#if defined(__x86_64__)
LMCLEANER_DECLARE_KERNELS(avx2)
LMCLEANER_DECLARE_KERNELS(avx512)
#endif

// Bytes of workspace that optimizer_replay_window needs per thread and step.
inline constexpr int64_t replay_workspace_per_step = 64;

// Gram matrices are summed over strips of neighbouring columns, as many as 64 MiB of partial sums allow: their number
// depends on the sizes alone.
inline int64_t gram_strips(int64_t vectors, int64_t wanted, int64_t n) {
    const int64_t most = (int64_t(1) << 23) / (vectors * wanted + 1), blocks = (n + block_size - 1) / block_size;
    const int64_t strips = most < 16 ? 16 : most > 512 ? 512 : most;
    return strips < blocks ? strips : blocks;
}

}  // namespace lmcleaner
