// One step of an optimizer on both sides: factual (theta, state) and counterfactual, which does not see
//
//     removed = share * g + injected + curvature * delta,        delta = theta - theta'.
//
// The specification is lmcleaner_ext/ops/reference.py; these are the same formulas for one value, in the order that
// keeps delta free of cancellation: delta is stepped by the difference of the two steps, never computed as theta -
// theta'. Where both sides see the same numbers the difference is exactly zero, because both are rounded alike.
//
// A rule is a factual `step`, and how the counterfactual side of a request follows it. `advance` is both for one
// request.

#pragma once

#include "math/replay_step.h"
#include "math/value.h"

namespace lmcleaner::math {

template <class Value>
struct Factual {
    Value theta;
    Value state[2];  // as many as the rule has
};

template <class Value>
struct Counterfactual {
    Value delta;
    Value counterfactual[2];
};

// Both sides of one request.
template <class Value>
struct Lane : Factual<Value>, Counterfactual<Value> {};

// What the counterfactual side needs of a factual step.
template <class Value>
struct Facts {
    Value g, theta;  // before the step
    Value more[2];   // as many as Rule::facts, and what they are says the rule
};

// The gradient that the counterfactual does not see. `curvature` is CURVATURE * h + DAMPING.
// Coupled weight decay is part of the optimizer's gradient and so of the difference. The branches are the same for all
// elements of a step; most steps have neither term.
template <class Step, class Value>
LMC_HD Value removed_gradient(const Step& s, Value g, Value injected, Value curvature, Value delta) {
    Value removed = fma(curvature, delta, injected);
    if (s.share != 0.0f) removed = fma(Value(s.share), g, removed);
    if (s.decay != 0.0f) removed = fma(Value(s.decay), delta, removed);
    return removed;
}

// ---------------------------------------------------------------------------------------------------------------------
// SGD without momentum:  theta -= lr (g + decay theta)
// ---------------------------------------------------------------------------------------------------------------------
struct PlainSgd {
    using Step = SgdStep;
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
struct MomentumSgd {
    using Step = SgdStep;
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
struct LoggedUpdate {
    using Step = SgdStep;
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

// ---------------------------------------------------------------------------------------------------------------------
// Adam and AdamW
//
//     m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2;   step = SIZE m / (ROOT sqrt(v) + EPS)
//
// Arithmetic, not memory, limits this rule, so two multiplications per moment are saved by a change of unit: with
// m = unit1 M and unit1 <- beta1 unit1 at every step,  M += (1 - beta1)/unit1 * g  is one fused operation, and likewise
// v = unit2 V,  V += w^2  with  w = sqrt((1 - beta2)/unit2) g.  The units sit in the coefficients; RESCALE returns them
// to one before they leave the range in which float32 loses nothing.
//
// The two divisions of  step' - step = M'/D' - M/D = (M' D - M D') / (D D')  become one where the coefficients say that
// D D' cannot leave the range of float32 (FOLDED_CF).
// ---------------------------------------------------------------------------------------------------------------------
struct Adam {
    using Step = AdamStep;
    static constexpr int states = 2, facts = 1;

    template <class Value>
    LMC_HD static void start(Counterfactual<Value>& x, const Factual<Value>& factual) {
        x.delta = Value(0.0f);
        x.counterfactual[0] = factual.state[0];
        x.counterfactual[1] = factual.state[1];
    }

    template <class Value>
    LMC_HD static void rescale(Factual<Value>& x, const Step& s) {
        x.state[0] = x.state[0] * Value(s.rescale1);
        x.state[1] = x.state[1] * Value(s.rescale2);
    }

    template <class Value>
    LMC_HD static void rescale(Counterfactual<Value>& x, const Step& s) {
        x.counterfactual[0] = x.counterfactual[0] * Value(s.rescale1_cf);
        x.counterfactual[1] = x.counterfactual[1] * Value(s.rescale2_cf);
    }

    template <class Value>
    LMC_HD static void rescale(Lane<Value>& x, const Step& s) {
        rescale(static_cast<Factual<Value>&>(x), s);
        rescale(static_cast<Counterfactual<Value>&>(x), s);
    }

    // Back to m and v at the end of the window.
    template <class Value>
    LMC_HD static void finish(Factual<Value>& x, const AdamUnits& units) {
        x.state[0] = x.state[0] * Value(units.m);
        x.state[1] = x.state[1] * Value(units.v);
    }

    template <class Value>
    LMC_HD static void finish(Counterfactual<Value>& x, const AdamUnits& units) {
        x.counterfactual[0] = x.counterfactual[0] * Value(units.m_cf);
        x.counterfactual[1] = x.counterfactual[1] * Value(units.v_cf);
    }

    template <class Value>
    LMC_HD static void finish(Lane<Value>& x, const AdamUnits& units) {
        finish(static_cast<Factual<Value>&>(x), units);
        finish(static_cast<Counterfactual<Value>&>(x), units);
    }

    template <class Value>
    LMC_HD static void accumulate(Value* moments, Value g, Value moment1, Value moment2) {
        const Value w = moment2 * g;
        moments[0] = fma(moment1, g, moments[0]);
        moments[1] = fma(w, w, moments[1]);
    }

    template <bool Theta, class Value>
    LMC_HD static Value seen(const Step& s, const Value& g, const Value& theta) {
        const Value gain_g = s.gain == 1.0f ? g : Value(s.gain) * g;
        if constexpr (Theta) {
            if (s.decay != 0.0f) return fma(Value(s.decay), theta, gain_g);
        }
        return gain_g;
    }

    template <class Value>
    LMC_HD static Value step_of(const Value* moments, bool folded, float size, float root, float eps) {
        if (folded) return quick_quotient(moments[0], quick_root_beside_division(Value(root), moments[1], Value(eps)));
        return rounded_product(Value(size), moments[0] / scaled_root(Value(root), moments[1], Value(eps)));
    }

    template <class Value>
    LMC_HD static Value factual_step(const Factual<Value>& x, const Step& s) {
        return step_of(x.state, s.flags & FOLDED, s.size, s.root, s.eps);
    }

    template <class Value>
    LMC_HD static Value counterfactual_step(const Counterfactual<Value>& x, const Step& s) {
        return step_of(x.counterfactual, s.flags & FOLDED_CF, s.size_cf, s.root_cf, s.eps_cf);
    }

    // More facts: the step that was taken.
    template <bool Theta, class Value>
    LMC_HD static void step(Factual<Value>& x, const Step& s, Value g, Facts<Value>& facts) {
        facts.g = g;
        if constexpr (Theta) facts.theta = x.theta;
        accumulate(x.state, seen<Theta>(s, g, x.theta), Value(s.moment1), Value(s.moment2));
        facts.more[0] = factual_step(x, s);
        if constexpr (Theta) x.theta = fma(Value(s.keep), x.theta, Value(0.0f) - facts.more[0]);
    }

    template <bool Theta, class Value>
    LMC_HD static void follow(Counterfactual<Value>& x, const Step& s, const Facts<Value>& facts, Value injected,
                              Value curvature) {
        if (s.flags & FACTUAL_ONLY) return;
        const Value& step = facts.more[0];
        if (s.flags & SKIP) {
            x.delta = x.delta - step;
            if constexpr (Theta) x.delta = fnma(Value(s.lost), facts.theta, x.delta);
            return;
        }
        Value g = seen<Theta>(s, facts.g, facts.theta);
        if (!(s.flags & SAME_GRADIENT)) g = g - removed_gradient(s, facts.g, injected, curvature, x.delta);
        accumulate(x.counterfactual, g, Value(s.moment1_cf), Value(s.moment2_cf));
        x.delta = fma(Value(s.keep), x.delta, counterfactual_step(x, s) - step);
    }

    // Both sides' moments are those of this step: move delta and theta.
    template <bool Theta, class Value>
    LMC_HD static void move(Lane<Value>& x, const Step& s) {
        Value step, difference;  // difference = step' - step
        if (s.flags & FOLDED_CF) {
            const Value denominator = quick_scaled_root(Value(s.root), x.state[1], Value(s.eps));
            const Value denominator_cf = quick_scaled_root(Value(s.root_cf), x.counterfactual[1], Value(s.eps_cf));
            const Value a = rounded_product(x.state[0], denominator_cf);
            const Value b = rounded_product(x.counterfactual[0], denominator);
            if constexpr (Theta) {
                const Value inverse = quick_quotient(Value(1.0f), denominator * denominator_cf);
                step = a * inverse;
                difference = (b - a) * inverse;
            } else {
                difference = quick_quotient(b - a, denominator * denominator_cf);
            }
        } else {
            step = factual_step(x, s);
            difference = counterfactual_step(x, s) - step;
        }
        x.delta = fma(Value(s.keep), x.delta, difference);
        if constexpr (Theta) x.theta = fma(Value(s.keep), x.theta, Value(0.0f) - step);
    }

    // The common step, where both sides see the same gradient g = scale * payload: the scale is already in the moments.
    template <bool Theta, class Value>
    LMC_HD static void advance_same(Lane<Value>& x, const Step& s, Value payload, float moment1, float moment1_cf,
                                    float moment2) {
        accumulate_same(x, payload, moment1, moment1_cf, moment2);
        move<Theta>(x, s);
    }

    template <class Value>
    LMC_HD static void accumulate_same(Lane<Value>& x, Value payload, float moment1, float moment1_cf, float moment2) {
        const Value w = Value(moment2) * payload;
        x.state[0] = fma(Value(moment1), payload, x.state[0]);
        x.counterfactual[0] = fma(Value(moment1_cf), payload, x.counterfactual[0]);
        x.state[1] = fma(w, w, x.state[1]);
        x.counterfactual[1] = fma(w, w, x.counterfactual[1]);
    }

    // `move` of a quick step, where x.delta is X. A CPU is short of multipliers here: what could be taken out of the
    // products is, and the rest is added.
    template <class Value>
    LMC_HD static void move_quickly(Lane<Value>& x, const QuickStep& s) {
        const Value denominator = quick_doubled_root(x.state[1]) + Value(s.eps);
        const Value denominator_cf = quick_doubled_root(x.counterfactual[1]) + Value(s.eps);
        const Value a = rounded_product(x.state[0], denominator_cf);
        const Value b = rounded_product(x.counterfactual[0], denominator);
        x.delta = fma(Value(s.size), quick_quotient(b - a, denominator * denominator_cf), x.delta);
    }

    // A step on both sides with FOLDED_CF that damping and injections alone tell apart, g = scale * payload. The scale
    // is a power of two, so both sides round alike.
    template <bool Theta, class Value>
    LMC_HD static void advance_damped(Lane<Value>& x, const Step& s, Value payload, float scale, Value injected) {
        const Value removed = fma(Value(s.damping), x.delta, injected);
        accumulate(x.state, payload, Value(s.moment1 * scale), Value(s.moment2 * scale));
        const Value seen = fma(Value(scale), payload, Value(0.0f) - removed);
        accumulate(x.counterfactual, seen, Value(s.moment1_cf), Value(s.moment2_cf));
        Step known = s;
        known.flags = FOLDED_CF;
        move<Theta>(x, known);
    }
};

// One step of one request.
template <class Rule, bool Theta, class Value>
LMC_HD void advance(Lane<Value>& x, const typename Rule::Step& s, Value g, Value injected, Value curvature) {
    if constexpr (Rule::states == 2) {
        if (!(s.flags & (FACTUAL_ONLY | SKIP))) {  // one division for both sides
            const Value seen = Rule::template seen<Theta>(s, g, x.theta);
            const Value removed = removed_gradient(s, g, injected, curvature, x.delta);
            Rule::accumulate(x.state, seen, Value(s.moment1), Value(s.moment2));
            Rule::accumulate(x.counterfactual, seen - removed, Value(s.moment1_cf), Value(s.moment2_cf));
            return Rule::template move<Theta>(x, s);
        }
        if constexpr (!Theta) {  // nobody follows, and nobody asks where the step leads
            if (s.flags & FACTUAL_ONLY)
                return Rule::accumulate(x.state, Rule::template seen<Theta>(s, g, x.theta), Value(s.moment1),
                                        Value(s.moment2));
        }
    }
    Facts<Value> facts;
    Rule::template step<Theta>(x, s, g, facts);
    Rule::template follow<Theta>(x, s, facts, injected, curvature);
}

}  // namespace lmcleaner::math
