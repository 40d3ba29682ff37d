// optimizer_replay_window on the CPU: a block of parameters takes all steps with its deviation and both sides' state in
// registers, and only the log streams past. The formulas are in math/rules/.
//
// Several requests share the factual side: it takes some steps, and then each request follows it over these steps with
// its own deviation and state in registers.

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>
#include <atomic>
#include <optional>
#include <vector>

#include "cpu/passing_checksums.h"
#include "cpu/replay_tile.h"

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {
namespace {

using ChunkSums = std::vector<std::vector<double>>;  // [requests, chunks]

// With checksums a block of this many elements is hashed, all steps of it, just before it is used: all steps of two
// blocks, this one and the next that is being fetched, fit into the second-level cache.
constexpr int64_t hashed_elements = 2048;

// ---------------------------------------------------------------------------------------------------------------------
// One request: both sides of elements [offset, offset + count) of a tile through all steps
// ---------------------------------------------------------------------------------------------------------------------

template <class Rule, bool has_theta, class Log>
void replay_pack(const Tile<Rule>& tile, const Log& read, int offset, int count) {
    constexpr bool partial = Log::partial;
    const ReplayArguments& a = tile.arguments;
    const int64_t begin = tile.begin + offset;
    math::Lane<Pack> x;
    load_factual<Rule, has_theta, partial>(a, x, begin, count);
    load_counterfactual<Rule, partial>(a, 0, x, begin, count);

    float unit = 1.0f;  // delta = unit * x.delta
    const auto leave_unit = [&]() __attribute__((always_inline)) {
        if (unit != 1.0f) x.delta = Pack(unit) * x.delta;
        unit = 1.0f;
    };
    for (int64_t t = 0; t < a.steps; ++t) {
        const typename Rule::Step& s = tile.steps[t];
        const TileStep<Rule>& log = tile.log[t];
        const auto payload = [&]() __attribute__((always_inline)) {
            return log.payload == nullptr ? Pack(0.0f) : read.load(log.payload, offset, count, tile.prefetch);
        };
        const auto injected = [&]() __attribute__((always_inline)) {
            return injected_gradient<partial>(tile, 0, t, offset, count);
        };
        if (s.flags & math::START) Rule::start(x, x);  // delta is zero then, in any unit
        if constexpr (Rule::has_quick_steps && !has_theta) {
            if (tile.quick[t].applies()) {
                Rule::before(x, s);
                Rule::advance_quickly(x, s, tile.quick[t], payload(), log.scale, log.scaled, injected);
                unit = tile.quick[t].unit;
                continue;
            }
            leave_unit();
        }
        if (s.flags & math::ABSENT) continue;
        const Pack g = payload();
        Rule::before(x, s);
        if (Rule::template advance_payload<has_theta>(x, s, g, log.scaled)) continue;
        Pack removed(0.0f), diagonal(0.0f);
        if (tile.plan.injection_begin[t] != tile.plan.injection_begin[t + 1] && !(s.flags & math::FACTUAL_ONLY))
            removed = injected();
        if (a.diagonal != nullptr) diagonal = load_state<partial>(a.diagonal + begin, count);
        math::advance<Rule, has_theta>(x, s, g * Pack(log.scale), removed, curvature_of(tile, s, diagonal));
    }
    leave_unit();
    if (a.lead > 0 && a.lead == a.steps) Rule::start(x, x);
    Rule::finish(x, tile.units_of_request(0));
    store_factual<Rule, has_theta, partial>(a, x, begin, count);
    store_counterfactual<Rule, partial>(a, 0, x, begin, count);
}

// ---------------------------------------------------------------------------------------------------------------------
// Several requests. What they need of the factual steps stays in the first-level cache while one after the other
// follows them.
// ---------------------------------------------------------------------------------------------------------------------
constexpr int steps_at_once = 16;

// The factual side from step `first` to `last`.
template <class Rule, bool has_theta, bool partial>
void step_pack(const Tile<Rule>& tile, math::Factual<Pack>& side, int64_t first, int64_t last, int offset, int count,
               math::Facts<Pack>* facts) {
    math::Factual<Pack> x = side;
    for (int64_t t = first; t < last; ++t) {
        const typename Rule::Step& s = tile.steps[t];
        if (s.flags & math::ABSENT) continue;
        const TileStep<Rule>& log = tile.log[t];
        const Pack g = log.payload == nullptr
                           ? Pack(0.0f)
                           : Pack(log.scale) * load_any<partial>(tile.arguments.gradients.format, log.payload, offset,
                                                                 count, tile.prefetch);
        Rule::before(x, s);
        Rule::template step<has_theta>(x, s, g, facts[t - first]);
    }
    side = x;
}

// Request r over the same steps.
template <class Rule, bool has_theta, bool partial>
void follow_pack(const Tile<Rule>& tile, math::Counterfactual<Pack>& side, int64_t r, int64_t first, int64_t last,
                 int offset, int count, const math::Facts<Pack>* facts) {
    const ReplayArguments& a = tile.arguments;
    const typename Rule::Step* steps = tile.steps_of_request(r);
    const int32_t* injection_begin = tile.plan.injection_begin.data() + r * a.steps;
    math::Counterfactual<Pack> x = side;
    for (int64_t t = first; t < last; ++t) {
        const typename Rule::Step& s = steps[t];
        if (s.flags & math::ABSENT) continue;
        Rule::before(x, s);
        Pack injected(0.0f), diagonal(0.0f);
        if (injection_begin[t] != injection_begin[t + 1])
            injected = injected_gradient<partial>(tile, r, t, offset, count);
        if (a.diagonal != nullptr) diagonal = load_state<partial>(a.diagonal + tile.begin + offset, count);
        Rule::template follow<has_theta>(x, s, facts[t - first], injected, curvature_of(tile, s, diagonal));
    }
    side = x;
}

template <class Rule, bool has_theta, bool partial>
void replay_requests(const Tile<Rule>& tile, int offset, int count, math::Counterfactual<Pack>* sides) {
    const ReplayArguments& a = tile.arguments;
    const int64_t begin = tile.begin + offset, requests = a.requests();
    math::Facts<Pack> facts[steps_at_once];
    math::Factual<Pack> x;
    load_factual<Rule, has_theta, partial>(a, x, begin, count);
    for (int64_t r = 0; r < requests; ++r) load_counterfactual<Rule, partial>(a, r, sides[r], begin, count);

    for (int64_t first = 0, last; first < a.steps; first = last) {
        last = std::min(first + steps_at_once, first < a.lead ? a.lead : a.steps);
        if (first == a.lead && a.lead > 0)
            for (int64_t r = 0; r < requests; ++r) Rule::start(sides[r], x);
        step_pack<Rule, has_theta, partial>(tile, x, first, last, offset, count, facts);
        if (first < a.lead) continue;
        for (int64_t r = 0; r < requests; ++r)
            follow_pack<Rule, has_theta, partial>(tile, sides[r], r, first, last, offset, count, facts);
    }
    for (int64_t r = 0; r < requests; ++r) {
        if (a.lead > 0 && a.lead == a.steps) Rule::start(sides[r], x);
        Rule::finish(sides[r], tile.units_of_request(r));
        store_counterfactual<Rule, partial>(a, r, sides[r], begin, count);
    }
    Rule::finish(x, tile.units_of_request(0));
    store_factual<Rule, has_theta, partial>(a, x, begin, count);
}

// ---------------------------------------------------------------------------------------------------------------------
// All elements
// ---------------------------------------------------------------------------------------------------------------------

// In a fixed order, so that the sum does not depend on the threads.
double sum_of_squares(const float* x, int64_t n) {
    double squares[8] = {};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; ++j) squares[j] += double(x[i + j]) * double(x[i + j]);
    for (; i < n; ++i) squares[i % 8] += double(x[i]) * double(x[i]);
    double sum = 0;
    for (double square : squares) sum += square;
    return sum;
}

// Elements [begin, end), tile by tile: tiles end at scale blocks and at segments.
template <class Rule, bool has_theta, class Log>
void replay_range(const ReplayArguments& a, const ReplayPlan& plan, const Log& read, int64_t begin, int64_t end,
                  TileStep<Rule>* log, math::Counterfactual<Pack>* sides) {
    const RulePlan<Rule>& own = plan.of<Rule>();
    const int prefetch = a.checks == nullptr ? prefetch_distance : int(hashed_elements * bytes_of(read.format));
    const AnyFormat<true> read_rest{read.format};
    int64_t low = 0, high = a.segment_count;  // the first segment that ends after `begin`
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (a.segments[middle].end <= begin)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < a.segment_count && a.segments[low].begin < end; ++low) {
        const Segment& segment = a.segments[low];
        const int64_t last = std::min(segment.end, end), first_step = segment.parameter_class * a.steps;
        const typename Rule::QuickStep* quick = own.quick.empty() ? nullptr : own.quick.data() + first_step;
        for (int64_t at = std::max(segment.begin, begin); at < last;) {
            const int count = int(std::min((at / block_size + 1) * block_size, last) - at);
            const typename Rule::Step* steps = own.steps.data() + first_step;
            prepare<Rule>(a, steps, at, log);
            const Tile<Rule> tile{a, plan, at, count, segment.parameter_class, steps, quick, log, prefetch};
            int offset = 0;
            for (; offset + Pack::width <= count; offset += Pack::width) {
                if (sides == nullptr)
                    replay_pack<Rule, has_theta>(tile, read, offset, Pack::width);
                else
                    replay_requests<Rule, has_theta, false>(tile, offset, Pack::width, sides);
            }
            if (offset < count && sides == nullptr)
                replay_pack<Rule, has_theta>(tile, read_rest, offset, count - offset);
            else if (offset < count)
                replay_requests<Rule, has_theta, true>(tile, offset, count - offset, sides);
            at += count;
        }
    }
}

// Without checksums a task is one chunk of sums; with them it is what one checksum covers.
template <class Rule, bool has_theta, class Log>
bool replay(const ReplayArguments& a, const ReplayPlan& plan, const Log& read, int threads, void* workspace,
            ChunkSums& chunk_sums) {
    static_assert(sizeof(TileStep<Rule>) <= replay_workspace_per_step);
    const int64_t task_size = a.checks == nullptr ? chunk_size : a.checks->chunk_elements;
    const int64_t tasks = (a.n + task_size - 1) / task_size;
    auto* logs = static_cast<TileStep<Rule>*>(workspace);
    std::atomic<bool> intact = true;
#pragma omp parallel num_threads(threads) if (threads > 1 && tasks > 1)
    {
#if defined(_OPENMP)
        TileStep<Rule>* log = logs + omp_get_thread_num() * a.steps;
#else
        TileStep<Rule>* log = logs;
#endif
        std::vector<math::Counterfactual<Pack>> sides(a.requests() > 1 ? size_t(a.requests()) : 0);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; ++task) {
            const int64_t end = std::min((task + 1) * task_size, a.n);
            std::optional<PassingChecksums> checksums;
            if (a.checks != nullptr) checksums.emplace(a.checks->vectors, size_t(a.checks->first_chunk + task));
            for (int64_t chunk = task * task_size; chunk < end; chunk += chunk_size) {
                const int64_t chunk_end = std::min(chunk + chunk_size, end);
                const int64_t stride = checksums ? hashed_elements : chunk_size;
                for (int64_t at = chunk; at < chunk_end; at += stride) {
                    const int64_t stop = std::min(at + stride, chunk_end);
                    if (checksums) checksums->pass(uint64_t((stop - at) * a.checks->element_bytes), stop == end);
                    replay_range<Rule, has_theta>(a, plan, read, at, stop, log, sides.empty() ? nullptr : sides.data());
                }
                for (int64_t r = 0; r < a.requests(); ++r)
                    chunk_sums[r][chunk / chunk_size] = sum_of_squares(a.delta[r] + chunk, chunk_end - chunk);
            }
            if (checksums && !checksums->intact()) intact = false;
        }
    }
    return intact;
}

template <class Rule, bool has_theta>
bool replay_format(const ReplayArguments& a, const ReplayPlan& plan, int threads, void* workspace,
                   ChunkSums& chunk_sums) {
    const Format format = a.gradients.format;
    if constexpr (!Rule::loop_for_each_format)
        return replay<Rule, has_theta>(a, plan, AnyFormat<false>{format}, threads, workspace, chunk_sums);
    else
        return with_format(format, [&](auto known) {
            return replay<Rule, has_theta>(a, plan, WholePacks<known()>(), threads, workspace, chunk_sums);
        });
}

}  // namespace

bool optimizer_replay_window(const ReplayArguments& a, const ReplayPlan& plan, int threads, void* workspace,
                             ChunkSums& chunk_sums) {
    return math::with_rule(a.rule, [&](auto rule) __attribute__((always_inline)) {
        using Rule = typename decltype(rule)::Kernel;
        if (a.theta != nullptr) return replay_format<Rule, true>(a, plan, threads, workspace, chunk_sums);
        return replay_format<Rule, false>(a, plan, threads, workspace, chunk_sums);
    });
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
