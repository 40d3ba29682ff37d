// Propagation of a deviation through SGD with a diagonal curvature h:  v <- (1 - lr (h + damping)) v - lr injected.
// The specification is lmcleaner_ext/ops/reference/damped_propagation.py. Beside the operations of math/value.h a value
// brings
//
//     larger_magnitude(a, b): of |a| and b >= 0; b where a is NaN

#pragma once

#include "math/value.h"

namespace lmcleaner::math {

#if defined(__CUDACC__)
LMC_HD float larger_magnitude(float a, float b) {
    return ::fabsf(a) > b ? ::fabsf(a) : b;
}
#endif

// 1 - lr (h + damping), with keep = 1 - lr damping.
template <class Value>
LMC_HD Value propagation_factor(Value h, float keep, float lr) {
    return fnma(Value(lr), h, Value(keep));
}

}  // namespace lmcleaner::math
