#include "math/replay_plan.h"

#include <cmath>

namespace lmcleaner {
namespace {

using math::AdamStep;
using math::Rule;
using math::SgdStep;

// The moments' unit may fall this low before it is returned to one: float32 keeps its full precision over the range.
constexpr double smallest_unit = 0x1p-20;
// Under these the product of two denominators could underflow, one overflow, or the root of a number that a quick root
// takes for zero (under 1.1e-19, times a ROOT of at most some tens) be felt beside eps: two divisions are taken instead.
constexpr double smallest_folded_size = 1e-12;
constexpr double smallest_folded_eps = 1e-10;

// The unit of one side's moments: m = m_unit * M, v = v_unit * V.
struct Units {
    double m = 1, v = 1;
    bool operator==(const Units&) const = default;
};

void fill_common(math::CommonStep& step, const double* row, uint32_t flags) {
    step.flags = flags;
    step.gain = float(row[math::GAIN]);
    step.share = float(row[math::GAIN] - row[math::ALPHA]);
    step.curvature = float(row[math::CURVATURE]);
    step.damping = float(row[math::DAMPING]);
    step.decay = float(row[math::DECAY]);
}

uint32_t flags_of(const double* row, int64_t t, int64_t lead) {
    uint32_t flags = uint32_t(row[math::FLAGS]);
    if (t < lead) flags = (flags & ~uint32_t(math::SKIP)) | math::LEAD;
    if (t == lead && lead > 0) flags |= math::START;
    return flags;
}

SgdStep sgd_step(const double* row, uint32_t flags) {
    SgdStep step{};
    fill_common(step, row, flags);
    step.lr = float(row[math::LR]);
    step.momentum = float(row[math::BETA1]);
    step.undampened = float(1 - row[math::BETA2]);
    return step;
}

class AdamPlanner {
  public:
    AdamPlanner(bool decoupled, bool has_diagonal) : decoupled_(decoupled), has_diagonal_(has_diagonal) {}

    AdamStep next(const double* row, uint32_t flags, bool injected) {
        AdamStep step{};
        fill_common(step, row, flags);
        if (flags & math::START) start();
        if (flags & math::ABSENT) return step;
        const bool both = !(flags & (math::LEAD | math::SKIP));
        const double beta1 = row[math::BETA1], beta2 = row[math::BETA2];

        // After a skipped step the two sides' units differ, and w could not be shared.
        const bool rescale = leaves_range(factual_, beta1, beta2) || (both && !(factual_ == counterfactual_));
        if (rescale) {
            step.flags |= math::RESCALE;
            step.rescale1 = float(factual_.m * beta1);
            step.rescale2 = float(factual_.v * beta2);
            step.rescale1_cf = float(counterfactual_.m * (both ? beta1 : 1));
            step.rescale2_cf = float(counterfactual_.v * (both ? beta2 : 1));
            factual_ = counterfactual_ = {};
        } else {
            factual_ = {factual_.m * beta1, factual_.v * beta2};
            if (both) counterfactual_ = {counterfactual_.m * beta1, counterfactual_.v * beta2};
        }
        step.moment1 = float((1 - beta1) / factual_.m);
        step.moment2 = float(std::sqrt((1 - beta2) / factual_.v));
        step.moment1_cf = float((1 - beta1) / counterfactual_.m);
        step.moment2_cf = float(std::sqrt((1 - beta2) / counterfactual_.v));

        const double coupled = decoupled_ ? 0 : row[math::DECAY];
        const double lost = decoupled_ ? row[math::LR] * row[math::DECAY] : 0;
        step.decay = float(coupled);
        step.lost = float(lost);
        step.keep = float(1 - lost);

        const bool fold = both && row[math::EPS] >= smallest_folded_eps && row[math::SIZE] >= smallest_folded_size &&
                          row[math::SIZE_CF] >= smallest_folded_size;
        if (fold) step.flags |= math::ONE_DIVISION;
        const double size = fold ? row[math::SIZE] : 1, size_cf = fold ? row[math::SIZE_CF] : 1;
        step.root = float(row[math::ROOT] * std::sqrt(factual_.v) / (size * factual_.m));
        step.eps = float(row[math::EPS] / (size * factual_.m));
        step.root_cf = float(row[math::ROOT_CF] * std::sqrt(counterfactual_.v) / (size_cf * counterfactual_.m));
        step.eps_cf = float(row[math::EPS] / (size_cf * counterfactual_.m));
        step.size = fold ? 1.0f : float(row[math::SIZE]);
        step.size_cf = fold ? 1.0f : float(row[math::SIZE_CF]);

        const bool curved = row[math::DAMPING] != 0 || (has_diagonal_ && row[math::CURVATURE] != 0);
        if (both && !injected && !curved && coupled == 0 && row[math::GAIN] == row[math::ALPHA])
            step.flags |= math::SAME_GRADIENT;
        return step;
    }

    // The counterfactual begins as a copy of the factual side.
    void start() { counterfactual_ = factual_; }

    math::AdamUnits units() const {
        return {float(factual_.m), float(factual_.v), float(counterfactual_.m), float(counterfactual_.v)};
    }

  private:
    static bool leaves_range(const Units& units, double beta1, double beta2) {
        return units.m * beta1 < smallest_unit || units.v * beta2 < smallest_unit;
    }

    bool decoupled_, has_diagonal_;
    Units factual_, counterfactual_;
};

}  // namespace

ReplayPlan::ReplayPlan(const ReplayArguments& arguments) {
    const int64_t steps = arguments.steps, injections = int64_t(arguments.injections.payloads.size());
    injection_begin.assign(size_t(steps + 1), 0);
    for (int64_t i = 0; i < injections; ++i) {
        ++injection_begin[size_t(arguments.injection_table[2 * i]) + 1];
        injection_weight.push_back(float(arguments.injection_table[2 * i + 1]));
    }
    for (int64_t t = 0; t < steps; ++t) injection_begin[t + 1] += injection_begin[t];

    for (int64_t c = 0; c < arguments.classes; ++c) {
        AdamPlanner planner(arguments.rule == Rule::adamw, arguments.diagonal != nullptr);
        for (int64_t t = 0; t < steps; ++t) {
            const double* row = arguments.coefficients + (c * steps + t) * math::COLUMNS;
            const uint32_t flags = flags_of(row, t, arguments.lead);
            if (arguments.rule == Rule::adam || arguments.rule == Rule::adamw)
                adam.push_back(planner.next(row, flags, injection_begin[t] != injection_begin[t + 1]));
            else
                sgd.push_back(sgd_step(row, flags));
        }
        if (arguments.lead == steps) planner.start();
        units.push_back(planner.units());
    }
}

}  // namespace lmcleaner
