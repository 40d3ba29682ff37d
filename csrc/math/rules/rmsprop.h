// RMSprop: torch.optim.RMSprop, not centered.
//
//     v = alpha v + (1 - alpha) g^2
//     d = g / (sqrt(v) + eps), or with momentum  b = momentum b + g / (sqrt(v) + eps),  d = b
//     theta -= lr d

#pragma once

#include "math/optimizer_replay.h"

namespace lmcleaner::math {

struct RmspropStep : CommonStep {
    float lr;
    float momentum;
    float rest;  // 1 - alpha: v moves by this share of its way to g^2
    float eps;
};

// State = [v], with momentum [v, b]; the counterfactual's the same.
template <bool has_momentum>
struct RmspropRule : RuleDefaults {
    using Kernel = RmspropRule;
    using Step = RmspropStep;
    static constexpr const char* name = "rmsprop";
    static constexpr int states = has_momentum ? 2 : 1, facts = 1;
    static constexpr bool loop_for_each_format = false;

    static void plan(const ReplayArguments& a, const std::vector<int32_t>&, RulePlan<RmspropRule>& plan) {
        for (size_t i = 0; i < plan.steps.size(); ++i) {
            const double* row = a.coefficients + i * COLUMNS;
            Step& step = plan.steps[i];
            fill_common(step, row, a.flags(row, int64_t(i) % a.steps));
            step.lr = float(row[LR]);
            step.momentum = float(row[BETA1]);
            step.rest = float(1 - row[BETA2]);
            step.eps = float(row[EPS]);
        }
    }

    template <class Value>
    LMC_HD static void start(Counterfactual<Value>& x, const Factual<Value>& factual) {
        x.delta = Value(0.0f);
        for (int k = 0; k < states; ++k) x.counterfactual[k] = factual.state[k];
    }

    template <bool Theta, class Value>
    LMC_HD static Value seen(const Step& s, const Value& g, const Value& theta) {
        const Value e = Value(s.gain) * g;
        if constexpr (Theta) return fma(Value(s.decay), theta, e);
        return e;
    }

    // Moves the state of one side; returns d. Both sides round alike, so that equal gradients lead to equal d.
    template <class Value>
    LMC_HD static Value direction(Value* state, const Step& s, const Value& e) {
        state[0] = fma(Value(s.rest), fma(e, e, Value(0.0f) - state[0]), state[0]);
        const Value d = e / scaled_root(Value(1.0f), state[0], Value(s.eps));
        if (!has_momentum || s.momentum == 0) return d;  // a group without momentum has no b
        state[1] = fma(Value(s.momentum), state[1], d);
        return state[1];
    }

    // More facts: d.
    template <bool Theta, class Value>
    LMC_HD static void step(Factual<Value>& x, const Step& s, Value g, Facts<Value>& facts) {
        facts.g = g;
        if constexpr (Theta) facts.theta = x.theta;
        facts.more[0] = direction(x.state, s, seen<Theta>(s, g, x.theta));
        if constexpr (Theta) x.theta = fnma(Value(s.lr), facts.more[0], x.theta);
    }

    template <bool Theta, class Value>
    LMC_HD static void follow(Counterfactual<Value>& x, const Step& s, const Facts<Value>& facts, Value injected,
                              Value curvature) {
        if (s.flags & FACTUAL_ONLY) return;
        Value difference = facts.more[0];  // of the two sides' d
        if (!(s.flags & SKIP)) {
            const Value removed = removed_gradient(s, facts.g, injected, curvature, x.delta);
            difference = difference - direction(x.counterfactual, s, seen<Theta>(s, facts.g, facts.theta) - removed);
        }
        x.delta = fnma(Value(s.lr), difference, x.delta);
    }
};

using Rmsprop = RmspropRule<false>;
using MomentumRmsprop = RmspropRule<true>;

}  // namespace lmcleaner::math
