// One step of an optimizer on both sides: factual (theta, state) and counterfactual, which does not see
//
//     removed = share * g + injected + curvature * delta,        delta = theta - theta'.
//
// The specification is lmcleaner_ext/ops/reference.py; these are the same formulas for one value, in the order that
// keeps delta free of cancellation: delta is stepped by the difference of the two steps, never computed as theta -
// theta'. Where both sides see the same numbers the difference is exactly zero, because both are rounded alike.

#pragma once

#include "math/replay_step.h"
#include "math/value.h"

namespace lmcleaner::math {

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
    static constexpr int states = 0;

    template <class Value>
    struct Lane {
        Value delta, theta;
        Value state[1], counterfactual[1];  // unused
    };

    template <class Value>
    LMC_HD static void start(Lane<Value>& x) {
        x.delta = Value(0.0f);
    }

    template <bool Theta, class Value>
    LMC_HD static void advance(Lane<Value>& x, const Step& s, Value g, Value injected, Value curvature) {
        Value e = Value(s.gain) * g;
        if constexpr (Theta) e = fma(Value(s.decay), x.theta, e);
        if (s.flags & SKIP) {
            x.delta = fnma(Value(s.lr), e, x.delta);
        } else if (!(s.flags & LEAD)) {
            const Value de = removed_gradient(s, g, injected, curvature, x.delta);
            x.delta = fnma(Value(s.lr), de, x.delta);
        }
        if constexpr (Theta) x.theta = fnma(Value(s.lr), e, x.theta);
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// SGD with momentum:  b = momentum b + (1 - dampening) e;  state = [b], counterfactual = [b - b']
// ---------------------------------------------------------------------------------------------------------------------
struct MomentumSgd {
    using Step = SgdStep;
    static constexpr int states = 1;

    template <class Value>
    struct Lane {
        Value delta, theta;
        Value state[1], counterfactual[1];
    };

    template <class Value>
    LMC_HD static void start(Lane<Value>& x) {
        x.delta = Value(0.0f);
        x.counterfactual[0] = Value(0.0f);
    }

    template <bool Theta, class Value>
    LMC_HD static void advance(Lane<Value>& x, const Step& s, Value g, Value injected, Value curvature) {
        const Value momentum(s.momentum), undampened(s.undampened);
        Value& b = x.state[0];
        Value& db = x.counterfactual[0];
        Value e = Value(s.gain) * g;
        if constexpr (Theta) e = fma(Value(s.decay), x.theta, e);
        const Value old_b = s.flags & FIRST ? Value(0.0f) : b;
        b = s.flags & FIRST ? e : fma(momentum, b, undampened * e);
        const Value d = s.flags & NESTEROV ? fma(momentum, b, e) : b;
        if (s.flags & SKIP) {
            db = db + (b - old_b);
            x.delta = fnma(Value(s.lr), d, x.delta);
        } else if (!(s.flags & LEAD)) {
            const Value de = removed_gradient(s, g, injected, curvature, x.delta);
            if (s.flags & FIRST)
                db = de;
            else if (s.flags & FIRST_CF)
                db = b - (e - de);
            else
                db = fma(momentum, db, undampened * de);
            const Value dd = s.flags & NESTEROV ? fma(momentum, db, de) : db;
            x.delta = fnma(Value(s.lr), dd, x.delta);
        }
        if constexpr (Theta) x.theta = fnma(Value(s.lr), d, x.theta);
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Plain SGD replayed from its logged updates u = theta[t+1] - theta[t]; the argument `g` is u.
// ---------------------------------------------------------------------------------------------------------------------
struct LoggedUpdate {
    using Step = SgdStep;
    static constexpr int states = 0;

    template <class Value>
    using Lane = PlainSgd::Lane<Value>;

    template <class Value>
    LMC_HD static void start(Lane<Value>& x) {
        x.delta = Value(0.0f);
    }

    template <bool Theta, class Value>
    LMC_HD static void advance(Lane<Value>& x, const Step& s, Value u, Value injected, Value curvature) {
        if (s.flags & SKIP) {
            x.delta = x.delta + u;
        } else if (!(s.flags & LEAD)) {
            Value minus_lr_g = u;  // -lr g = u + lr decay theta
            if constexpr (Theta) minus_lr_g = fma(Value(s.lr * s.decay), x.theta, u);
            const Value lost = fma(curvature + Value(s.decay), x.delta, injected);
            x.delta = fma(Value(s.share), minus_lr_g, fnma(Value(s.lr), lost, x.delta));
        }
        if constexpr (Theta) x.theta = x.theta + u;
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
// D D' cannot leave the range of float32 (ONE_DIVISION).
// ---------------------------------------------------------------------------------------------------------------------
struct Adam {
    using Step = AdamStep;
    static constexpr int states = 2;

    template <class Value>
    struct Lane {
        Value delta, theta;
        Value state[2], counterfactual[2];  // M, V and M', V'
    };

    template <class Value>
    LMC_HD static void start(Lane<Value>& x) {
        x.delta = Value(0.0f);
        x.counterfactual[0] = x.state[0];
        x.counterfactual[1] = x.state[1];
    }

    template <class Value>
    LMC_HD static void rescale(Lane<Value>& x, const Step& s) {
        x.state[0] = x.state[0] * Value(s.rescale1);
        x.state[1] = x.state[1] * Value(s.rescale2);
        x.counterfactual[0] = x.counterfactual[0] * Value(s.rescale1_cf);
        x.counterfactual[1] = x.counterfactual[1] * Value(s.rescale2_cf);
    }

    // Back to m and v at the end of the window.
    template <class Value>
    LMC_HD static void finish(Lane<Value>& x, const AdamUnits& units) {
        x.state[0] = x.state[0] * Value(units.m);
        x.state[1] = x.state[1] * Value(units.v);
        x.counterfactual[0] = x.counterfactual[0] * Value(units.m_cf);
        x.counterfactual[1] = x.counterfactual[1] * Value(units.v_cf);
    }

    template <class Value>
    LMC_HD static void accumulate(Value* moments, Value g, Value moment1, Value moment2) {
        const Value w = moment2 * g;
        moments[0] = fma(moment1, g, moments[0]);
        moments[1] = fma(w, w, moments[1]);
    }

    template <class Value>
    LMC_HD static Value factual_step(const Lane<Value>& x, const Step& s) {
        return Value(s.size) * (x.state[0] / scaled_root(Value(s.root), x.state[1], Value(s.eps)));
    }

    // Both sides' moments are those of this step: move delta and theta.
    template <bool Theta, class Value>
    LMC_HD static void move(Lane<Value>& x, const Step& s) {
        Value step, difference;  // difference = step' - step
        if (s.flags & ONE_DIVISION) {
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
            const Value denominator = scaled_root(Value(s.root), x.state[1], Value(s.eps));
            const Value denominator_cf = scaled_root(Value(s.root_cf), x.counterfactual[1], Value(s.eps_cf));
            step = rounded_product(Value(s.size), x.state[0] / denominator);
            difference = rounded_product(Value(s.size_cf), x.counterfactual[0] / denominator_cf) - step;
        }
        x.delta = fma(Value(s.keep), x.delta, difference);
        if constexpr (Theta) x.theta = fma(Value(s.keep), x.theta, Value(0.0f) - step);
    }

    // The common step, where both sides see the same gradient g = scale * payload: the scale is already in the moments.
    template <bool Theta, class Value>
    LMC_HD static void advance_same(Lane<Value>& x, const Step& s, Value payload, float moment1, float moment1_cf,
                                    float moment2) {
        const Value w = Value(moment2) * payload;
        x.state[0] = fma(Value(moment1), payload, x.state[0]);
        x.counterfactual[0] = fma(Value(moment1_cf), payload, x.counterfactual[0]);
        x.state[1] = fma(w, w, x.state[1]);
        x.counterfactual[1] = fma(w, w, x.counterfactual[1]);
        move<Theta>(x, s);
    }

    // A step on both sides with ONE_DIVISION that damping and injections alone tell apart, g = scale * payload. The
    // scale is a power of two, so both sides round alike.
    template <bool Theta, class Value>
    LMC_HD static void advance_damped(Lane<Value>& x, const Step& s, Value payload, float scale, Value injected) {
        const Value removed = fma(Value(s.damping), x.delta, injected);
        accumulate(x.state, payload, Value(s.moment1 * scale), Value(s.moment2 * scale));
        const Value seen = fma(Value(scale), payload, Value(0.0f) - removed);
        accumulate(x.counterfactual, seen, Value(s.moment1_cf), Value(s.moment2_cf));
        Step known = s;
        known.flags = ONE_DIVISION;
        move<Theta>(x, known);
    }

    template <bool Theta, class Value>
    LMC_HD static void advance(Lane<Value>& x, const Step& s, Value g, Value injected, Value curvature) {
        Value seen = Value(s.gain) * g;
        if constexpr (Theta) {
            if (s.decay != 0.0f) seen = fma(Value(s.decay), x.theta, seen);
        }
        accumulate(x.state, seen, Value(s.moment1), Value(s.moment2));
        if (s.flags & (LEAD | SKIP)) {
            const Value step = factual_step(x, s);
            if (s.flags & SKIP && !(s.flags & LEAD)) {
                x.delta = x.delta - step;
                if constexpr (Theta) x.delta = fnma(Value(s.lost), x.theta, x.delta);
            }
            if constexpr (Theta) x.theta = fma(Value(s.keep), x.theta, Value(0.0f) - step);
            return;
        }
        const Value removed = removed_gradient(s, g, injected, curvature, x.delta);
        accumulate(x.counterfactual, seen - removed, Value(s.moment1_cf), Value(s.moment2_cf));
        move<Theta>(x, s);
    }
};

}  // namespace lmcleaner::math
