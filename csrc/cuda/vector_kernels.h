// The CUDA kernels beside the replay. Each queues its work on `stream` and returns at once; vectors, results and
// workspace are device memory, tables are host memory and may be freed on return. Sums are the same to the last bit at
// every call. Throws std::runtime_error with CUDA's message. Compiled without CUDA's headers too.

#pragma once

#include "math/propagation_plan.h"

struct CUstream_st;

namespace lmcleaner::cuda {

inline constexpr int64_t workspace_doubles = 2 * 4096;

// results: sum of v^2, largest factor.
void propagate(const PropagationArguments& arguments, double* results, double* workspace, CUstream_st* stream);
// clamped: how many factors were.
void accumulate_prefix(float* prefix, int64_t n, const void* h, const uint8_t* scales, Format format, float lr,
                       float shift, double* clamped, double* workspace, CUstream_st* stream);
void propagate_by_prefix(float* v, int64_t n, const std::vector<const float*>& prefixes,
                         const std::vector<float>& signs, double* squares, double* workspace, CUstream_st* stream);

// failures: how many blocks have a value that fp16 cannot hold.
void update_diagonal(const DiagonalUpdate& update, int64_t n, double* failures, double* workspace, CUstream_st* stream);

}  // namespace lmcleaner::cuda
