// What the loops of optimizer_replay_window need, prepared once per call on the host: the coefficient table in float32
// and the injections of each step. No loop converts a coefficient.

#pragma once

#include <cstdint>
#include <vector>

#include "math/quantize.h"
#include "math/replay_step.h"

namespace lmcleaner {

// Several encoded vectors of one format. A null payload stands for zeros, a null scale pointer for no scales.
struct EncodedVectors {
    std::vector<const void*> payloads;
    std::vector<const uint8_t*> scales;
    Format format = Format::fp32;
};

struct Segment {
    int64_t begin, end, parameter_class;
};

struct ReplayArguments {
    math::Rule rule;
    int64_t n;
    float* delta;
    float* theta;  // or null
    std::vector<float*> state, counterfactual;
    const double* coefficients;  // [classes, steps, COLUMNS]
    int64_t classes, steps;
    const Segment* segments;  // sorted, disjoint
    int64_t segment_count;
    EncodedVectors gradients, injections;
    const double* injection_table;  // [injections, 2]: step, weight; sorted by step
    const float* diagonal;          // or null
    int64_t lead;
};

struct ReplayPlan {
    explicit ReplayPlan(const ReplayArguments& arguments);

    // [classes, steps]; the one that the rule uses is filled
    std::vector<math::SgdStep> sgd;
    std::vector<math::AdamStep> adam;
    std::vector<math::AdamUnits> units;    // [classes], adam only
    std::vector<int32_t> injection_begin;  // [steps + 1]: injections of step t are [begin[t], begin[t + 1])
    std::vector<float> injection_weight;   // [injections]
};

}  // namespace lmcleaner
