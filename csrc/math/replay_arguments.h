// What optimizer_replay_window is given (lmcleaner_ext/ops/optimizer_replay.py says what each of it is), the columns
// and flags of its table, and what the steps of every rule have in common.

#pragma once

#include <cstdint>
#include <vector>

#include "chunk_check.h"
#include "math/encoding.h"

namespace lmcleaner {
namespace math {

// The columns of the coefficient table; lmcleaner_ext/ops/coefficients.py describes them.
enum Column : int {
    FLAGS = 0,
    GAIN = 1,
    ALPHA = 2,
    CURVATURE = 4,
    DAMPING = 5,
    LR = 6,
    DECAY = 7,
    BETA1 = 8,
    BETA2 = 9,
    EPS = 10,
    SIZE = 11,
    ROOT = 12,
    SIZE_CF = 13,
    ROOT_CF = 14,
    COLUMNS = 16
};

enum Flag : uint32_t {
    // the caller's
    ABSENT = 1,    // nothing happens to this class at this step
    SKIP = 2,      // only the factual side steps
    FIRST = 4,     // sgd: the factual momentum buffer starts here
    FIRST_CF = 8,  // sgd: the counterfactual one
    NESTEROV = 16,
    FACTUAL_ONLY = 32,  // the counterfactual stands still: before it begins (derived), or after its truncation
    // derived
    START = 64,           // the counterfactual begins just before this step
    RESCALE = 128,        // adam: the stored moments change their unit before this step
    SAME_GRADIENT = 256,  // adam: both sides see the same gradient
    FOLDED = 512,         // adam: SIZE is in the factual denominator, which lies well inside float32's normal numbers
    FOLDED_CF = 1024,     // SIZE_CF is in the counterfactual one as well, and their product lies there too
};

// The coefficients of one (class, step) in the form in which a kernel uses them: float32, prepared once per call in
// double precision. This is what every rule has. Aligned, so that a GPU reads it in few loads.
struct alignas(16) CommonStep {
    uint32_t flags;
    float gain;       // gf = gain * g
    float share;      // GAIN - ALPHA: the part of g that the counterfactual does not see
    float curvature;  // factor of the diagonal
    float damping;
    float decay;  // coupled weight decay: added to the gradient
};

inline void fill_common(CommonStep& step, const double* row, uint32_t flags) {
    step.flags = flags;
    step.gain = float(row[GAIN]);
    step.share = float(row[GAIN] - row[ALPHA]);
    step.curvature = float(row[CURVATURE]);
    step.damping = float(row[DAMPING]);
    step.decay = float(row[DECAY]);
}

}  // namespace math

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
    int rule;  // its place in math/rules/rules.h
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
    const double* row(int64_t request, int64_t parameter_class, int64_t t) const {
        return coefficients + step_index(request, parameter_class, t) * math::COLUMNS;
    }
    // The flags of a row at step t, with those that follow from `lead`.
    uint32_t flags(const double* row, int64_t t) const {
        uint32_t found = uint32_t(row[math::FLAGS]);
        if (t < lead) found = (found & ~uint32_t(math::SKIP)) | math::FACTUAL_ONLY;
        if (t == lead && lead > 0) found |= math::START;
        return found;
    }
};

}  // namespace lmcleaner
