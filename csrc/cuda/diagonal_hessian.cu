// diag_hessian_update on CUDA: one warp takes one scale block, eight elements per thread. The formulas are in
// math/diagonal_hessian.h and math/encoding.h.

#include "math/diagonal_hessian.h"

#include "cuda/device_tools.cuh"
#include "cuda/kernels.h"
#include "math/encoding.h"

namespace lmcleaner::cuda {
namespace {

static_assert(block_size == 32 * values_per_thread, "a warp is a scale block");

__device__ __forceinline__ void store_halves(uint16_t* p, int64_t i, int64_t n, const float (&x)[values_per_thread]) {
    unsigned short halves[values_per_thread];
#pragma unroll
    for (int k = 0; k < values_per_thread; ++k) halves[k] = __half_as_ushort(__float2half_rn(x[k]));
    if (i + values_per_thread <= n && aligned(p + i)) {
        *reinterpret_cast<uint4*>(p + i) =
            make_uint4(halves[0] | unsigned(halves[1]) << 16, halves[2] | unsigned(halves[3]) << 16,
                       halves[4] | unsigned(halves[5]) << 16, halves[6] | unsigned(halves[7]) << 16);
        return;
    }
#pragma unroll
    for (int k = 0; k < values_per_thread; ++k)
        if (i + k < n) p[i + k] = halves[k];
}

__global__ void __launch_bounds__(threads_per_block) update_kernel(DiagonalUpdate u, int64_t n, double* failures) {
    double failed = 0;
    const int lane = int(threadIdx.x % 32);
    const int64_t warps = int64_t(gridDim.x) * (threads_per_block / 32), blocks = (n + block_size - 1) / block_size;
    for (int64_t block = (int64_t(blockIdx.x) * threads_per_block + threadIdx.x) / 32; block < blocks; block += warps) {
        const int64_t i = block * block_size + lane * values_per_thread;
        float h[values_per_thread], a[values_per_thread], b[values_per_thread];
        load_values(Format::fp16, u.payload, u.scales, i, n, h);
        load_floats(u.a, i, n, a);
        if (u.b != u.a) load_floats(u.b, i, n, b);
        uint32_t largest = 0;
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k) {
            h[k] = math::running_average(h[k], a[k], u.b == u.a ? a[k] : b[k], u.beta, u.weight);
            largest = max(largest, __float_as_uint(h[k]) & 0x7fffffffu);
        }
        largest = __reduce_max_sync(0xffffffffu, largest);  // every lane has read the old scale by now
        if (lane == 0 && largest >= math::overflow_bits(Format::fp16)) failed += 1;
        const uint8_t exponent = math::block_exponent(Format::fp16, largest);
        const unsigned inverse = 254u - exponent;
        const float factor = __uint_as_float(inverse == 0 ? 0x00400000u : inverse << 23);
        const uint32_t key = math::block_key(u.seed, uint64_t(u.first_block + block));
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k) {
            h[k] *= factor;
            if (u.by_chance)
                h[k] = __uint_as_float(math::round_by_chance(
                    __float_as_uint(h[k]), key + uint32_t(lane * values_per_thread + k) * math::chance_stride));
        }
        store_halves(u.payload, i, n, h);
        if (lane == 0) u.scales[block] = exponent;
    }
    const double all = reduce_block(failed, Sum());
    if (threadIdx.x == 0) failures[blockIdx.x] = all;
}

}  // namespace

void update_diagonal(const DiagonalUpdate& update, int64_t n, double* failures, double* workspace,
                     cudaStream_t stream) {
    const unsigned blocks = blocks_for(n);
    if (blocks > 0) update_kernel<<<blocks, threads_per_block, 0, stream>>>(update, n, workspace);
    combine_parts<Sum><<<1, threads_per_block, 0, stream>>>(workspace, blocks, failures);
    check(cudaGetLastError(), "launching diag_hessian_update");
}

}  // namespace lmcleaner::cuda
