// The coefficients of one (class, step) in the form in which the replay kernels use them: float32, prepared once per
// call in double precision (replay_plan.cpp) from the table of lmcleaner_ext/ops/coefficients.py.

#pragma once

#include <stdint.h>

namespace lmcleaner::math {

enum class Rule : int { sgd = 0, update = 1, adam = 2, adamw = 3 };

// The columns of the table.
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

// What every rule has. Aligned, so that a GPU reads it in few loads.
struct alignas(16) CommonStep {
    uint32_t flags;
    float gain;       // gf = gain * g
    float share;      // GAIN - ALPHA: the part of g that the counterfactual does not see
    float curvature;  // factor of the diagonal
    float damping;
    float decay;  // coupled weight decay: added to the gradient
};

struct SgdStep : CommonStep {
    float lr;
    float momentum;
    float undampened;  // 1 - dampening
};

// Adam keeps its moments in a unit that absorbs the betas (optimizer_replay.h): m = unit1 * M, v = unit2 * V.
struct AdamStep : CommonStep {
    float keep;     // 1 - lr * decay, decoupled
    float lost;     // lr * decay, decoupled
    float moment1;  // (1 - beta1) / unit1
    float moment1_cf;
    float moment2;  // sqrt((1 - beta2) / unit2)
    float moment2_cf;
    float root;  // denominator = root * sqrt(V) + eps
    float eps;
    float root_cf;
    float eps_cf;
    float size;  // step = size * M / denominator; unused where FOLDED
    float size_cf;
    float rescale1;  // with RESCALE: M <- rescale1 * M and so on, this step's beta included
    float rescale2;
    float rescale1_cf;
    float rescale2_cf;
};

// What a step comes to for one request without theta, where injections alone tell the two sides apart and both step
// with the same coefficients: less than the whole rule.
enum class QuickKind : uint32_t {
    none,      // the whole rule
    factual,   // only the factual moments move
    same,      // both sides see the same gradient
    injected,  // the counterfactual does not see what is injected
};

struct QuickStep {
    QuickKind kind;
    float size;  // delta = unit * X,  X += size * (M' D - M D') / (D D'),
    float eps;   // D = 2 sqrt(V) + eps
    float unit;  // the product of KEEP over the quick steps up to this one
};

// The units at the end of the window, per class: what takes the stored moments back to m and v.
struct AdamUnits {
    float m, v, m_cf, v_cf;
};

}  // namespace lmcleaner::math
