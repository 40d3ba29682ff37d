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
    }

LMCLEANER_DECLARE_VECTOR_KERNELS(portable)
#if defined(__x86_64__)
LMCLEANER_DECLARE_VECTOR_KERNELS(avx2)
LMCLEANER_DECLARE_VECTOR_KERNELS(avx512)
#endif

}  // namespace lmcleaner
