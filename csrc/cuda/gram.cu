// Many logged vectors at once on CUDA: their squares, their inner products (gram) and their linear combinations
// (combine). Lists of vectors travel with the launches, so that nothing is allocated or copied.

#include <algorithm>

#include "cuda/device_tools.cuh"
#include "cuda/incoming.cuh"
#include "cuda/kernels.h"
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
// parts, which hold 22. In the fragments of both factors a thread has columns (c, c + 4) of the rows lane / 4 + 8 q
// with c = lane % 4; which columns these are is free as long as both agree, so a thread takes its own eight neighbours.
// ---------------------------------------------------------------------------------------------------------------------

constexpr int warp_size = 32, row_blocks = gram_group / 8, columns_per_turn = 4 * values_per_thread;
constexpr int turns_per_block = block_size / columns_per_turn, turns_ahead = 2;

// The row blocks of the first group, and those of the other one, or 0: the group with itself, of which only the
// products of row blocks (i, j) with j <= i | 1 are made.
template <int rows, int others>
struct GramShape {
    static constexpr bool same = others == 0;
    static constexpr int threads = same ? 128 : 64, warps = threads / warp_size;
    static constexpr int lanes = rows + others, tall = (rows + 1) / 2, wide = same ? rows : others;
    static constexpr int first_other = same ? 0 : rows;
    static constexpr int blocks_per_multiprocessor = 3;

    // Whether there is a product of row blocks 2 a and 2 a + 1 with row block b.
    static constexpr __host__ __device__ bool has(int a, int b) { return !same || b <= 2 * a + 1; }
};

// sums += A B, with A the row blocks `low` and `high` and B the row block `other`, each as (value, value of column +
// 4).
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

// products += the leading digits of 32 columns of all pairs of row blocks, and the leading digits of each times the
// rest of those row blocks that have one: bit q of `split`.
template <class Shape>
__device__ __forceinline__ void multiply_all(float (&products)[Shape::tall][Shape::wide][4],
                                             const float (&x)[Shape::lanes][values_per_thread], unsigned split) {
    const unsigned nothing[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < values_per_thread; k += 2) {
        unsigned first[Shape::lanes + 1][2] = {};  // the last one: zeros beside an odd row block
#pragma unroll
        for (int q = 0; q < Shape::lanes; ++q)
#pragma unroll
            for (int j = 0; j < 2; ++j) first[q][j] = leading(x[q][k + j]);
#pragma unroll
        for (int a = 0; a < Shape::tall; ++a)
#pragma unroll
            for (int b = 0; b < Shape::wide; ++b)
                if (Shape::has(a, b))
                    multiply(products[a][b], first[2 * a], first[2 * a + 1], first[Shape::first_other + b]);
        if (split == 0) continue;
#pragma unroll
        for (int q = 0; q < Shape::lanes; ++q) {
            if (!(split >> q & 1)) continue;
            const unsigned second[2] = {rest(x[q][k]), rest(x[q][k + 1])};
#pragma unroll
            for (int a = 0; a < Shape::tall; ++a)
#pragma unroll
                for (int b = 0; b < Shape::wide; ++b) {
                    if (!Shape::has(a, b)) continue;
                    if (q / 2 == a && (Shape::same || q < Shape::first_other))
                        multiply(products[a][b], q % 2 ? nothing : second, q % 2 ? second : nothing,
                                 first[Shape::first_other + b]);
                    if (q == Shape::first_other + b) multiply(products[a][b], first[2 * a], first[2 * a + 1], second);
                }
        }
    }
}

// What a thread block has in shared memory: the vectors on their way, and the products so far of each thread.
template <class Shape>
struct GramRoom {
    Incoming<Shape::threads, turns_ahead, Shape::lanes> incoming;
    EncodedVector list[8 * Shape::lanes];
    double sums[Shape::tall][Shape::wide][4][Shape::threads];
};

// parts[row, column, thread block] of one pair of groups, with the columns from `column_offset` on. split: bit q is set
// where row block q has a float32 vector. A row block is filled up with vectors of its own, whose products nobody
// reads.
template <class Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks_per_multiprocessor)
    gram_kernel(const __grid_constant__ Vectors vectors, unsigned split, int column_offset, int64_t n, double* parts) {
    extern __shared__ __align__(16) char memory[];
    auto& room = *reinterpret_cast<GramRoom<Shape>*>(memory);
    auto& incoming = room.incoming;

    const int lane = int(threadIdx.x) % warp_size, warp = int(threadIdx.x) / warp_size;
    for (int k = int(threadIdx.x); k < 8 * Shape::lanes; k += Shape::threads) room.list[k] = vectors.list[k];
    __syncthreads();
    const EncodedVector* mine = room.list + lane / 4;  // one of every eight
    const auto for_each_sum = [&](const auto& body) {  // body(a, b, j, its sum)
#pragma unroll
        for (int a = 0; a < Shape::tall; ++a)
#pragma unroll
            for (int b = 0; b < Shape::wide; ++b)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (Shape::has(a, b)) body(a, b, j, room.sums[a][b][j][threadIdx.x]);
    };
    float products[Shape::tall][Shape::wide][4] = {};
    for_each_sum([](int, int, int, double& sum) { sum = 0; });

    const int64_t stride = int64_t(gridDim.x) * Shape::warps * block_size;
    int64_t column = (int64_t(blockIdx.x) * Shape::warps + warp) * block_size, next_column = column;
    int next_turn = 0, asked = 0, used = 0;  // next_turn: of the scale block at next_column
    const auto ask = [&] {
        if (next_column < n) {
            const int64_t i = next_column + next_turn * columns_per_turn + lane % 4 * values_per_thread;
#pragma unroll
            for (int q = 0; q < Shape::lanes; ++q)
                incoming.ask(asked, q, mine[8 * q].payload, Reach(mine[8 * q].format, i, 0, n));
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
                incoming.values(used, q, mine[8 * q].format, x[q]);
                const float scale = power_of_two(exponents[q]);
#pragma unroll
                for (int k = 0; k < values_per_thread; ++k) x[q][k] *= scale;
            }
            if (++used == incoming.slots) used = 0;
            ask();
            multiply_all<Shape>(products, x, split);
            if (turn % 4 != 3) continue;
            for_each_sum([&](int a, int b, int j, double& sum) {
                sum += double(products[a][b][j]);
                products[a][b][j] = 0;
            });
        }
    }

    // The warps of the block, in order.
    __syncthreads();
    constexpr int columns = 8 * Shape::wide;
    for (int k = int(threadIdx.x); k < 8 * (Shape::same ? Shape::lanes : Shape::first_other) * columns;
         k += Shape::threads) {
        const int row = k / columns, c = k % columns;
        const int j = row % 16 / 8 * 2 + c % 2, owner = row % 8 * 4 + c % 8 / 2;
        double sum = 0;
        if (Shape::has(row / 16, c / 8))
            for (int w = 0; w < Shape::warps; ++w) sum += room.sums[row / 16][c / 8][j][w * warp_size + owner];
        parts[int64_t(row * gram_group + column_offset + c) * gridDim.x + blockIdx.x] = sum;
    }
}

// `rows` row blocks of one group with themselves, or with `others` of another one; returns how many parts each entry
// has.
template <int rows, int others>
int64_t gram_of(const EncodedVector* first, size_t first_count, const EncodedVector* other, size_t other_count,
                int column_offset, int64_t n, double* parts, cudaStream_t stream) {
    using Shape = GramShape<rows, others>;
    Vectors vectors{};
    unsigned split = 0;
    for (int k = 0; k < 8 * Shape::lanes; ++k) {
        const bool is_first = k < 8 * rows;
        const size_t count = is_first ? first_count : other_count, at = size_t(is_first ? k : k - 8 * rows);
        vectors.list[k] = (is_first ? first : other)[at < count ? at : std::min(at / 8 * 8, count - 1)];
        if (vectors.list[k].format == Format::fp32) split |= 1u << k / 8;
    }
    const int64_t per_block = int64_t(block_size) * Shape::warps;
    const int64_t blocks = std::min((n + per_block - 1) / per_block, gram_strips);
    constexpr int room = sizeof(GramRoom<Shape>);
    check(cudaFuncSetAttribute(gram_kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, room),
          "shared memory of gram");
    if (blocks > 0)
        gram_kernel<Shape><<<unsigned(blocks), Shape::threads, room, stream>>>(vectors, split, column_offset, n, parts);
    return blocks;
}

int64_t gram_of_group(const EncodedVector* group, size_t count, int64_t n, double* parts, cudaStream_t stream) {
    switch ((count + 7) / 8) {
        case 1:
            return gram_of<1, 0>(group, count, nullptr, 0, 0, n, parts, stream);
        case 2:
            return gram_of<2, 0>(group, count, nullptr, 0, 0, n, parts, stream);
        case 3:
            return gram_of<3, 0>(group, count, nullptr, 0, 0, n, parts, stream);
        default:
            return gram_of<4, 0>(group, count, nullptr, 0, 0, n, parts, stream);
    }
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
        const auto read_exponent = [&](int v) {
            const uint8_t* scales = v < count ? vectors.list[v].scales : nullptr;
            return scales == nullptr ? 127u : unsigned(scales[(i - lane * values_per_thread) / block_size]);
        };
        unsigned next_exponent = read_exponent(0);  // read one vector ahead
        for (int v = 0; v < count; ++v, ++turn) {
            const unsigned exponent = next_exponent;
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
    constexpr size_t half = gram_group / 2;  // of another group at a time: with all of it the registers would not do
    const auto count = [&](size_t begin, size_t most) { return std::min(vectors.size() - begin, most); };
    for (size_t row = 0; row < vectors.size(); row += gram_group) {
        const EncodedVector* rows = vectors.data() + row;
        for (size_t column = 0; column < row; column += gram_group) {
            int64_t parts = 0;
            for (size_t at = 0; at < gram_group; at += half)
                parts = gram_of<row_blocks, row_blocks / 2>(rows, count(row, gram_group), vectors.data() + column + at,
                                                            half, int(at), n, workspace, stream);
            combine_parts<Sum><<<gram_group * gram_group, threads_per_block, 0, stream>>>(workspace, parts, groups);
            groups += gram_group * gram_group;
        }
        const int64_t parts = gram_of_group(rows, count(row, gram_group), n, workspace, stream);
        combine_parts<Sum><<<gram_group * gram_group, threads_per_block, 0, stream>>>(workspace, parts, groups);
        groups += gram_group * gram_group;
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
