// Many logged vectors at once on CUDA: their squares, their inner products (gram) and their linear combinations
// (combine). Lists of vectors travel with the launches, so that nothing is allocated or copied.

#include <algorithm>

#include "cuda/device_tools.cuh"
#include "cuda/vector_kernels.h"
#include "math/value.h"

namespace lmcleaner::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// squares: one row of thread blocks per vector
// ---------------------------------------------------------------------------------------------------------------------

constexpr int vectors_per_launch = 64;

struct Vectors {
    EncodedVector list[vectors_per_launch];
    int count;
};
static_assert(sizeof(Vectors) < 3500, "kernel parameters are limited to 4 KiB");

Vectors some_of(const std::vector<EncodedVector>& vectors, size_t begin, size_t most) {
    Vectors some{};
    some.count = int(std::min(vectors.size() - begin, most));
    std::copy_n(vectors.begin() + int64_t(begin), some.count, some.list);
    return some;
}

__global__ void __launch_bounds__(threads_per_block)
    squares_kernel(const __grid_constant__ Vectors rows, int64_t n, double* sums) {
    const EncodedVector row = rows.list[blockIdx.y];
    double squares = 0;
    for_each_eight(n, [&](int64_t i) {
        float x[values_per_thread];
        load_values(row.format, row.payload, row.scales, i, n, x);
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k) squares += double(x[k]) * double(x[k]);
    });
    const double sum = reduce_block(squares, Sum());
    if (threadIdx.x == 0) sums[int64_t(blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// gram: a thread block has two groups of 32 vectors over 64 columns in shared memory; each of its 16 x 16 threads makes
// four inner products, in float32 over these columns and in double from there on.
// ---------------------------------------------------------------------------------------------------------------------

constexpr int columns = 64, stride = columns + 4;  // rows 16 bytes apart in the banks: no conflicts
static_assert(gram_group * columns == threads_per_block * values_per_thread,
              "each thread loads eight values of a group");

__device__ __forceinline__ void load_group(const EncodedVector* vectors, int count, int64_t column, int64_t n,
                                           float (&tile)[gram_group][stride]) {
    const int row = int(threadIdx.x) / (columns / values_per_thread);
    const int offset = int(threadIdx.x) % (columns / values_per_thread) * values_per_thread;
    float x[values_per_thread] = {};
    if (row < count && column + offset < n)
        load_values(vectors[row].format, vectors[row].payload, vectors[row].scales, column + offset, n, x);
#pragma unroll
    for (int k = 0; k < values_per_thread; ++k) tile[row][offset + k] = x[k];
}

__device__ __forceinline__ float dot4(float4 a, float4 b, float sum) {
    return math::fma(a.w, b.w, math::fma(a.z, b.z, math::fma(a.y, b.y, math::fma(a.x, b.x, sum))));
}

// parts[row, column, strip] of one pair of groups.
__global__ void __launch_bounds__(threads_per_block)
    gram_kernel(const __grid_constant__ Vectors pair, int rows, int64_t n, double* parts) {
    __shared__ __align__(16) float a[gram_group][stride], b[gram_group][stride];
    const int y = int(threadIdx.x) / 16, x = int(threadIdx.x) % 16;
    double sums[2][2] = {};
    for (int64_t column = int64_t(blockIdx.x) * columns; column < n; column += int64_t(gridDim.x) * columns) {
        __syncthreads();
        load_group(pair.list, rows, column, n, a);
        load_group(pair.list + gram_group, pair.count, column, n, b);
        __syncthreads();
        float products[2][2] = {};
#pragma unroll 4
        for (int k = 0; k < columns; k += 4) {
            const float4 a0 = *reinterpret_cast<const float4*>(&a[y][k]);
            const float4 a1 = *reinterpret_cast<const float4*>(&a[y + 16][k]);
            const float4 b0 = *reinterpret_cast<const float4*>(&b[x][k]);
            const float4 b1 = *reinterpret_cast<const float4*>(&b[x + 16][k]);
            products[0][0] = dot4(a0, b0, products[0][0]);
            products[0][1] = dot4(a0, b1, products[0][1]);
            products[1][0] = dot4(a1, b0, products[1][0]);
            products[1][1] = dot4(a1, b1, products[1][1]);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 2; ++j) sums[i][j] += double(products[i][j]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j)
            parts[int64_t((y + 16 * i) * gram_group + x + 16 * j) * gridDim.x + blockIdx.x] = sums[i][j];
}

// ---------------------------------------------------------------------------------------------------------------------
// combine: eight elements of the sums of up to four requests per thread
// ---------------------------------------------------------------------------------------------------------------------

template <int requests>
__global__ void __launch_bounds__(threads_per_block)
    combine_kernel(float* out, int64_t n, const __grid_constant__ Vectors vectors, const float* coefficients,
                   int64_t width) {
    for_each_eight(n, [&](int64_t i) {
        float sums[requests][values_per_thread];
#pragma unroll
        for (int r = 0; r < requests; ++r) load_floats(out + r * n, i, n, sums[r]);
        for (int v = 0; v < vectors.count; ++v) {
            float x[values_per_thread];
            load_values(vectors.list[v].format, vectors.list[v].payload, vectors.list[v].scales, i, n, x);
#pragma unroll
            for (int r = 0; r < requests; ++r) {
                const float c = coefficients[r * width + v];
#pragma unroll
                for (int k = 0; k < values_per_thread; ++k) sums[r][k] = math::fma(c, x[k], sums[r][k]);
            }
        }
#pragma unroll
        for (int r = 0; r < requests; ++r) store_floats(out + r * n, i, n, sums[r]);
    });
}

template <int requests>
void combine_some(float* out, int64_t n, const std::vector<EncodedVector>& vectors, const float* coefficients,
                  cudaStream_t stream) {
    for (size_t begin = 0; begin < vectors.size(); begin += vectors_per_launch)
        combine_kernel<requests><<<blocks_for(n), threads_per_block, 0, stream>>>(
            out, n, some_of(vectors, begin, vectors_per_launch), coefficients + begin, int64_t(vectors.size()));
}

}  // namespace

void row_squares(const std::vector<EncodedVector>& rows, int64_t n, double* squares, double* workspace,
                 cudaStream_t stream) {
    const unsigned blocks = std::min(blocks_for(n), unsigned(workspace_doubles / vectors_per_launch));
    for (size_t begin = 0; begin < rows.size(); begin += vectors_per_launch) {
        const Vectors some = some_of(rows, begin, vectors_per_launch);
        if (blocks > 0)
            squares_kernel<<<dim3(blocks, unsigned(some.count)), threads_per_block, 0, stream>>>(some, n, workspace);
        combine_parts<Sum><<<unsigned(some.count), threads_per_block, 0, stream>>>(workspace, blocks, squares + begin);
    }
    check(cudaGetLastError(), "launching scale_sample_grads");
}

void gram(const std::vector<EncodedVector>& vectors, int64_t n, double* groups, double* workspace,
          cudaStream_t stream) {
    const int64_t strips = std::min((n + columns - 1) / columns, gram_strips);
    for (size_t row = 0; row < vectors.size(); row += gram_group) {
        for (size_t column = 0; column <= row; column += gram_group) {
            Vectors pair = some_of(vectors, column, gram_group);
            std::copy_n(pair.list, pair.count, pair.list + gram_group);
            const Vectors rows = some_of(vectors, row, gram_group);
            std::copy_n(rows.list, rows.count, pair.list);
            if (strips > 0)
                gram_kernel<<<unsigned(strips), threads_per_block, 0, stream>>>(pair, rows.count, n, workspace);
            combine_parts<Sum><<<gram_group * gram_group, threads_per_block, 0, stream>>>(workspace, strips, groups);
            groups += gram_group * gram_group;
        }
    }
    check(cudaGetLastError(), "launching gram");
}

void combine(float* out, int64_t n, int64_t requests, const std::vector<EncodedVector>& vectors,
             const float* coefficients, cudaStream_t stream) {
    const int64_t width = int64_t(vectors.size());
    for (int64_t r = 0; r < requests && n > 0; r += 4) {
        float* some = out + r * n;
        const float* c = coefficients + r * width;
        switch (std::min(requests - r, int64_t(4))) {
            case 1:
                combine_some<1>(some, n, vectors, c, stream);
                break;
            case 2:
                combine_some<2>(some, n, vectors, c, stream);
                break;
            case 3:
                combine_some<3>(some, n, vectors, c, stream);
                break;
            default:
                combine_some<4>(some, n, vectors, c, stream);
        }
    }
    check(cudaGetLastError(), "launching combine");
}

}  // namespace lmcleaner::cuda
