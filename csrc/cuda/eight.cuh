// Eight neighbouring elements of one thread as a value of the formulas in csrc/math: a branch on a coefficient is taken
// once for all of them, and eight independent chains of operations hide each other's latency.

#pragma once

#include "cuda/device_tools.cuh"
#include "math/value.h"

namespace lmcleaner::cuda {

struct Eight {
    float x[values_per_thread];

    Eight() = default;
    __device__ __forceinline__ explicit Eight(float value) {
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k) x[k] = value;
    }
    template <class Function>
    static __device__ __forceinline__ Eight each(const Function& function) {
        Eight out;
#pragma unroll
        for (int k = 0; k < values_per_thread; ++k) out.x[k] = function(k);
        return out;
    }
};

__device__ __forceinline__ Eight operator+(const Eight& a, const Eight& b) {
    return Eight::each([&](int k) { return a.x[k] + b.x[k]; });
}
__device__ __forceinline__ Eight operator-(const Eight& a, const Eight& b) {
    return Eight::each([&](int k) { return a.x[k] - b.x[k]; });
}
__device__ __forceinline__ Eight operator*(const Eight& a, const Eight& b) {
    return Eight::each([&](int k) { return a.x[k] * b.x[k]; });
}
__device__ __forceinline__ Eight operator/(const Eight& a, const Eight& b) {
    return Eight::each([&](int k) { return a.x[k] / b.x[k]; });
}
__device__ __forceinline__ Eight fma(const Eight& a, const Eight& b, const Eight& c) {
    return Eight::each([&](int k) { return math::fma(a.x[k], b.x[k], c.x[k]); });
}
__device__ __forceinline__ Eight fnma(const Eight& a, const Eight& b, const Eight& c) {
    return Eight::each([&](int k) { return math::fnma(a.x[k], b.x[k], c.x[k]); });
}
__device__ __forceinline__ Eight rounded_product(const Eight& a, const Eight& b) {
    return Eight::each([&](int k) { return math::rounded_product(a.x[k], b.x[k]); });
}
__device__ __forceinline__ Eight sign(const Eight& a) {
    return Eight::each([&](int k) { return math::sign(a.x[k]); });
}
__device__ __forceinline__ Eight scaled_root(const Eight& factor, const Eight& x, const Eight& offset) {
    return Eight::each([&](int k) { return math::scaled_root(factor.x[k], x.x[k], offset.x[k]); });
}
__device__ __forceinline__ Eight quick_scaled_root(const Eight& factor, const Eight& x, const Eight& offset) {
    return Eight::each([&](int k) { return math::quick_scaled_root(factor.x[k], x.x[k], offset.x[k]); });
}
__device__ __forceinline__ Eight quick_root_beside_division(const Eight& factor, const Eight& x, const Eight& offset) {
    return quick_scaled_root(factor, x, offset);
}
__device__ __forceinline__ Eight quick_quotient(const Eight& a, const Eight& b) {
    return Eight::each([&](int k) { return math::quick_quotient(a.x[k], b.x[k]); });
}

}  // namespace lmcleaner::cuda
