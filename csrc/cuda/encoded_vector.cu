// encode, encode_difference, decode and dot on CUDA (lmcleaner_ext/ops/encoding.py has the format, math/encoding.h the
// rule of the block exponent). A warp takes one scale block, eight neighbouring elements per thread.

#include <cuda_fp8.h>

#include "cuda/device_tools.cuh"
#include "cuda/kernels.h"

namespace lmcleaner::cuda {
namespace {

constexpr int warp_size = 32;
constexpr int warps_per_block = threads_per_block / warp_size;
static_assert(warp_size * values_per_thread == block_size, "a warp takes one scale block");

// The bits of a payload other than fp32, rounded to nearest even; x is already scaled.
__device__ __forceinline__ unsigned code_of(Format format, float x) {
    switch (format) {
        case Format::fp16:
            return __half_as_ushort(__float2half_rn(x));
        case Format::int8:
            return unsigned(__float2int_rn(x)) & 0xffu;
        case Format::fp8:
            return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
        default: {
            const unsigned bits = __float_as_uint(x);
            return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
        }
    }
}

__device__ __forceinline__ void store_codes(Format format, void* payload, int64_t i, int64_t n,
                                            const unsigned (&code)[values_per_thread]) {
    const bool whole = i + values_per_thread <= n;
    if (bytes_of(format) == 2) {
        auto* p = static_cast<uint16_t*>(payload) + i;
        if (whole && aligned(p)) {
            *reinterpret_cast<uint4*>(p) = make_uint4(code[0] | code[1] << 16, code[2] | code[3] << 16,
                                                      code[4] | code[5] << 16, code[6] | code[7] << 16);
            return;
        }
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k)
            if (i + k < n) p[k] = uint16_t(code[k]);
    } else {
        auto* p = static_cast<uint8_t*>(payload) + i;
        if (whole && aligned(p, sizeof(uint2))) {
            *reinterpret_cast<uint2*>(p) = make_uint2(code[0] | code[1] << 8 | code[2] << 16 | code[3] << 24,
                                                      code[4] | code[5] << 8 | code[6] << 16 | code[7] << 24);
            return;
        }
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k)
            if (i + k < n) p[k] = uint8_t(code[k]);
    }
}

// The largest magnitude of a scale block as float32 bits, in every lane; NaN is above infinity.
__device__ __forceinline__ unsigned largest_of_warp(const float (&x)[values_per_thread]) {
    unsigned largest = 0;
#pragma unroll
    for (int k = 0; k < values_per_thread; ++k) largest = max(largest, __float_as_uint(x[k]) & 0x7fffffffu);
    return __reduce_max_sync(0xffffffffu, largest);
}

// difference: x - shadow is encoded, and what it decodes to is added to shadow.
template <bool difference>
__global__ void __launch_bounds__(threads_per_block)
    encode_kernel(const float* x, float* shadow, int64_t n, Format format, void* payload, uint8_t* scales,
                  int* overflowed) {
    const int lane = int(threadIdx.x) % warp_size;
    const int64_t first = int64_t(blockIdx.x) * warps_per_block + int(threadIdx.x) / warp_size;
    for (int64_t block = first; block * block_size < n; block += int64_t(gridDim.x) * warps_per_block) {
        const int64_t i = block * block_size + lane * values_per_thread;
        float value[values_per_thread], before[values_per_thread];
        load_floats(x, i, n, value);
        if constexpr (difference) {
            load_floats(shadow, i, n, before);
#pragma unroll
            for (int k = 0; k < values_per_thread; ++k) value[k] -= before[k];
        }
        const unsigned largest = largest_of_warp(value);
        if (lane == 0 && largest >= math::overflow_bits(format)) *overflowed = 1;
        uint8_t exponent = 127;
        if (math::is_scaled(format)) {
            exponent = math::block_exponent(format, largest);
            if (lane == 0) scales[block] = exponent;
        }
        if (format == Format::fp32) {
            store_floats(static_cast<float*>(payload), i, n, value);
        } else {
            const float up = power_of_two(254u - exponent), down = power_of_two(exponent);
            unsigned code[values_per_thread];
#pragma unroll
            for (int k = 0; k < values_per_thread; ++k) {
                code[k] = code_of(format, value[k] * up);
                value[k] = __fmul_rn(value_of_code(format, code[k]), down);
            }
            store_codes(format, payload, i, n, code);
        }
        if constexpr (difference) {
#pragma unroll
            for (int k = 0; k < values_per_thread; ++k) before[k] = __fadd_rn(before[k], value[k]);
            store_floats(shadow, i, n, before);
        }
    }
}

__global__ void __launch_bounds__(threads_per_block)
    decode_kernel(const void* payload, const uint8_t* scales, int64_t n, Format format, float* out) {
    for_each_eight(n, [&](int64_t i) {
        float x[values_per_thread];
        load_values(format, payload, scales, i, n, x);
        store_floats(out, i, n, x);
    });
}

__global__ void __launch_bounds__(threads_per_block)
    dot_kernel(const void* payload_a, const uint8_t* scales_a, Format format_a, const void* payload_b,
               const uint8_t* scales_b, Format format_b, int64_t n, double* sums) {
    double mine = 0;
    for_each_eight(n, [&](int64_t i) {
        float a[values_per_thread], b[values_per_thread];
        load_values(format_a, payload_a, scales_a, i, n, a);
        load_values(format_b, payload_b, scales_b, i, n, b);
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k) mine += double(a[k]) * double(b[k]);
    });
    const double sum = reduce_block(mine, Sum());
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

}  // namespace

void encode(const float* x, int64_t n, Format format, void* payload, uint8_t* scales, int* overflowed,
            cudaStream_t stream) {
    if (n == 0) return;
    encode_kernel<false>
        <<<blocks_for(n), threads_per_block, 0, stream>>>(x, nullptr, n, format, payload, scales, overflowed);
    check(cudaGetLastError(), "launching encode");
}

void encode_difference(const float* theta, float* shadow, int64_t n, Format format, void* payload, uint8_t* scales,
                       int* overflowed, cudaStream_t stream) {
    if (n == 0) return;
    encode_kernel<true>
        <<<blocks_for(n), threads_per_block, 0, stream>>>(theta, shadow, n, format, payload, scales, overflowed);
    check(cudaGetLastError(), "launching encode_difference");
}

void decode(const void* payload, const uint8_t* scales, int64_t n, Format format, float* out, cudaStream_t stream) {
    if (n == 0) return;
    decode_kernel<<<blocks_for(n), threads_per_block, 0, stream>>>(payload, scales, n, format, out);
    check(cudaGetLastError(), "launching decode");
}

void dot(const void* payload_a, const uint8_t* scales_a, Format format_a, const void* payload_b,
         const uint8_t* scales_b, Format format_b, int64_t n, double* product, double* workspace, cudaStream_t stream) {
    const unsigned blocks = blocks_for(n);
    if (blocks > 0)
        dot_kernel<<<blocks, threads_per_block, 0, stream>>>(payload_a, scales_a, format_a, payload_b, scales_b,
                                                             format_b, n, workspace);
    combine_parts<Sum><<<1, threads_per_block, 0, stream>>>(workspace, blocks, product);
    check(cudaGetLastError(), "launching dot");
}

}  // namespace lmcleaner::cuda
