// Propagation of a deviation through SGD with a diagonal curvature h:  v <- (1 - lr (h + damping)) v - lr injected.
// The specification is lmcleaner_ext/ops/vector_reference.py. Beside the operations of math/value.h a value brings
//
//     lesser(a, b)    larger_magnitude(a, b): of |a| and b >= 0; both b where a is NaN
//     logarithm(x) of positive normal numbers, exponential(x)

#pragma once

#include "math/value.h"

namespace lmcleaner::math {

#if defined(__CUDACC__)
LMC_HD float lesser(float a, float b) {
    return a < b ? a : b;
}
LMC_HD float larger_magnitude(float a, float b) {
    return ::fabsf(a) > b ? ::fabsf(a) : b;
}
LMC_HD float logarithm(float x) {
    return ::logf(x);
}
LMC_HD float exponential(float x) {
    return ::expf(x);
}
#endif

// 1 - lr (h + damping), with keep = 1 - lr damping.
template <class Value>
LMC_HD Value propagation_factor(Value h, float keep, float lr) {
    return fnma(Value(lr), h, Value(keep));
}

// ---------------------------------------------------------------------------------------------------------------------
// Prefix products: C[t] = sum over s < t of log(1 - lr (h + damping)), so that any number of steps is one exponential.
// ---------------------------------------------------------------------------------------------------------------------

// lr (h + damping) may come no nearer to one: under 2^-24 a factor in float32 is the rounding of its own subtraction.
inline constexpr float largest_decrement = 1 - 0x1p-24f;

// lr (h + damping), with shift = lr damping.
template <class Value>
LMC_HD Value decrement(Value h, float lr, float shift) {
    return fma(Value(lr), h, Value(shift));
}

// C + log(1 - x) for x <= largest_decrement. The subtraction's rounding comes back as the residual: where x is small,
// log(1 - x) alone would keep few of its digits.
template <class Value>
LMC_HD Value accumulate_prefix(Value prefix, Value x) {
    const Value factor = Value(1.0f) - x;
    const Value residual = (Value(1.0f) - factor) - x;
    return prefix + (logarithm(factor) + residual / factor);
}

}  // namespace lmcleaner::math
