// What the loops of optimizer_replay_window need, prepared once per call on the host: the coefficient table as the
// rule's own steps and the injections of each step. No loop converts a coefficient.

#pragma once

#include <memory>

#include "math/replay_arguments.h"

namespace lmcleaner {

// The part that the rule prepares; `Rule` is the one whose formulas run.
template <class Rule>
struct RulePlan {
    std::vector<typename Rule::Step>
        steps;  // [requests, classes, steps]; the factual columns are those of all requests
    std::vector<typename Rule::Units> units;      // [requests, classes]
    std::vector<typename Rule::QuickStep> quick;  // [classes, steps], or empty
    bool plain = false;                           // for a rule with a plain window: whether this is one
};

class ReplayPlan {
  public:
    explicit ReplayPlan(const ReplayArguments& arguments);

    template <class Rule>
    const RulePlan<Rule>& of() const {
        return *static_cast<const RulePlan<Rule>*>(rule_.get());
    }

    std::vector<int32_t> injection_begin;  // [requests * steps + 1]: step t of request r has [begin[i], begin[i + 1]),
                                           // i = r * steps + t
    std::vector<float> injection_weight;   // [injections]

  private:
    std::shared_ptr<const void> rule_;
};

}  // namespace lmcleaner
