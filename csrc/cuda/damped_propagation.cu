// damped_propagate_window on CUDA: eight elements of v per thread stay in registers through the
// steps of a window, a warp takes one scale block. The formulas are in math/damped_propagation.h.

#include "math/damped_propagation.h"

#include <algorithm>

#include "cuda/device_tools.cuh"
#include "cuda/incoming.cuh"
#include "cuda/kernels.h"

namespace lmcleaner::cuda {
namespace {

static_assert(workspace_doubles >= 2 * most_blocks);

// The table travels with the launch, so that nothing is allocated or copied; longer windows take several launches.
constexpr int warp_size = 32;
constexpr int entries_per_launch = 2 * warp_size;
constexpr int entries_ahead = 3;

struct Entries {
    PropagationEntry list[entries_per_launch];
    int count;
};
static_assert(sizeof(Entries) < 3500, "kernel parameters are limited to 4 KiB");

__device__ __forceinline__ void take(const PropagationEntry& entry, const float (&x)[values_per_thread], float scale,
                                     int64_t left, float (&v)[values_per_thread], float& largest) {
    if (entry.injection) {
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k) v[k] = math::fnma(entry.lr, x[k] * scale, v[k]);
        return;
    }
    float factors[values_per_thread];
#pragma unroll
    for (int k = 0; k < values_per_thread; ++k) {
        factors[k] = math::propagation_factor(x[k] * scale, entry.keep, entry.lr);
        v[k] *= factors[k];
    }
    if (left >= values_per_thread) {
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k) largest = math::larger_magnitude(factors[k], largest);
    } else {
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k)
            if (k < left) largest = math::larger_magnitude(factors[k], largest);
    }
}

__global__ void __launch_bounds__(threads_per_block)
    propagate_kernel(float* v, int64_t n, const __grid_constant__ Entries entries, Format step_format,
                     Format injection_format, bool first, double* sums, double* factors) {
    __shared__ Incoming<threads_per_block, entries_ahead> incoming;
    __shared__ PropagationEntry list[entries_per_launch];
    if (threadIdx.x < entries_per_launch) list[threadIdx.x] = entries.list[threadIdx.x];
    __syncthreads();
    const int64_t stride = int64_t(gridDim.x) * values_per_block;
    const int64_t begin = (int64_t(blockIdx.x) * threads_per_block + threadIdx.x) * values_per_thread;
    const int count = entries.count, lane = int(threadIdx.x) % warp_size;
    const auto format_of = [&](int k) { return list[k].injection ? injection_format : step_format; };

    // What is asked for next: entry `next` of elements [next_i, next_i + 8). It runs ahead of the loop below, also from
    // one turn of the grid to the next.
    int64_t next_i = begin;
    int next = 0, asked = 0;
    const auto ask = [&] {
        if (next_i - lane * values_per_thread < n && count > 0) {
            const Reach reach(format_of(next), next_i, 0, n);
            incoming.ask(asked++ % incoming.slots, 0, list[next].payload, reach);
            if (++next == count) next = 0, next_i += stride;
        }
        incoming.asked();
    };
    for (int k = 0; k < entries_ahead; ++k) ask();

    double squares = 0;
    float largest = 0;
    int turn = 0;
    for (int64_t i = begin; i - lane * values_per_thread < n; i += stride) {  // the same for all threads of a warp
        float mine[values_per_thread];
        load_floats(v, i, n, mine);
        float scales[2];  // each lane reads those of two entries
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int k = lane + half * warp_size;
            scales[half] = k < count ? scale_of(list[k].scales, i - lane * values_per_thread) : 1.0f;
        }
        for (int k = 0; k < count; ++k, ++turn) {
            const float scale = __shfl_sync(0xffffffffu, k < warp_size ? scales[0] : scales[1], k % warp_size);
            float x[values_per_thread];
            incoming.wait();
            incoming.values(turn % incoming.slots, 0, format_of(k), x);
            ask();  // into the room of the entry before
            take(list[k], x, scale, n - i, mine, largest);
        }
        store_floats(v, i, n, mine);
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k)
            if (i + k < n) squares += double(mine[k]) * double(mine[k]);
    }
    const double sum = reduce_block(squares, Sum());
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
    const double factor = reduce_block(double(largest), Maximum());
    if (threadIdx.x == 0) factors[blockIdx.x] = first ? factor : fmax(factor, factors[blockIdx.x]);
}

}  // namespace

void propagate(const PropagationArguments& a, double* results, double* workspace, cudaStream_t stream) {
    const std::vector<PropagationEntry> list = propagation_entries(a);
    const unsigned blocks = blocks_for(a.n);
    double* factors = workspace + most_blocks;
    // At least one launch, so that the sums exist for an empty window too.
    for (size_t begin = 0; blocks > 0 && (begin == 0 || begin < list.size()); begin += entries_per_launch) {
        Entries entries{};
        entries.count = int(std::min(list.size() - begin, size_t(entries_per_launch)));
        std::copy_n(list.begin() + int64_t(begin), entries.count, entries.list);
        propagate_kernel<<<blocks, threads_per_block, 0, stream>>>(a.v, a.n, entries, a.diagonals.format,
                                                                   a.injections.format, begin == 0, workspace, factors);
        check(cudaGetLastError(), "launching damped_propagate_window");
    }
    combine_parts<Sum><<<1, threads_per_block, 0, stream>>>(workspace, blocks, results);
    combine_parts<Maximum><<<1, threads_per_block, 0, stream>>>(factors, blocks, results + 1);
    check(cudaGetLastError(), "launching damped_propagate_window");
}

}  // namespace lmcleaner::cuda
