// SGD: torch.optim.SGD without and with momentum, and plain SGD replayed from its logged updates.

#pragma once

#include "math/optimizer_replay.h"

namespace lmcleaner::math {

struct SgdStep : CommonStep {
    float lr;
    float momentum;
    float undampened;  // 1 - dampening
};

// What the three rules of this file have in common.
template <class Rule>
struct SgdRule : RuleDefaults {
    using Step = SgdStep;
    static constexpr bool loop_for_each_format = true;

    static void plan(const ReplayArguments& a, const std::vector<int32_t>&, RulePlan<Rule>& plan) {
        for (size_t i = 0; i < plan.steps.size(); ++i) {
            const double* row = a.coefficients + i * COLUMNS;
            SgdStep& step = plan.steps[i];
            fill_common(step, row, a.flags(row, int64_t(i) % a.steps));
            step.lr = float(row[LR]);
            step.momentum = float(row[BETA1]);
            step.undampened = float(1 - row[BETA2]);
        }
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// SGD without momentum:  theta -= lr (g + decay theta)
// ---------------------------------------------------------------------------------------------------------------------
struct PlainSgd : SgdRule<PlainSgd> {
    using Kernel = PlainSgd;
    static constexpr const char* name = "sgd";
    static constexpr int states = 0, facts = 0;

    template <class Value>
    LMC_HD static void start(Counterfactual<Value>& x, const Factual<Value>&) {
        x.delta = Value(0.0f);
    }

    // What the optimizer sees: the gradient with its weight decay.
    template <bool Theta, class Value>
    LMC_HD static Value seen(const Step& s, const Value& g, const Value& theta) {
        const Value e = Value(s.gain) * g;
        if constexpr (Theta) return fma(Value(s.decay), theta, e);
        return e;
    }

    template <bool Theta, class Value>
    LMC_HD static void step(Factual<Value>& x, const Step& s, Value g, Facts<Value>& facts) {
        facts.g = g;
        if constexpr (Theta) {
            facts.theta = x.theta;
            x.theta = fnma(Value(s.lr), seen<Theta>(s, g, x.theta), x.theta);
        }
    }

    template <bool Theta, class Value>
    LMC_HD static void follow(Counterfactual<Value>& x, const Step& s, const Facts<Value>& facts, Value injected,
                              Value curvature) {
        if (s.flags & FACTUAL_ONLY) return;
        if (s.flags & SKIP)
            x.delta = fnma(Value(s.lr), seen<Theta>(s, facts.g, facts.theta), x.delta);
        else
            x.delta = fnma(Value(s.lr), removed_gradient(s, facts.g, injected, curvature, x.delta), x.delta);
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// SGD with momentum:  b = momentum b + (1 - dampening) e;  state = [b], counterfactual = [b - b']
// ---------------------------------------------------------------------------------------------------------------------
struct MomentumSgd : SgdRule<MomentumSgd> {
    using Kernel = MomentumSgd;
    static constexpr const char* name = "sgd";
    static constexpr int states = 1, facts = 2;

    template <class Value>
    LMC_HD static void start(Counterfactual<Value>& x, const Factual<Value>&) {
        x.delta = Value(0.0f);
        x.counterfactual[0] = Value(0.0f);
    }

    template <class Value>
    LMC_HD static Value direction(const Step& s, Value b, Value e) {
        return s.flags & NESTEROV ? fma(Value(s.momentum), b, e) : b;
    }

    // More facts: b before the step, zero where it begins there, and after it.
    template <bool Theta, class Value>
    LMC_HD static void step(Factual<Value>& x, const Step& s, Value g, Facts<Value>& facts) {
        const Value e = PlainSgd::seen<Theta>(s, g, x.theta);
        Value& b = x.state[0];
        facts.g = g;
        if constexpr (Theta) facts.theta = x.theta;
        facts.more[0] = s.flags & FIRST ? Value(0.0f) : b;
        b = s.flags & FIRST ? e : fma(Value(s.momentum), b, Value(s.undampened) * e);
        facts.more[1] = b;
        if constexpr (Theta) x.theta = fnma(Value(s.lr), direction(s, b, e), x.theta);
    }

    template <bool Theta, class Value>
    LMC_HD static void follow(Counterfactual<Value>& x, const Step& s, const Facts<Value>& facts, Value injected,
                              Value curvature) {
        if (s.flags & FACTUAL_ONLY) return;
        const Value e = PlainSgd::seen<Theta>(s, facts.g, facts.theta);
        const Value &old_b = facts.more[0], &b = facts.more[1];
        Value& db = x.counterfactual[0];
        if (s.flags & SKIP) {
            db = db + (b - old_b);
            x.delta = fnma(Value(s.lr), direction(s, b, e), x.delta);
            return;
        }
        const Value de = removed_gradient(s, facts.g, injected, curvature, x.delta);
        if (s.flags & FIRST)
            db = de;
        else if (s.flags & FIRST_CF)
            db = b - (e - de);
        else
            db = fma(Value(s.momentum), db, Value(s.undampened) * de);
        x.delta = fnma(Value(s.lr), direction(s, db, de), x.delta);
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Plain SGD replayed from its logged updates u = theta[t+1] - theta[t]; the argument `g` is u.
// ---------------------------------------------------------------------------------------------------------------------
struct LoggedUpdate : SgdRule<LoggedUpdate> {
    using Kernel = LoggedUpdate;
    static constexpr const char* name = "update";
    static constexpr int states = 0, facts = 0;

    template <class Value>
    LMC_HD static void start(Counterfactual<Value>& x, const Factual<Value>&) {
        x.delta = Value(0.0f);
    }

    template <bool Theta, class Value>
    LMC_HD static void step(Factual<Value>& x, const Step&, Value u, Facts<Value>& facts) {
        facts.g = u;
        if constexpr (Theta) {
            facts.theta = x.theta;
            x.theta = x.theta + u;
        }
    }

    template <bool Theta, class Value>
    LMC_HD static void follow(Counterfactual<Value>& x, const Step& s, const Facts<Value>& facts, Value injected,
                              Value curvature) {
        if (s.flags & FACTUAL_ONLY) return;
        if (s.flags & SKIP) {
            x.delta = x.delta + facts.g;
            return;
        }
        Value minus_lr_g = facts.g;  // -lr g = u + lr decay theta
        if constexpr (Theta) minus_lr_g = fma(Value(s.lr * s.decay), facts.theta, facts.g);
        const Value lost = fma(curvature + Value(s.decay), x.delta, injected);
        x.delta = fma(Value(s.share), minus_lr_g, fnma(Value(s.lr), lost, x.delta));
    }
};

}  // namespace lmcleaner::math
