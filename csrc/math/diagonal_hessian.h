// The running average of the curvature's diagonal, and its rounding to eleven bits by chance. The specification is
// lmcleaner_ext/ops/reference/diagonal_hessian.py.

#pragma once

#include "math/value.h"

namespace lmcleaner::math {

// h <- beta h + weight a b: a = b = g for the squared gradient, a = z and b = H z for Hutchinson's estimate.
template <class Value>
LMC_HD Value running_average(Value h, Value a, Value b, float beta, float weight) {
    return fma(Value(beta), h, Value(weight) * (a * b));
}

// A number for each (seed, block): the splitmix64 generator of Steele, Lea and Flood, its upper half.
LMC_HD uint32_t block_key(uint64_t seed, uint64_t block) {
    uint64_t x = seed * 0x9e3779b97f4a7c15ull + block;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return uint32_t((x ^ (x >> 31)) >> 32);
}

// The random number of element `index` of a block begins as key + index * chance_stride.
inline constexpr uint32_t chance_stride = 0x9e3779b1u;

// The bits of a float whose lower 13 are rounded away, upwards with the probability of what they hold. C. Wellons'
// "lowbias32" makes the random number from x. Bits: uint32_t, or a register of them.
template <class Bits>
LMC_HD Bits round_by_chance(Bits bits, Bits x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    x ^= x >> 16;
    return (bits + (x & 0x1fffu)) & ~0x1fffu;
}

}  // namespace lmcleaner::math
