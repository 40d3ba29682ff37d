// One step of an optimizer on both sides: factual (theta, state) and counterfactual, which does not see
//
//     removed = share * g + injected + curvature * delta,        delta = theta - theta'.
//
// The specification is lmcleaner_ext/ops/reference/optimizer_replay.py; these are the same formulas for one value, in
// the order that keeps delta free of cancellation: delta is stepped by the difference of the two steps, never computed
// as theta - theta'. Where both sides see the same numbers the difference is exactly zero, because both are rounded
// alike.
//
// A rule is a factual `step`, and how the counterfactual side of a request follows it: one file each in math/rules/.
// `advance` is both for one request.

#pragma once

#include "math/replay_arguments.h"
#include "math/replay_plan.h"
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

// What a rule need not have. A rule derives from it, has
//
//     Kernel                     the rule whose formulas run: itself, or one that differs in its preparation alone
//     name, states, facts        the name in Python; how many vectors of state, at most two; how many Facts::more
//     Step, plan()               the coefficients of a step, and how all of a call are prepared from the table
//     start(), step(), follow()  the formulas
//
// and whatever of the following makes it quicker.
struct RuleDefaults {
    struct Nothing {};

    // The factual and the counterfactual state are kept in units of their own: before() a step, finish() at the end.
    using Units = Nothing;
    template <class Side, class Step>
    LMC_HD static void before(Side&, const Step&) {}
    template <class Side>
    LMC_HD static void finish(Side&, const Nothing&) {}

    // What the scale of a payload may be multiplied into, and the step that needs nothing else: whether it was taken.
    using Scaled = Nothing;
    template <class Step>
    LMC_HD static Scaled scaled(const Step&, float) {
        return {};
    }
    template <bool Theta, class Value, class Step>
    LMC_HD static bool advance_payload(Lane<Value>&, const Step&, const Value&, const Nothing&) {
        return false;
    }

    // Both sides in one: whether it was done.
    template <bool Theta, class Value, class Step>
    LMC_HD static bool advance_at_once(Lane<Value>&, const Step&, const Value&, const Value&, const Value&) {
        return false;
    }

    // CPU: less than the whole rule, for one request without theta: advance_quickly().
    using QuickStep = Nothing;
    static constexpr bool has_quick_steps = false;
    // CUDA: a kernel of its own for the windows that plan() calls plain: advance_plain().
    static constexpr bool has_plain_window = false;
    // CPU: a loop for each format of the log, which the compiler then knows: quicker, and five times as much to
    // compile.
    static constexpr bool loop_for_each_format = false;
};

// One step of one request.
template <class Rule, bool Theta, class Value>
LMC_HD void advance(Lane<Value>& x, const typename Rule::Step& s, Value g, Value injected, Value curvature) {
    if (Rule::template advance_at_once<Theta>(x, s, g, injected, curvature)) return;
    Facts<Value> facts;
    Rule::template step<Theta>(x, s, g, facts);
    Rule::template follow<Theta>(x, s, facts, injected, curvature);
}

}  // namespace lmcleaner::math
