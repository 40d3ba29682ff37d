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
// takes for zero (under 1.1e-19, times a ROOT of at most some tens) be felt beside eps: two divisions are taken
// instead.
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
    if (t < lead) flags = (flags & ~uint32_t(math::SKIP)) | math::FACTUAL_ONLY;
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

// The steps of one class, for all requests at once: they share the factual side, and so its unit.
class AdamPlanner {
  public:
    AdamPlanner(const ReplayArguments& arguments, int64_t parameter_class)
        : arguments_(arguments),
          parameter_class_(parameter_class),
          decoupled_(arguments.rule == Rule::adamw),
          counterfactual_(size_t(arguments.requests())) {}

    // Step t of every request; `injection_begin` is the plan's.
    void next(int64_t t, const std::vector<int32_t>& injection_begin, std::vector<AdamStep>& steps) {
        const int64_t requests = arguments_.requests();
        const uint32_t common = flags_of(row_of(0, t), t, arguments_.lead);
        if (common & math::START) start();
        const double beta1 = row_of(0, t)[math::BETA1], beta2 = row_of(0, t)[math::BETA2];
        const Units factual_before = factual_;

        // After a skipped step the two sides' units differ, and w could not be shared.
        bool rescale = leaves_range(factual_, beta1, beta2);
        for (int64_t r = 0; r < requests; ++r)
            rescale |= steps_both(flags_of(row_of(r, t), t, arguments_.lead)) && !(factual_ == counterfactual_[r]);
        if (!(common & math::ABSENT)) factual_ = rescale ? Units{} : Units{factual_.m * beta1, factual_.v * beta2};
        for (int64_t r = 0; r < requests; ++r) {
            const double* row = row_of(r, t);
            AdamStep& step = steps[arguments_.step_index(r, parameter_class_, t)];
            fill_common(step, row, flags_of(row, t, arguments_.lead));
            if (step.flags & math::ABSENT) continue;
            Units& own = counterfactual_[r];
            const bool both = steps_both(step.flags);
            const Units moved = both ? Units{own.m * beta1, own.v * beta2} : own;
            if (rescale) {
                step.flags |= math::RESCALE;
                step.rescale1 = float(factual_before.m * beta1);
                step.rescale2 = float(factual_before.v * beta2);
                step.rescale1_cf = float(moved.m);
                step.rescale2_cf = float(moved.v);
            }
            own = rescale ? Units{} : moved;
            fill_moments(step, row, own, both);
            const int64_t i = r * arguments_.steps + t;
            const bool injected = injection_begin[i] != injection_begin[i + 1];
            const bool curved =
                row[math::DAMPING] != 0 || (arguments_.diagonal != nullptr && row[math::CURVATURE] != 0);
            if (both && !injected && !curved && step.decay == 0 && row[math::GAIN] == row[math::ALPHA])
                step.flags |= math::SAME_GRADIENT;
        }
    }

    // The counterfactual begins as a copy of the factual side.
    void start() { counterfactual_.assign(counterfactual_.size(), factual_); }

    math::AdamUnits units(int64_t request) const {
        const Units& own = counterfactual_[request];
        return {float(factual_.m), float(factual_.v), float(own.m), float(own.v)};
    }

  private:
    const double* row_of(int64_t request, int64_t t) const {
        return arguments_.coefficients + arguments_.step_index(request, parameter_class_, t) * math::COLUMNS;
    }

    static bool steps_both(uint32_t flags) { return !(flags & (math::FACTUAL_ONLY | math::SKIP | math::ABSENT)); }

    static bool leaves_range(const Units& units, double beta1, double beta2) {
        return units.m * beta1 < smallest_unit || units.v * beta2 < smallest_unit;
    }

    // The coefficients of the moments and of the step, in the units after this step.
    void fill_moments(AdamStep& step, const double* row, const Units& own, bool both) const {
        const double beta1 = row[math::BETA1], beta2 = row[math::BETA2];
        step.moment1 = float((1 - beta1) / factual_.m);
        step.moment2 = float(std::sqrt((1 - beta2) / factual_.v));
        step.moment1_cf = float((1 - beta1) / own.m);
        step.moment2_cf = float(std::sqrt((1 - beta2) / own.v));

        const double lost = decoupled_ ? row[math::LR] * row[math::DECAY] : 0;
        step.decay = decoupled_ ? 0.0f : float(row[math::DECAY]);
        step.lost = float(lost);
        step.keep = float(1 - lost);

        const bool fold = row[math::EPS] >= smallest_folded_eps && row[math::SIZE] >= smallest_folded_size,
                   fold_cf = fold && both && row[math::SIZE_CF] >= smallest_folded_size;
        if (fold) step.flags |= math::FOLDED;
        if (fold_cf) step.flags |= math::FOLDED_CF;
        const double size = fold ? row[math::SIZE] : 1, size_cf = fold_cf ? row[math::SIZE_CF] : 1;
        step.root = float(row[math::ROOT] * std::sqrt(factual_.v) / (size * factual_.m));
        step.eps = float(row[math::EPS] / (size * factual_.m));
        step.root_cf = float(row[math::ROOT_CF] * std::sqrt(own.v) / (size_cf * own.m));
        step.eps_cf = float(row[math::EPS] / (size_cf * own.m));
        step.size = float(row[math::SIZE]);
        step.size_cf = float(row[math::SIZE_CF]);
    }

    const ReplayArguments& arguments_;
    int64_t parameter_class_;
    bool decoupled_;
    Units factual_;
    std::vector<Units> counterfactual_;
};

// `unit` is that of the step before; returns the step's own.
math::QuickStep quick_step(const AdamStep& step, bool curved, bool injected, double& unit) {
    math::QuickStep quick{};
    const bool rest = step.flags & math::FACTUAL_ONLY;
    const double moved = rest ? unit : unit * step.keep;
    const bool alike = (step.flags & math::FOLDED_CF) && step.root == step.root_cf && step.eps == step.eps_cf;
    if ((step.flags & (math::ABSENT | math::SKIP)) || step.decay != 0 ||
        !(rest || (alike && !curved && step.share == 0 && moved >= smallest_unit))) {
        unit = 1;
        return quick;
    }
    unit = moved;
    quick.kind = rest ? math::QuickKind::factual : injected ? math::QuickKind::injected : math::QuickKind::same;
    quick.size = float(2 / (moved * step.root));
    quick.eps = float(2 * double(step.eps) / step.root);
    quick.unit = float(moved);
    return quick;
}

}  // namespace

ReplayPlan::ReplayPlan(const ReplayArguments& a) {
    const int64_t requests = a.requests(), injections = int64_t(a.injections.payloads.size());
    injection_begin.assign(size_t(requests * a.steps + 1), 0);
    for (int64_t i = 0; i < injections; ++i) {
        const double* row = a.injection_table + i * a.injection_columns;
        const int64_t request = a.injection_columns > 2 ? int64_t(row[2]) : 0;
        ++injection_begin[size_t(request * a.steps + int64_t(row[0]) + 1)];
        injection_weight.push_back(float(row[1]));
    }
    for (size_t i = 1; i < injection_begin.size(); ++i) injection_begin[i] += injection_begin[i - 1];

    const size_t rows = size_t(requests * a.classes * a.steps);
    if (a.rule != Rule::adam && a.rule != Rule::adamw) {
        for (size_t i = 0; i < rows; ++i) {
            const double* row = a.coefficients + i * math::COLUMNS;
            sgd.push_back(sgd_step(row, flags_of(row, int64_t(i) % a.steps, a.lead)));
        }
        return;
    }
    adam.resize(rows);
    units.resize(size_t(requests * a.classes));
    for (int64_t c = 0; c < a.classes; ++c) {
        AdamPlanner planner(a, c);
        for (int64_t t = 0; t < a.steps; ++t) planner.next(t, injection_begin, adam);
        if (a.lead == a.steps) planner.start();
        for (int64_t r = 0; r < requests; ++r) units[r * a.classes + c] = planner.units(r);
    }
    if (requests > 1 || a.theta != nullptr) return;
    for (int64_t c = 0; c < a.classes; ++c) {
        double unit = 1;
        for (int64_t t = 0; t < a.steps; ++t) {
            const AdamStep& step = adam[a.step_index(0, c, t)];
            const bool curved = step.damping != 0 || (a.diagonal != nullptr && step.curvature != 0);
            quick.push_back(quick_step(step, curved, injection_begin[t] != injection_begin[t + 1], unit));
        }
    }
}

}  // namespace lmcleaner
