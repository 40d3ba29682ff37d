// Arguments of the kernels beside the replay. A window of damped propagation becomes a list of what happens to v, one
// logged vector after the other, prepared once per call on the host.

#pragma once

#include <cstdint>
#include <vector>

#include "math/replay_plan.h"

namespace lmcleaner {

// One logged vector x and what it does:
//     a step         v <- (keep - lr x) v        x the diagonal of the curvature
//     an injection   v <- v - lr x               with the weight already in lr
struct PropagationEntry {
    const void* payload;    // null: zeros
    const uint8_t* scales;  // or null
    float keep, lr;
    bool injection;
};

struct PropagationArguments {
    float* v;
    int64_t n;
    EncodedVectors diagonals, injections;
    const double* coefficients;     // [steps, 2]: lr, damping
    const double* injection_table;  // [injections, 2]: step, weight; sorted by step
};

// The entries in the order in which they act: each step, then its injections.
inline std::vector<PropagationEntry> propagation_entries(const PropagationArguments& a) {
    std::vector<PropagationEntry> entries;
    const size_t steps = a.diagonals.payloads.size(), injections = a.injections.payloads.size();
    entries.reserve(steps + injections);
    size_t i = 0;
    for (size_t t = 0; t < steps; ++t) {
        const double lr = a.coefficients[2 * t], damping = a.coefficients[2 * t + 1];
        entries.push_back({a.diagonals.payloads[t], a.diagonals.scales[t], float(1 - lr * damping), float(lr), false});
        for (; i < injections && a.injection_table[2 * i] == double(t); ++i)
            if (a.injections.payloads[i] != nullptr)
                entries.push_back({a.injections.payloads[i], a.injections.scales[i], 1.0f,
                                   float(lr * a.injection_table[2 * i + 1]), true});
    }
    return entries;
}

// h <- beta h + weight a b on a diagonal in block-scaled fp16; b may be a. `by_chance`: rounded by the numbers of
// `seed`, as blocks `first_block` and following of a longer vector.
struct DiagonalUpdate {
    uint16_t* payload;
    uint8_t* scales;
    const float *a, *b;
    float beta, weight;
    uint64_t seed;
    bool by_chance;
    int64_t first_block = 0;
};

}  // namespace lmcleaner
