// Adam and AdamW: torch.optim.Adam, torch.optim.AdamW.
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

#pragma once

#include "math/optimizer_replay.h"
#include "math/rules/adam_steps.h"

namespace lmcleaner::math {

struct Adam : RuleDefaults {
    using Kernel = Adam;
    using Step = AdamStep;
    using Units = AdamUnits;
    using QuickStep = AdamQuickStep;
    static constexpr const char* name = "adam";
    static constexpr int states = 2, facts = 1;
    static constexpr bool decoupled = false;
    static constexpr bool has_quick_steps = true, has_plain_window = true, loop_for_each_format = true;

    static void plan(const ReplayArguments& a, const std::vector<int32_t>& injection_begin, RulePlan<Adam>& plan) {
        plan_adam(a, injection_begin, decoupled, plan);
    }

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

    template <class Side>
    LMC_HD static void before(Side& x, const Step& s) {
        if (s.flags & RESCALE) rescale(x, s);
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

    // The coefficients of a payload: its scale is in them.
    struct Scaled {
        float moment1, moment1_cf, moment2;
    };

    LMC_HD static Scaled scaled(const Step& s, float scale) {
        const float factor = s.gain * scale;
        return {s.moment1 * factor, s.moment1_cf * factor, s.moment2 * factor};
    }

    // The common step, where both sides see the same gradient.
    template <bool Theta, class Value>
    LMC_HD static bool advance_payload(Lane<Value>& x, const Step& s, const Value& payload, const Scaled& scaled) {
        if (!(s.flags & SAME_GRADIENT)) return false;
        accumulate_same(x, payload, scaled);
        move<Theta>(x, s);
        return true;
    }

    template <class Value>
    LMC_HD static void accumulate_same(Lane<Value>& x, const Value& payload, const Scaled& scaled) {
        const Value w = Value(scaled.moment2) * payload;
        x.state[0] = fma(Value(scaled.moment1), payload, x.state[0]);
        x.counterfactual[0] = fma(Value(scaled.moment1_cf), payload, x.counterfactual[0]);
        x.state[1] = fma(w, w, x.state[1]);
        x.counterfactual[1] = fma(w, w, x.counterfactual[1]);
    }

    // A quick step, where x.delta is X; `injected` is a function.
    template <class Value, class Injected>
    LMC_HD static void advance_quickly(Lane<Value>& x, const Step& s, const QuickStep& quick, const Value& payload,
                                       float scale, const Scaled& scaled, const Injected& injected) {
        if (quick.kind == QuickKind::factual)
            return accumulate(x.state, payload, Value(scaled.moment1), Value(scaled.moment2));
        if (quick.kind == QuickKind::same) {
            accumulate_same(x, payload, scaled);
        } else {
            const Value g = Value(s.gain * scale) * payload;
            const Value g_cf = g - injected();
            accumulate(x.state, g, Value(s.moment1), Value(s.moment2));
            accumulate(x.counterfactual, g_cf, Value(s.moment1_cf), Value(s.moment2_cf));
        }
        move_quickly(x, quick);
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

    // A step of a plain window: on both sides with FOLDED_CF, told apart by damping and injections alone, g = scale *
    // payload. The scale is a power of two, so both sides round alike.
    template <bool Theta, class Value>
    LMC_HD static void advance_plain(Lane<Value>& x, const Step& s, Value payload, float scale, Value injected) {
        const Value removed = fma(Value(s.damping), x.delta, injected);
        accumulate(x.state, payload, Value(s.moment1 * scale), Value(s.moment2 * scale));
        const Value seen = fma(Value(scale), payload, Value(0.0f) - removed);
        accumulate(x.counterfactual, seen, Value(s.moment1_cf), Value(s.moment2_cf));
        Step known = s;
        known.flags = FOLDED_CF;
        move<Theta>(x, known);
    }

    // Both sides in one, where they both step: one division. And where nobody follows or asks where the step leads.
    template <bool Theta, class Value>
    LMC_HD static bool advance_at_once(Lane<Value>& x, const Step& s, const Value& g, const Value& injected,
                                       const Value& curvature) {
        if (!(s.flags & (FACTUAL_ONLY | SKIP))) {
            const Value gradient = seen<Theta>(s, g, x.theta);
            const Value removed = removed_gradient(s, g, injected, curvature, x.delta);
            accumulate(x.state, gradient, Value(s.moment1), Value(s.moment2));
            accumulate(x.counterfactual, gradient - removed, Value(s.moment1_cf), Value(s.moment2_cf));
            move<Theta>(x, s);
            return true;
        }
        if constexpr (!Theta) {
            if (s.flags & FACTUAL_ONLY) {
                accumulate(x.state, seen<Theta>(s, g, x.theta), Value(s.moment1), Value(s.moment2));
                return true;
            }
        }
        return false;
    }
};

struct AdamW : Adam {
    static constexpr const char* name = "adamw";
    static constexpr bool decoupled = true;

    static void plan(const ReplayArguments& a, const std::vector<int32_t>& injection_begin, RulePlan<Adam>& plan) {
        plan_adam(a, injection_begin, decoupled, plan);
    }
};

}  // namespace lmcleaner::math
