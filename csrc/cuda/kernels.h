// The CUDA kernels. Each queues its work on `stream` and returns at once; vectors, results and
// workspace are device memory, tables are host memory and may be freed on return. Sums are the same to the last bit at
// every call. Throws std::runtime_error with CUDA's message. Compiled without CUDA's headers too.

#pragma once

#include "math/propagation_plan.h"

struct CUstream_st;

namespace lmcleaner::cuda {

int device_count();  // that this process can use; 0 without a driver

inline constexpr int64_t workspace_doubles = 2 * 4096;

// overflowed: set to one where a value does not fit the format, else left alone.
void encode(const float* x, int64_t n, Format format, void* payload, uint8_t* scales, int* overflowed,
            CUstream_st* stream);
void encode_difference(const float* theta, float* shadow, int64_t n, Format format, void* payload, uint8_t* scales,
                       int* overflowed, CUstream_st* stream);
void decode(const void* payload, const uint8_t* scales, int64_t n, Format format, float* out, CUstream_st* stream);
void dot(const void* payload_a, const uint8_t* scales_a, Format format_a, const void* payload_b,
         const uint8_t* scales_b, Format format_b, int64_t n, double* product, double* workspace, CUstream_st* stream);

// Several requests are as many launches; sum_of_squares is one double per request.
void optimizer_replay_window(const ReplayArguments& arguments, double* sum_of_squares, CUstream_st* stream);

// results: sum of v^2, largest factor.
void propagate(const PropagationArguments& arguments, double* results, double* workspace, CUstream_st* stream);

// failures: how many blocks have a value that fp16 cannot hold.
void update_diagonal(const DiagonalUpdate& update, int64_t n, double* failures, double* workspace, CUstream_st* stream);

inline constexpr int gram_group = 32;
inline constexpr int64_t gram_strips = 1536;  // thread blocks that share the columns, at most
inline constexpr int64_t gram_workspace_doubles = gram_group * gram_group * gram_strips;

// squares: of each row.
void row_squares(const std::vector<EncodedVector>& rows, int64_t n, double* squares, double* workspace,
                 CUstream_st* stream);
// groups: the inner products [32, 32] of each pair of groups of 32 vectors, row by row of the lower triangle. Rows and
// columns beyond the vectors, and of a group with itself the upper triangle, are not to be used.
void gram(const std::vector<EncodedVector>& vectors, int64_t n, double* groups, double* workspace, CUstream_st* stream);
// out [requests, n] += coefficients [requests, vectors] times the vectors; coefficients are device memory.
void combine(float* out, int64_t n, int64_t requests, const std::vector<EncodedVector>& vectors,
             const float* coefficients, CUstream_st* stream);

}  // namespace lmcleaner::cuda
