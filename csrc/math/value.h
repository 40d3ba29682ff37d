// What a formula in csrc/math may do with a value. A formula is a template over the value type: `float` on the device,
// some registers of one instruction set in csrc/cpu/pack.h. Each type brings its arithmetic operators and
//
//     fma(a, b, c) = a b + c        fnma(a, b, c) = c - a b        scaled_root(f, x, o) = f sqrt(x) + o
//     rounded_product(a, b) = a b, never fused with what follows: a b - c d is then exactly 0 for equal products.
//     quick_scaled_root(f, x, o), quick_quotient(a, b): the same and a / b, where x under 2^-126 may count as zero and
//     b lies well inside the normal numbers; quick_root_beside_division: a quick_scaled_root that has a division of its
//     own. quick_doubled_root(x) = 2 sqrt(x), of packs only.
//     sign(x) = -1, 0 or 1.

#pragma once

#include <math.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define LMC_HD __host__ __device__ __forceinline__
#else
// always_inline: these headers are compiled once per instruction set, and an out-of-line copy that the linker keeps
// from one of them would crash the others.
#define LMC_HD inline __attribute__((always_inline))
#endif

namespace lmcleaner::math {

#if defined(__CUDACC__)
LMC_HD float fma(float a, float b, float c) {
    return ::fmaf(a, b, c);
}
LMC_HD float fnma(float a, float b, float c) {
    return ::fmaf(-a, b, c);
}
LMC_HD float scaled_root(float factor, float x, float offset) {
    return ::fmaf(factor, ::sqrtf(x), offset);
}
LMC_HD float quick_scaled_root(float factor, float x, float offset) {
#if defined(__CUDA_ARCH__)
    float root;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
    return ::fmaf(factor, root, offset);
#else
    return scaled_root(factor, x, offset);
#endif
}
LMC_HD float quick_root_beside_division(float factor, float x, float offset) {
    return quick_scaled_root(factor, x, offset);
}
LMC_HD float quick_quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
    return a * inverse;
#else
    return a / b;
#endif
}
LMC_HD float sign(float x) {
    return float((x > 0.0f) - (x < 0.0f));
}
LMC_HD float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}
#endif

}  // namespace lmcleaner::math
