// Lion: the package lion-pytorch.
//
//     d = sign(beta1 m + (1 - beta1) g);   theta = (1 - lr decay) theta - lr d;   m = beta2 m + (1 - beta2) g
//
// The counterfactual side differs by whole signs: delta moves by 0, lr or 2 lr in a step.

#pragma once

#include "math/optimizer_replay.h"

namespace lmcleaner::math {

struct LionStep : CommonStep {
    float lr;
    float keep;  // 1 - lr * decay, decoupled
    float lost;  // lr * decay
    float beta1;
    float rest1;  // 1 - beta1
    float beta2;
    float rest2;
};

// State = [m], counterfactual = [m'].
struct Lion : RuleDefaults {
    using Kernel = Lion;
    using Step = LionStep;
    static constexpr const char* name = "lion";
    static constexpr int states = 1, facts = 1;
    static constexpr bool loop_for_each_format = false;

    static void plan(const ReplayArguments& a, const std::vector<int32_t>&, RulePlan<Lion>& plan) {
        for (size_t i = 0; i < plan.steps.size(); ++i) {
            const double* row = a.coefficients + i * COLUMNS;
            Step& step = plan.steps[i];
            fill_common(step, row, a.flags(row, int64_t(i) % a.steps));
            step.decay = 0;  // of the parameters, not in the gradient
            step.lr = float(row[LR]);
            step.keep = float(1 - row[LR] * row[DECAY]);
            step.lost = float(row[LR] * row[DECAY]);
            step.beta1 = float(row[BETA1]);
            step.rest1 = float(1 - row[BETA1]);
            step.beta2 = float(row[BETA2]);
            step.rest2 = float(1 - row[BETA2]);
        }
    }

    template <class Value>
    LMC_HD static void start(Counterfactual<Value>& x, const Factual<Value>& factual) {
        x.delta = Value(0.0f);
        x.counterfactual[0] = factual.state[0];
    }

    // Moves m of one side; returns d. Both sides round alike, so that only what was removed can turn a sign.
    template <class Value>
    LMC_HD static Value direction(Value& m, const Step& s, const Value& g) {
        const Value d = sign(fma(Value(s.rest1), g, Value(s.beta1) * m));
        m = fma(Value(s.rest2), g, Value(s.beta2) * m);
        return d;
    }

    // More facts: d.
    template <bool Theta, class Value>
    LMC_HD static void step(Factual<Value>& x, const Step& s, Value g, Facts<Value>& facts) {
        facts.g = g;
        if constexpr (Theta) facts.theta = x.theta;
        facts.more[0] = direction(x.state[0], s, Value(s.gain) * g);
        if constexpr (Theta) x.theta = fnma(Value(s.lr), facts.more[0], Value(s.keep) * x.theta);
    }

    template <bool Theta, class Value>
    LMC_HD static void follow(Counterfactual<Value>& x, const Step& s, const Facts<Value>& facts, Value injected,
                              Value curvature) {
        if (s.flags & FACTUAL_ONLY) return;
        const Value& d = facts.more[0];
        if (s.flags & SKIP) {
            x.delta = fnma(Value(s.lr), d, x.delta);
            if constexpr (Theta) x.delta = fnma(Value(s.lost), facts.theta, x.delta);
            return;
        }
        const Value removed = removed_gradient(s, facts.g, injected, curvature, x.delta);
        const Value other = direction(x.counterfactual[0], s, Value(s.gain) * facts.g - removed);
        x.delta = fnma(Value(s.lr), d - other, Value(s.keep) * x.delta);
    }
};

}  // namespace lmcleaner::math
