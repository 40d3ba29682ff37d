// The coefficients of Adam's steps and how they are prepared, on the host.

#pragma once

#include <algorithm>
#include <cmath>

#include "math/replay_plan.h"

namespace lmcleaner::math {

// Adam keeps its moments in a unit that absorbs the betas: m = unit1 * M, v = unit2 * V.
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

struct AdamQuickStep {
    QuickKind kind;
    float size;  // delta = unit * X,  X += size * (M' D - M D') / (D D'),
    float eps;   // D = 2 sqrt(V) + eps
    float unit;  // the product of KEEP over the quick steps up to this one

    LMC_HD bool applies() const { return kind != QuickKind::none; }
};

// The units at the end of the window, per class: what takes the stored moments back to m and v.
struct AdamUnits {
    float m, v, m_cf, v_cf;
};

// The moments' unit may fall this low before it is returned to one: float32 keeps its full precision over the range.
inline constexpr double smallest_unit = 0x1p-20;
// Under these the product of two denominators could underflow, one overflow, or the root of a number that a quick root
// takes for zero (under 1.1e-19, times a ROOT of at most some tens) be felt beside eps: two divisions are taken
// instead.
inline constexpr double smallest_folded_size = 1e-12;
inline constexpr double smallest_folded_eps = 1e-10;

// The unit of one side's moments: m = m_unit * M, v = v_unit * V.
struct MomentUnits {
    double m = 1, v = 1;
    bool operator==(const MomentUnits&) const = default;
};

// The steps of one class, for all requests at once: they share the factual side, and so its unit.
class AdamPlanner {
  public:
    AdamPlanner(const ReplayArguments& arguments, int64_t parameter_class, bool decoupled)
        : arguments_(arguments),
          parameter_class_(parameter_class),
          decoupled_(decoupled),
          counterfactual_(size_t(arguments.requests())) {}

    // Step t of every request; `injection_begin` is the plan's.
    void next(int64_t t, const std::vector<int32_t>& injection_begin, std::vector<AdamStep>& steps) {
        const int64_t requests = arguments_.requests();
        const uint32_t common = arguments_.flags(row_of(0, t), t);
        if (common & START) start();
        const double beta1 = row_of(0, t)[BETA1], beta2 = row_of(0, t)[BETA2];
        const MomentUnits factual_before = factual_;

        // After a skipped step the two sides' units differ, and w could not be shared.
        bool rescale = leaves_range(factual_, beta1, beta2);
        for (int64_t r = 0; r < requests; ++r)
            rescale |= steps_both(arguments_.flags(row_of(r, t), t)) && !(factual_ == counterfactual_[r]);
        if (!(common & ABSENT))
            factual_ = rescale ? MomentUnits{} : MomentUnits{factual_.m * beta1, factual_.v * beta2};
        for (int64_t r = 0; r < requests; ++r) {
            const double* row = row_of(r, t);
            AdamStep& step = steps[arguments_.step_index(r, parameter_class_, t)];
            fill_common(step, row, arguments_.flags(row, t));
            if (step.flags & ABSENT) continue;
            MomentUnits& own = counterfactual_[r];
            const bool both = steps_both(step.flags);
            const MomentUnits moved = both ? MomentUnits{own.m * beta1, own.v * beta2} : own;
            if (rescale) {
                step.flags |= RESCALE;
                step.rescale1 = float(factual_before.m * beta1);
                step.rescale2 = float(factual_before.v * beta2);
                step.rescale1_cf = float(moved.m);
                step.rescale2_cf = float(moved.v);
            }
            own = rescale ? MomentUnits{} : moved;
            fill_moments(step, row, own, both);
            const int64_t i = r * arguments_.steps + t;
            const bool injected = injection_begin[i] != injection_begin[i + 1];
            const bool curved = row[DAMPING] != 0 || (arguments_.diagonal != nullptr && row[CURVATURE] != 0);
            if (both && !injected && !curved && step.decay == 0 && row[GAIN] == row[ALPHA]) step.flags |= SAME_GRADIENT;
        }
    }

    // The counterfactual begins as a copy of the factual side.
    void start() { counterfactual_.assign(counterfactual_.size(), factual_); }

    AdamUnits units(int64_t request) const {
        const MomentUnits& own = counterfactual_[request];
        return {float(factual_.m), float(factual_.v), float(own.m), float(own.v)};
    }

  private:
    const double* row_of(int64_t request, int64_t t) const { return arguments_.row(request, parameter_class_, t); }

    static bool steps_both(uint32_t flags) { return !(flags & (FACTUAL_ONLY | SKIP | ABSENT)); }

    static bool leaves_range(const MomentUnits& units, double beta1, double beta2) {
        return units.m * beta1 < smallest_unit || units.v * beta2 < smallest_unit;
    }

    // The coefficients of the moments and of the step, in the units after this step.
    void fill_moments(AdamStep& step, const double* row, const MomentUnits& own, bool both) const {
        const double beta1 = row[BETA1], beta2 = row[BETA2];
        step.moment1 = float((1 - beta1) / factual_.m);
        step.moment2 = float(std::sqrt((1 - beta2) / factual_.v));
        step.moment1_cf = float((1 - beta1) / own.m);
        step.moment2_cf = float(std::sqrt((1 - beta2) / own.v));

        const double lost = decoupled_ ? row[LR] * row[DECAY] : 0;
        step.decay = decoupled_ ? 0.0f : float(row[DECAY]);
        step.lost = float(lost);
        step.keep = float(1 - lost);

        const bool fold = row[EPS] >= smallest_folded_eps && row[SIZE] >= smallest_folded_size,
                   fold_cf = fold && both && row[SIZE_CF] >= smallest_folded_size;
        if (fold) step.flags |= FOLDED;
        if (fold_cf) step.flags |= FOLDED_CF;
        const double size = fold ? row[SIZE] : 1, size_cf = fold_cf ? row[SIZE_CF] : 1;
        step.root = float(row[ROOT] * std::sqrt(factual_.v) / (size * factual_.m));
        step.eps = float(row[EPS] / (size * factual_.m));
        step.root_cf = float(row[ROOT_CF] * std::sqrt(own.v) / (size_cf * own.m));
        step.eps_cf = float(row[EPS] / (size_cf * own.m));
        step.size = float(row[SIZE]);
        step.size_cf = float(row[SIZE_CF]);
    }

    const ReplayArguments& arguments_;
    int64_t parameter_class_;
    bool decoupled_;
    MomentUnits factual_;
    std::vector<MomentUnits> counterfactual_;
};

// `unit` is that of the step before; returns the step's own.
inline AdamQuickStep quick_step(const AdamStep& step, bool curved, bool injected, double& unit) {
    AdamQuickStep quick{};
    const bool rest = step.flags & FACTUAL_ONLY;
    const double moved = rest ? unit : unit * step.keep;
    const bool alike = (step.flags & FOLDED_CF) && step.root == step.root_cf && step.eps == step.eps_cf;
    if ((step.flags & (ABSENT | SKIP)) || step.decay != 0 ||
        !(rest || (alike && !curved && step.share == 0 && moved >= smallest_unit))) {
        unit = 1;
        return quick;
    }
    unit = moved;
    quick.kind = rest ? QuickKind::factual : injected ? QuickKind::injected : QuickKind::same;
    quick.size = float(2 / (moved * step.root));
    quick.eps = float(2 * double(step.eps) / step.root);
    quick.unit = float(moved);
    return quick;
}

// Whether every step is one on both sides, told apart by injections and damping alone: nearly every window is.
inline bool is_plain(const ReplayArguments& a, const std::vector<AdamStep>& steps) {
    return a.diagonal == nullptr && a.lead == 0 && std::all_of(steps.begin(), steps.end(), [](const AdamStep& s) {
               return (s.flags & ~(RESCALE | SAME_GRADIENT)) == (FOLDED | FOLDED_CF) && s.share == 0 && s.decay == 0;
           });
}

template <class Plan>
void plan_adam(const ReplayArguments& a, const std::vector<int32_t>& injection_begin, bool decoupled, Plan& plan) {
    const int64_t requests = a.requests();
    for (int64_t c = 0; c < a.classes; ++c) {
        AdamPlanner planner(a, c, decoupled);
        for (int64_t t = 0; t < a.steps; ++t) planner.next(t, injection_begin, plan.steps);
        if (a.lead == a.steps) planner.start();
        for (int64_t r = 0; r < requests; ++r) plan.units[r * a.classes + c] = planner.units(r);
    }
    plan.plain = is_plain(a, plan.steps);
    if (requests > 1 || a.theta != nullptr) return;
    for (int64_t c = 0; c < a.classes; ++c) {
        double unit = 1;
        for (int64_t t = 0; t < a.steps; ++t) {
            const AdamStep& step = plan.steps[a.step_index(0, c, t)];
            const bool curved = step.damping != 0 || (a.diagonal != nullptr && step.curvature != 0);
            plan.quick.push_back(quick_step(step, curved, injection_begin[t] != injection_begin[t + 1], unit));
        }
    }
}

}  // namespace lmcleaner::math
