// What the loops of optimizer_replay_window need, prepared once per call on the host: the coefficient table in float32
// and the injections of each step. No loop converts a coefficient.

#pragma once

#include <cstdint>
#include <vector>

#include "chunk_check.h"
#include "math/quantize.h"
#include "math/replay_step.h"

namespace lmcleaner {

struct EncodedVector {
    const void* payload;
    const uint8_t* scales;  // or null
    Format format;
};

// Several encoded vectors of one format. A null payload stands for zeros, a null scale pointer for no scales.
struct EncodedVectors {
    std::vector<const void*> payloads;
    std::vector<const uint8_t*> scales;
    Format format = Format::fp32;
};

struct Segment {
    int64_t begin, end, parameter_class;
};

// The chunks of every vector that a call reads. The call's first element is the first one of chunk `first_chunk`.
struct ReplayChecks {
    std::vector<std::vector<ChunkCheck>> vectors;
    int64_t first_chunk;
    int64_t chunk_elements;
    int64_t element_bytes;
};

struct ReplayArguments {
    math::Rule rule;
    int64_t n;
    std::vector<float*> delta;  // [requests]
    float* theta;               // or null
    std::vector<float*> state;
    std::vector<float*> counterfactual;  // [requests, states]
    const double* coefficients;          // [requests, classes, steps, COLUMNS]
    int64_t classes, steps;
    const Segment* segments;  // sorted, disjoint
    int64_t segment_count;
    EncodedVectors gradients, injections;
    const double* injection_table;  // [injections, injection_columns]: step, weight, and the request if that is a third
    int64_t injection_columns;      // column; sorted by request, then by step
    const float* diagonal;          // or null
    int64_t lead;
    const ReplayChecks* checks = nullptr;  // CPU: verify the payloads while they are read

    int64_t requests() const { return int64_t(delta.size()); }
    int64_t step_index(int64_t request, int64_t parameter_class, int64_t t) const {
        return (request * classes + parameter_class) * steps + t;
    }
};

struct ReplayPlan {
    explicit ReplayPlan(const ReplayArguments& arguments);

    // [requests, classes, steps]; the one that the rule uses is filled. The factual columns are the same for all
    // requests.
    std::vector<math::SgdStep> sgd;
    std::vector<math::AdamStep> adam;
    std::vector<math::AdamUnits> units;    // [requests, classes], adam only
    std::vector<math::QuickStep> quick;    // [classes, steps] where adam has one request and no theta, else empty
    std::vector<int32_t> injection_begin;  // [requests * steps + 1]: step t of request r has [begin[i], begin[i + 1]),
                                           // i = r * steps + t
    std::vector<float> injection_weight;   // [injections]
};

}  // namespace lmcleaner
