// The list of rules: each is known to the CPU's kernels, to CUDA's and to Python (_native.rules) from here.

#pragma once

#include "math/replay_plan.h"
#include "math/rules/adam.h"
#include "math/rules/lion.h"
#include "math/rules/rmsprop.h"
#include "math/rules/sgd.h"

namespace lmcleaner::math {

template <class... Rules>
struct RuleList {};

using AllRules = RuleList<PlainSgd, MomentumSgd, LoggedUpdate, Adam, AdamW, Rmsprop, MomentumRmsprop, Lion>;

template <class F, class First, class... Rest>
inline __attribute__((always_inline)) auto with_rule(int rule, const F& f, RuleList<First, Rest...>) {
    if constexpr (sizeof...(Rest) > 0) {
        if (rule != 0) return with_rule(rule - 1, f, RuleList<Rest...>());
    }
    return f(First());
}

// f(Rule()) of rule number `rule` in the list.
template <class F>
inline __attribute__((always_inline)) auto with_rule(int rule, const F& f) {
    return with_rule(rule, f, AllRules());
}

// f(Rule()) of every rule.
template <class F, class... Rules>
void for_each_rule(const F& f, RuleList<Rules...>) {
    (f(Rules()), ...);
}

}  // namespace lmcleaner::math
