// What the kernels on encoded vectors share: eight neighbouring elements per thread in 128-bit accesses where they are
// aligned, and sums in an order that depends on the size alone.

#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "math/encoding.h"

namespace lmcleaner::cuda {

inline constexpr int threads_per_block = 256;
inline constexpr int values_per_thread = 8;
inline constexpr int values_per_block = threads_per_block * values_per_thread;
inline constexpr int most_blocks = 4096;  // a fixed number, not one of the device: the sums' order depends on it
static_assert(block_size % values_per_thread == 0, "a thread's values share one scale");

inline unsigned blocks_for(int64_t n) {
    const int64_t blocks = (n + values_per_block - 1) / values_per_block;
    return unsigned(blocks < most_blocks ? blocks : most_blocks);
}

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

__device__ __forceinline__ bool aligned(const void* p, unsigned bytes = 16) {
    return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

// The value of a payload's bits, for every format but fp32. The format is the same for all threads: a branch costs less
// here than five times as many kernels cost the build.
__device__ __forceinline__ float value_of_code(Format format, unsigned code) {
    switch (format) {
        case Format::fp16:
            return __half2float(__ushort_as_half(static_cast<unsigned short>(code)));
        case Format::int8:
            return float(static_cast<signed char>(code));
        case Format::fp8:
            return __half2float(__ushort_as_half(math::fp16_bits_of_fp8(static_cast<uint8_t>(code)))) * math::fp8_unit;
        default:
            return __uint_as_float(code << 16);
    }
}

__device__ __forceinline__ float value_of(Format format, const void* payload, int64_t i) {
    if (format == Format::fp32) return static_cast<const float*>(payload)[i];
    if (bytes_of(format) == 2) return value_of_code(format, static_cast<const uint16_t*>(payload)[i]);
    return value_of_code(format, static_cast<const uint8_t*>(payload)[i]);
}

// 2^(e - 127) of an E8M0 scale byte, e <= 254.
__device__ __forceinline__ float power_of_two(unsigned exponent) {
    return __uint_as_float(exponent == 0 ? 0x00400000u : exponent << 23);
}

__device__ __forceinline__ float scale_of(const uint8_t* scales, int64_t i) {
    return scales == nullptr ? 1.0f : power_of_two(scales[i / block_size]);
}

// Elements [i, i + 8), those outside [begin, end) as zero.
__device__ __forceinline__ void load_floats(const float* p, int64_t i, int64_t begin, int64_t end,
                                            float (&x)[values_per_thread]) {
    if (i >= begin && i + values_per_thread <= end && aligned(p + i)) {
        const float4 a = *reinterpret_cast<const float4*>(p + i), b = *reinterpret_cast<const float4*>(p + i + 4);
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
        return;
    }
#pragma unroll
    for (int k = 0; k < values_per_thread; ++k) x[k] = i + k >= begin && i + k < end ? p[i + k] : 0.0f;
}

__device__ __forceinline__ void load_floats(const float* p, int64_t i, int64_t n, float (&x)[values_per_thread]) {
    load_floats(p, i, 0, n, x);
}

// A warp takes 256 neighbouring elements, a multiple of 256 first.
__device__ __forceinline__ void store_floats(float* p, int64_t i, int64_t begin, int64_t end,
                                             const float (&x)[values_per_thread]) {
    const int64_t first = i / block_size * block_size;
    if (first >= begin && first + block_size <= end && aligned(p)) {
        // Neighbouring threads swap halves, so that each store of the warp fills whole sectors of 32 bytes.
        const bool odd = threadIdx.x % 2;
        float theirs[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) theirs[k] = __shfl_xor_sync(0xffffffffu, odd ? x[k] : x[4 + k], 1);
        float* at = p + (i - (odd ? 4 : 0));
        *reinterpret_cast<float4*>(at) =
            odd ? make_float4(theirs[0], theirs[1], theirs[2], theirs[3]) : make_float4(x[0], x[1], x[2], x[3]);
        *reinterpret_cast<float4*>(at + 8) =
            odd ? make_float4(x[4], x[5], x[6], x[7]) : make_float4(theirs[0], theirs[1], theirs[2], theirs[3]);
        return;
    }
#pragma unroll
    for (int k = 0; k < values_per_thread; ++k)
        if (i + k >= begin && i + k < end) p[i + k] = x[k];
}

__device__ __forceinline__ void store_floats(float* p, int64_t i, int64_t n, const float (&x)[values_per_thread]) {
    store_floats(p, i, 0, n, x);
}

// The same of an encoded vector; a null payload stands for zeros. i is a multiple of 8.
__device__ __forceinline__ void load_values(Format format, const void* payload, const uint8_t* scales, int64_t i,
                                            int64_t n, float (&x)[values_per_thread]) {
    if (payload == nullptr) {
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k) x[k] = 0.0f;
        return;
    }
    if (format == Format::fp32) {
        load_floats(static_cast<const float*>(payload), i, n, x);
    } else if (const auto* p = static_cast<const uint16_t*>(payload) + i;
               bytes_of(format) == 2 && i + values_per_thread <= n && aligned(p)) {
        const uint4 raw = *reinterpret_cast<const uint4*>(p);
        const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k)
            x[k] = value_of_code(format, words[k / 2] >> 16 * (k % 2) & 0xffffu);
    } else if (const auto* q = static_cast<const uint8_t*>(payload) + i;
               bytes_of(format) == 1 && i + values_per_thread <= n && aligned(q, sizeof(uint2))) {
        const uint2 raw = *reinterpret_cast<const uint2*>(q);
        const unsigned words[2] = {raw.x, raw.y};
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k) x[k] = value_of_code(format, words[k / 4] >> 8 * (k % 4) & 0xffu);
    } else {
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k) x[k] = i + k < n ? value_of(format, payload, i + k) : 0.0f;
    }
    if (i >= n) return;
    const float scale = scale_of(scales, i);
#pragma unroll
    for (int k = 0; k < values_per_thread; ++k) x[k] *= scale;
}

// Over the threads of a block, in a fixed order; the result is thread 0's.
template <class Combine>
__device__ double reduce_block(double value, Combine combine) {
    __shared__ double parts[threads_per_block];
    __syncthreads();  // the caller may have just read the result of the call before
    parts[threadIdx.x] = value;
    for (int half = threads_per_block / 2; half > 0; half /= 2) {
        __syncthreads();
        if (int(threadIdx.x) < half) parts[threadIdx.x] = value = combine(value, parts[threadIdx.x + half]);
    }
    return value;
}

struct Sum {
    __device__ double operator()(double a, double b) const { return a + b; }
};
struct Maximum {
    __device__ double operator()(double a, double b) const { return a > b ? a : b; }
};

// out[row] = all parts[row, :] combined; one block per row.
template <class Combine>
__global__ void __launch_bounds__(threads_per_block) combine_parts(const double* parts, int64_t count, double* out) {
    double mine = 0;
    const double* row = parts + int64_t(blockIdx.x) * count;
#pragma unroll 8  // the loads go ahead of the sum
    for (int64_t k = threadIdx.x; k < count; k += threads_per_block) mine = Combine()(mine, row[k]);
    const double all = reduce_block(mine, Combine());
    if (threadIdx.x == 0) out[blockIdx.x] = all;
}

// body(i) for the first of each eight elements that this thread takes, in a grid-stride loop.
template <class Body>
__device__ __forceinline__ void for_each_eight(int64_t n, const Body& body) {
    const int64_t stride = int64_t(gridDim.x) * values_per_block;
    for (int64_t i = (int64_t(blockIdx.x) * threads_per_block + threadIdx.x) * values_per_thread; i < n; i += stride)
        body(i);
}

}  // namespace lmcleaner::cuda
