// Many logged vectors at once on CUDA: their squares, their inner products (gram) and their linear combinations
// (combine). Lists of vectors travel with the launches, so that nothing is allocated or copied.

#include <algorithm>

#include "cuda/device_tools.cuh"
#include "cuda/incoming.cuh"
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
// gram: a warp makes the inner products of two groups of 32 vectors over scale blocks of 256 columns, 32 columns at a
// time, on the tensor cores: in float32 over 128 columns and in double from there on.
//
// The product is mma.m16n8k8 on tf32, whose 11 digits hold every logged format but float32; that one is taken in two
// parts, which hold 22. In the fragments of both factors a thread has columns (c, c + 4) of the rows lane / 4 + 8 q with
// c = lane % 4; which columns these are is free as long as both agree, so a thread takes its own eight neighbours.
// ---------------------------------------------------------------------------------------------------------------------

constexpr int warp_size = 32, row_blocks = gram_group / 8, columns_per_turn = 4 * values_per_thread;
constexpr int turns_per_block = block_size / columns_per_turn, turns_ahead = 2;

// same: the two groups are one, and only the products of row blocks (i, j) with j <= i | 1 are made. Otherwise the other
// group is taken in halves: all of it does not fit the registers.
template <bool same>
struct GramShape {
    static constexpr int threads = same ? 128 : 64, warps = threads / warp_size;
    static constexpr int other_blocks = same ? row_blocks : row_blocks / 2;
    static constexpr int lanes = same ? row_blocks : row_blocks + other_blocks;  // row blocks of both groups
    static constexpr int blocks_per_multiprocessor = 3;
};

// sums += A B, with A the row blocks `low` and `high` and B the row block `other`, each as (value, value of column + 4).
__device__ __forceinline__ void multiply(float (&sums)[4], const unsigned (&low)[2], const unsigned (&high)[2],
                                         const unsigned (&other)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(low[0]), "r"(high[0]), "r"(low[1]), "r"(high[1]), "r"(other[0]), "r"(other[1]));
}

// The 11 digits that tf32 has; the matrix units look at no others.
__device__ __forceinline__ unsigned leading(float x) {
    return __float_as_uint(x) & 0xffffe000u;
}
__device__ __forceinline__ unsigned rest(float x) {
    return __float_as_uint(x - __uint_as_float(leading(x)));
}

// products += the leading digits of 32 columns of all pairs of row blocks; or, with split, the leading digits of each
// times the rest of those that have one.
template <bool same>
__device__ __forceinline__ void multiply_all(float (&products)[row_blocks / 2][GramShape<same>::other_blocks][4],
                                             const float (&x)[GramShape<same>::lanes][values_per_thread],
                                             const bool (&present)[GramShape<same>::lanes], unsigned split) {
    constexpr int lanes = GramShape<same>::lanes, begin = same ? 0 : row_blocks;
#pragma unroll
    for (int k = 0; k < values_per_thread; k += 2) {
        unsigned first[lanes][2], second[lanes][2];
#pragma unroll
        for (int q = 0; q < lanes; ++q)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                first[q][j] = present[q] ? leading(x[q][k + j]) : 0;
                second[q][j] = present[q] && split >> q & 1 ? rest(x[q][k + j]) : 0;
            }
#pragma unroll
        for (int a = 0; a < row_blocks / 2; ++a) {
#pragma unroll
            for (int b = 0; b < GramShape<same>::other_blocks; ++b) {
                if ((same && b > 2 * a + 1) || !present[2 * a] || !present[begin + b]) continue;
                if (split == 0) {
                    multiply(products[a][b], first[2 * a], first[2 * a + 1], first[begin + b]);
                    continue;
                }
                if (split >> (2 * a) & 3) multiply(products[a][b], second[2 * a], second[2 * a + 1], first[begin + b]);
                if (split >> (begin + b) & 1) multiply(products[a][b], first[2 * a], first[2 * a + 1], second[begin + b]);
            }
        }
    }
}

// What a thread block has in shared memory: the vectors on their way, and the products so far of each thread.
template <bool same>
struct GramRoom {
    using Shape = GramShape<same>;
    Incoming<Shape::threads, turns_ahead, Shape::lanes> incoming;
    EncodedVector list[8 * Shape::lanes];
    double sums[row_blocks / 2 * Shape::other_blocks * 4][Shape::threads];
};

// parts[row, column, thread block] of one pair of groups. rows, others: how many vectors the groups have (of the other: from
// `other` on); split: bit q is set where row block q has a float32 vector.
template <bool same>
__global__ void __launch_bounds__(GramShape<same>::threads, GramShape<same>::blocks_per_multiprocessor)
    gram_kernel(const __grid_constant__ Vectors pair, int rows, int other, int others, unsigned split, int64_t n,
                double* parts) {
    using Shape = GramShape<same>;
    extern __shared__ __align__(16) char memory[];
    auto& room = *reinterpret_cast<GramRoom<same>*>(memory);
    auto& incoming = room.incoming;

    const int lane = int(threadIdx.x) % warp_size, warp = int(threadIdx.x) / warp_size;
    bool present[Shape::lanes];  // the same for all threads
#pragma unroll
    for (int q = 0; q < Shape::lanes; ++q) present[q] = q % row_blocks * 8 < (q < row_blocks ? rows : others);
    for (int k = int(threadIdx.x); k < 8 * Shape::lanes; k += Shape::threads) {
        const bool is_other = k >= gram_group;
        const int row = k % gram_group;
        room.list[k] = {nullptr, nullptr, Format::fp16};
        if (row < (is_other ? others : rows)) room.list[k] = pair.list[is_other ? k + other : k];
    }
    __syncthreads();
    const EncodedVector* mine = room.list + lane / 4;  // one of every eight
    constexpr int tall = row_blocks / 2;  // pairs of row blocks: the first factor of a product has 16 rows
    const auto for_each_sum = [&](const auto& body) {  // body(a, b, j, its place among the sums)
#pragma unroll
        for (int a = 0; a < tall; ++a)
#pragma unroll
            for (int b = 0; b < Shape::other_blocks; ++b)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (!same || b <= 2 * a + 1) body(a, b, j, room.sums[(a * Shape::other_blocks + b) * 4 + j][threadIdx.x]);
    };
    float products[tall][Shape::other_blocks][4] = {};
    for_each_sum([](int, int, int, double& sum) { sum = 0; });

    const int64_t stride = int64_t(gridDim.x) * Shape::warps * block_size;
    int64_t column = (int64_t(blockIdx.x) * Shape::warps + warp) * block_size, next_column = column;
    int next_turn = 0, asked = 0, used = 0;  // next_turn: of the scale block at next_column
    const auto ask = [&] {
        if (next_column < n) {
            const int64_t i = next_column + next_turn * columns_per_turn + lane % 4 * values_per_thread;
#pragma unroll
            for (int q = 0; q < Shape::lanes; ++q)
                if (present[q]) incoming.ask(asked, q, mine[8 * q].payload, Reach(mine[8 * q].format, i, 0, n));
            if (++asked == incoming.slots) asked = 0;
            if (++next_turn == turns_per_block) next_turn = 0, next_column += stride;
        }
        incoming.asked();
    };
    // Scale bytes of the block after the current one: loads into registers, waited for a block later.
    unsigned exponents[Shape::lanes], next_exponents[Shape::lanes];
    const auto read_exponents = [&](int64_t at) {
#pragma unroll
        for (int q = 0; q < Shape::lanes; ++q) {
            next_exponents[q] = 127;
            if (at < n && mine[8 * q].scales != nullptr) next_exponents[q] = mine[8 * q].scales[at / block_size];
        }
    };
    read_exponents(column);
    for (int turn = 0; turn < turns_ahead; ++turn) ask();

    for (; column < n; column += stride) {
#pragma unroll
        for (int q = 0; q < Shape::lanes; ++q) exponents[q] = next_exponents[q];
        read_exponents(column + stride);
#pragma unroll 1
        for (int turn = 0; turn < turns_per_block; ++turn) {
            incoming.wait();
            float x[Shape::lanes][values_per_thread];
#pragma unroll
            for (int q = 0; q < Shape::lanes; ++q) {
                if (!present[q]) continue;
                incoming.values(used, q, mine[8 * q].format, x[q]);
                const float scale = power_of_two(exponents[q]);
#pragma unroll
                for (int k = 0; k < values_per_thread; ++k) x[q][k] *= scale;
            }
            if (++used == incoming.slots) used = 0;
            ask();
            multiply_all<same>(products, x, present, 0);
            if (split != 0) multiply_all<same>(products, x, present, split);
            if (turn % 4 != 3) continue;
            for_each_sum([&](int a, int b, int j, double& sum) {
                sum += double(products[a][b][j]);
                products[a][b][j] = 0;
            });
        }
    }

    // The warps of the block, in order.
    __syncthreads();
    constexpr int columns = 8 * Shape::other_blocks;
    for (int k = int(threadIdx.x); k < gram_group * columns; k += Shape::threads) {
        const int row = k / columns, c = k % columns;
        const int j = row % 16 / 8 * 2 + c % 2, owner = row % 8 * 4 + c % 8 / 2;
        const double* of_threads = room.sums[(row / 16 * Shape::other_blocks + c / 8) * 4 + j];
        double sum = 0;
        if (!same || c / 8 <= row / 16 * 2 + 1)
            for (int w = 0; w < Shape::warps; ++w) sum += of_threads[w * warp_size + owner];
        parts[int64_t(row * gram_group + other + c) * gridDim.x + blockIdx.x] = sum;
    }
}

// All of one group with itself, or with half of another one; returns how many parts each entry has.
template <bool same>
int64_t gram_of(const Vectors& pair, int rows, int other, int others, int64_t n, double* parts, cudaStream_t stream) {
    using Shape = GramShape<same>;
    unsigned split = 0;
    for (int q = 0; q < Shape::lanes; ++q) {
        const int begin = q % row_blocks * 8, count = q < row_blocks ? rows : others;
        for (int row = begin; row < std::min(begin + 8, count); ++row)
            if (pair.list[row + q / row_blocks * (gram_group + other)].format == Format::fp32) split |= 1u << q;
    }
    const int64_t per_block = int64_t(block_size) * Shape::warps;
    const int64_t blocks = std::min((n + per_block - 1) / per_block, gram_strips);
    constexpr int room = sizeof(GramRoom<same>);
    check(cudaFuncSetAttribute(gram_kernel<same>, cudaFuncAttributeMaxDynamicSharedMemorySize, room),
          "shared memory of gram");
    if (blocks > 0)
        gram_kernel<same><<<unsigned(blocks), Shape::threads, room, stream>>>(pair, rows, other, others, split, n, parts);
    return blocks;
}

// ---------------------------------------------------------------------------------------------------------------------
// combine: eight elements of the sums of up to eight requests per thread
// ---------------------------------------------------------------------------------------------------------------------

constexpr int vectors_ahead = 3, requests_at_once = 8;

template <int requests>
__global__ void __launch_bounds__(threads_per_block)
    combine_kernel(float* out, int64_t n, const __grid_constant__ Vectors vectors, const float* coefficients,
                   int64_t width) {
    __shared__ Incoming<threads_per_block, vectors_ahead> incoming;
    __shared__ float factors[vectors_per_launch][requests];
    const int count = vectors.count, lane = int(threadIdx.x) % warp_size;
    for (int k = int(threadIdx.x); k < count * requests; k += threads_per_block)
        factors[k / requests][k % requests] = coefficients[k % requests * width + k / requests];
    __syncthreads();
    const int64_t stride = int64_t(gridDim.x) * values_per_block;
    const int64_t begin = (int64_t(blockIdx.x) * threads_per_block + threadIdx.x) * values_per_thread;
    int64_t next_i = begin;
    int next = 0, asked = 0;
    const auto ask = [&] {  // vector after vector, turn after turn of the grid
        if (next_i - lane * values_per_thread < n) {
            const EncodedVector& vector = vectors.list[next];
            incoming.ask(asked++ % incoming.slots, 0, vector.payload, Reach(vector.format, next_i, 0, n));
            if (++next == count) next = 0, next_i += stride;
        }
        incoming.asked();
    };
    for (int k = 0; k < vectors_ahead; ++k) ask();
    int turn = 0;
    for (int64_t i = begin; i - lane * values_per_thread < n; i += stride) {  // the same for all threads of a warp
        float sums[requests][values_per_thread];
#pragma unroll
        for (int r = 0; r < requests; ++r) load_floats(out + r * n, i, n, sums[r]);
        unsigned exponent = 127;  // of the vector in use: read one vector ahead
        const auto read_exponent = [&](int v) {
            const uint8_t* scales = v < count ? vectors.list[v].scales : nullptr;
            return scales == nullptr ? 127u : unsigned(scales[(i - lane * values_per_thread) / block_size]);
        };
        unsigned next_exponent = read_exponent(0);
        for (int v = 0; v < count; ++v, ++turn) {
            exponent = next_exponent;
            next_exponent = read_exponent(v + 1);
            float x[values_per_thread];
            incoming.wait();
            incoming.values(turn % incoming.slots, 0, vectors.list[v].format, x);
            ask();  // into the room of the vector before
            const float scale = power_of_two(exponent);
#pragma unroll
            for (int k = 0; k < values_per_thread; ++k) x[k] *= scale;
#pragma unroll
            for (int r = 0; r < requests; ++r) {
                const float c = factors[v][r];
#pragma unroll
                for (int k = 0; k < values_per_thread; ++k) sums[r][k] = math::fma(c, x[k], sums[r][k]);
            }
        }
#pragma unroll
        for (int r = 0; r < requests; ++r) store_floats(out + r * n, i, n, sums[r]);
    }
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
    for (size_t row = 0; row < vectors.size(); row += gram_group) {
        for (size_t column = 0; column <= row; column += gram_group) {
            Vectors pair = some_of(vectors, column, gram_group);
            const int others = pair.count;
            std::copy_n(pair.list, others, pair.list + gram_group);
            const Vectors rows = some_of(vectors, row, gram_group);
            std::copy_n(rows.list, rows.count, pair.list);
            constexpr int half = gram_group / 2;
            int64_t parts = 0;
            if (row == column) {
                parts = gram_of<true>(pair, rows.count, 0, others, n, workspace, stream);
            } else {
                parts = gram_of<false>(pair, rows.count, 0, std::min(others, half), n, workspace, stream);
                gram_of<false>(pair, rows.count, half, std::max(others - half, 0), n, workspace, stream);
            }
            combine_parts<Sum><<<gram_group * gram_group, threads_per_block, 0, stream>>>(workspace, parts, groups);
            groups += gram_group * gram_group;
        }
    }
    check(cudaGetLastError(), "launching gram");
}

void combine(float* out, int64_t n, int64_t requests, const std::vector<EncodedVector>& vectors,
             const float* coefficients, cudaStream_t stream) {
    const int64_t width = int64_t(vectors.size());
    for (int64_t r = 0; r < requests && n > 0;) {
        float* some = out + r * n;
        const float* c = coefficients + r * width;
        const int64_t left = requests - r;
        if (left >= requests_at_once)
            combine_some<requests_at_once>(some, n, vectors, c, stream), r += requests_at_once;
        else if (left >= 4)
            combine_some<4>(some, n, vectors, c, stream), r += 4;
        else if (left >= 2)
            combine_some<2>(some, n, vectors, c, stream), r += 2;
        else
            combine_some<1>(some, n, vectors, c, stream), r += 1;
    }
    check(cudaGetLastError(), "launching combine");
}

}  // namespace lmcleaner::cuda
