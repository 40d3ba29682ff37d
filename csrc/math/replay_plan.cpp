#include "math/replay_plan.h"

#include "math/rules/rules.h"

namespace lmcleaner {

ReplayPlan::ReplayPlan(const ReplayArguments& a) {
    const int64_t requests = a.requests(), injections = int64_t(a.injections.payloads.size());
    injection_begin.assign(size_t(requests * a.steps + 1), 0);
    for (int64_t i = 0; i < injections; ++i) {
        const double* row = a.injection_table + i * a.injection_columns;
        const int64_t request = a.injection_columns > 2 ? int64_t(row[2]) : 0;
        ++injection_begin[size_t(request * a.steps + int64_t(row[0]) + 1)];
        injection_weight.push_back(float(row[1]));
    }
    for (size_t i = 1; i < injection_begin.size(); ++i) injection_begin[i] += injection_begin[i - 1];

    math::with_rule(a.rule, [&](auto rule) {
        using Rule = decltype(rule);
        auto plan = std::make_shared<RulePlan<typename Rule::Kernel>>();
        plan->units.resize(size_t(requests * a.classes));
        plan->steps.resize(size_t(requests * a.classes * a.steps));
        Rule::plan(a, injection_begin, *plan);
        rule_ = std::move(plan);
    });
}

}  // namespace lmcleaner
