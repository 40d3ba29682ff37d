// damped_propagate_window and the prefix form on CUDA: eight elements of v per thread stay in registers through the
// steps of a window. The formulas are in math/damped_propagation.h.

#include "math/damped_propagation.h"

#include <algorithm>

#include "cuda/device_tools.cuh"
#include "cuda/vector_kernels.h"

namespace lmcleaner::cuda {
namespace {

static_assert(workspace_doubles >= 2 * most_blocks);

// The table travels with the launch, so that nothing is allocated or copied; longer windows take several launches. The
// payloads of `entries_ahead` are asked for before the first is used.
constexpr int entries_per_launch = 64;
constexpr int entries_ahead = 4;

struct Entries {
    PropagationEntry list[entries_per_launch];
    int count;
};
static_assert(sizeof(Entries) < 3500, "kernel parameters are limited to 4 KiB");

__device__ __forceinline__ void take(const PropagationEntry& entry, const float (&x)[values_per_thread], int64_t left,
                                     float (&v)[values_per_thread], float& largest) {
#pragma unroll
    for (int k = 0; k < values_per_thread; ++k) {
        if (entry.injection) {
            v[k] = math::fnma(entry.lr, x[k], v[k]);
        } else {
            const float factor = math::propagation_factor(x[k], entry.keep, entry.lr);
            if (k < left) largest = math::greater(fabsf(factor), largest);
            v[k] *= factor;
        }
    }
}

__global__ void __launch_bounds__(threads_per_block)
    propagate_kernel(float* v, int64_t n, const __grid_constant__ Entries entries, Format step_format,
                     Format injection_format, bool first, double* sums, double* factors) {
    double squares = 0;
    float largest = 0;
    for_each_eight(n, [&](int64_t i) {
        float mine[values_per_thread];
        load_floats(v, i, n, mine);
        for (int begin = 0; begin < entries.count; begin += entries_ahead) {
            float x[entries_ahead][values_per_thread];
#pragma unroll
            for (int k = 0; k < entries_ahead; ++k) {
                const int at = begin + k;
                if (at >= entries.count) break;
                const PropagationEntry& entry = entries.list[at];
                load_values(entry.injection ? injection_format : step_format, entry.payload, entry.scales, i, n, x[k]);
            }
#pragma unroll
            for (int k = 0; k < entries_ahead; ++k)
                if (begin + k < entries.count) take(entries.list[begin + k], x[k], n - i, mine, largest);
        }
        store_floats(v, i, n, mine);
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k)
            if (i + k < n) squares += double(mine[k]) * double(mine[k]);
    });
    const double sum = reduce_block(squares, Sum());
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
    const double factor = reduce_block(double(largest), Maximum());
    if (threadIdx.x == 0) factors[blockIdx.x] = first ? factor : fmax(factor, factors[blockIdx.x]);
}

__global__ void __launch_bounds__(threads_per_block)
    prefix_kernel(float* prefix, int64_t n, const void* h, const uint8_t* scales, Format format, float lr, float shift,
                  double* counts) {
    double clamped = 0;
    for_each_eight(n, [&](int64_t i) {
        float sum[values_per_thread], x[values_per_thread];
        load_floats(prefix, i, n, sum);
        load_values(format, h, scales, i, n, x);
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k) {
            const float asked = math::decrement(x[k], lr, shift);
            if (i + k < n && asked > math::largest_decrement) clamped += 1;
            sum[k] = math::accumulate_prefix(sum[k], math::lesser(math::largest_decrement, asked));
        }
        store_floats(prefix, i, n, sum);
    });
    const double count = reduce_block(clamped, Sum());
    if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

constexpr int prefixes_per_launch = 16;

struct Prefixes {
    const float* list[prefixes_per_launch];
    float signs[prefixes_per_launch];
    int count;
};

__global__ void __launch_bounds__(threads_per_block)
    exponential_kernel(float* v, int64_t n, const __grid_constant__ Prefixes prefixes, double* sums) {
    double squares = 0;
    for_each_eight(n, [&](int64_t i) {
        float mine[values_per_thread], exponent[values_per_thread] = {};
        for (int j = 0; j < prefixes.count; ++j) {
            float x[values_per_thread];
            load_floats(prefixes.list[j], i, n, x);
#pragma unroll
            for (int k = 0; k < values_per_thread; ++k) exponent[k] = math::fma(prefixes.signs[j], x[k], exponent[k]);
        }
        load_floats(v, i, n, mine);
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k) {
            mine[k] *= math::exponential(exponent[k]);
            if (i + k < n) squares += double(mine[k]) * double(mine[k]);
        }
        store_floats(v, i, n, mine);
    });
    const double sum = reduce_block(squares, Sum());
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
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

void accumulate_prefix(float* prefix, int64_t n, const void* h, const uint8_t* scales, Format format, float lr,
                       float shift, double* clamped, double* workspace, cudaStream_t stream) {
    const unsigned blocks = blocks_for(n);
    if (blocks > 0)
        prefix_kernel<<<blocks, threads_per_block, 0, stream>>>(prefix, n, h, scales, format, lr, shift, workspace);
    combine_parts<Sum><<<1, threads_per_block, 0, stream>>>(workspace, blocks, clamped);
    check(cudaGetLastError(), "launching prefix_accumulate");
}

void propagate_by_prefix(float* v, int64_t n, const std::vector<const float*>& prefixes,
                         const std::vector<float>& signs, double* squares, double* workspace, cudaStream_t stream) {
    const unsigned blocks = blocks_for(n);
    for (size_t begin = 0; blocks > 0 && (begin == 0 || begin < prefixes.size()); begin += prefixes_per_launch) {
        Prefixes some{};
        some.count = int(std::min(prefixes.size() - begin, size_t(prefixes_per_launch)));
        std::copy_n(prefixes.begin() + int64_t(begin), some.count, some.list);
        std::copy_n(signs.begin() + int64_t(begin), some.count, some.signs);
        exponential_kernel<<<blocks, threads_per_block, 0, stream>>>(v, n, some, workspace);
        check(cudaGetLastError(), "launching prefix_propagate");
    }
    combine_parts<Sum><<<1, threads_per_block, 0, stream>>>(workspace, blocks, squares);
    check(cudaGetLastError(), "launching prefix_propagate");
}

}  // namespace lmcleaner::cuda
