// optimizer_replay_window on the CPU: a block of parameters takes all steps with its deviation and both sides' state in
// registers, and only the log streams past. The formulas are in math/optimizer_replay.h.
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

// A step that is quicker than the whole rule (QuickKind); x.delta is in the step's unit.
template <Format format, bool partial>
LMC_REGISTER void step_quickly(const Tile<math::AdamStep>& tile, math::Lane<Pack>& x, int64_t t, int offset,
                               int count) {
    const math::AdamStep& s = tile.steps[t];
    const TileStep& log = tile.log[t];
    if (s.flags & math::RESCALE) math::Adam::rescale(x, s);
    const Pack payload =
        log.payload == nullptr ? Pack(0.0f) : load_some<format, partial>(log.payload, offset, count, tile.prefetch);
    if (tile.quick[t].kind == math::QuickKind::factual)
        return math::Adam::accumulate(x.state, payload, Pack(log.moment1), Pack(log.moment2));
    if (tile.quick[t].kind == math::QuickKind::same) {
        math::Adam::accumulate_same(x, payload, log.moment1, log.moment1_cf, log.moment2);
    } else {
        const Pack g = Pack(s.gain * log.scale) * payload;
        const Pack g_cf = g - injected_gradient<partial>(tile, 0, t, offset, count);
        math::Adam::accumulate(x.state, g, Pack(s.moment1), Pack(s.moment2));
        math::Adam::accumulate(x.counterfactual, g_cf, Pack(s.moment1_cf), Pack(s.moment2_cf));
    }
    math::Adam::move_quickly(x, tile.quick[t]);
}

template <class Rule, bool has_theta, Format format, bool partial>
void replay_pack(const Tile<typename Rule::Step>& tile, int offset, int count) {
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
        const TileStep& log = tile.log[t];
        if (s.flags & math::START) Rule::start(x, x);  // delta is zero then, in any unit
        if constexpr (std::is_same_v<Rule, math::Adam> && !has_theta) {
            if (tile.quick[t].kind != math::QuickKind::none) {
                step_quickly<format, partial>(tile, x, t, offset, count);
                unit = tile.quick[t].unit;
                continue;
            }
            leave_unit();
        }
        if (s.flags & math::ABSENT) continue;
        const Pack payload =
            log.payload == nullptr ? Pack(0.0f) : load_some<format, partial>(log.payload, offset, count, tile.prefetch);
        if constexpr (std::is_same_v<Rule, math::Adam>) {
            if (s.flags & math::RESCALE) Rule::rescale(x, s);
            if (s.flags & math::SAME_GRADIENT) {
                Rule::template advance_same<has_theta>(x, s, payload, log.moment1, log.moment1_cf, log.moment2);
                continue;
            }
        }
        Pack injected(0.0f), diagonal(0.0f);
        if (tile.plan.injection_begin[t] != tile.plan.injection_begin[t + 1] && !(s.flags & math::FACTUAL_ONLY))
            injected = injected_gradient<partial>(tile, 0, t, offset, count);
        if (a.diagonal != nullptr) diagonal = load_state<partial>(a.diagonal + begin, count);
        math::advance<Rule, has_theta>(x, s, payload * Pack(log.scale), injected, curvature_of(tile, s, diagonal));
    }
    leave_unit();
    if (a.lead > 0 && a.lead == a.steps) Rule::start(x, x);
    if constexpr (std::is_same_v<Rule, math::Adam>) Rule::finish(x, tile.plan.units[tile.parameter_class]);
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
void step_pack(const Tile<typename Rule::Step>& tile, math::Factual<Pack>& side, int64_t first, int64_t last,
               int offset, int count, math::Facts<Pack>* facts) {
    math::Factual<Pack> x = side;
    for (int64_t t = first; t < last; ++t) {
        const typename Rule::Step& s = tile.steps[t];
        if (s.flags & math::ABSENT) continue;
        const TileStep& log = tile.log[t];
        const Pack g = log.payload == nullptr
                           ? Pack(0.0f)
                           : Pack(log.scale) * load_any<partial>(tile.arguments.gradients.format, log.payload, offset,
                                                                 count, tile.prefetch);
        if constexpr (std::is_same_v<Rule, math::Adam>) {
            if (s.flags & math::RESCALE) Rule::rescale(x, s);
        }
        Rule::template step<has_theta>(x, s, g, facts[t - first]);
    }
    side = x;
}

// Request r over the same steps.
template <class Rule, bool has_theta, bool partial>
void follow_pack(const Tile<typename Rule::Step>& tile, math::Counterfactual<Pack>& side, int64_t r, int64_t first,
                 int64_t last, int offset, int count, const math::Facts<Pack>* facts) {
    const ReplayArguments& a = tile.arguments;
    const typename Rule::Step* steps = tile.steps_of_request(r);
    const int32_t* injection_begin = tile.plan.injection_begin.data() + r * a.steps;
    math::Counterfactual<Pack> x = side;
    for (int64_t t = first; t < last; ++t) {
        const typename Rule::Step& s = steps[t];
        if (s.flags & math::ABSENT) continue;
        if constexpr (std::is_same_v<Rule, math::Adam>) {
            if (s.flags & math::RESCALE) Rule::rescale(x, s);
        }
        Pack injected(0.0f), diagonal(0.0f);
        if (injection_begin[t] != injection_begin[t + 1])
            injected = injected_gradient<partial>(tile, r, t, offset, count);
        if (a.diagonal != nullptr) diagonal = load_state<partial>(a.diagonal + tile.begin + offset, count);
        Rule::template follow<has_theta>(x, s, facts[t - first], injected, curvature_of(tile, s, diagonal));
    }
    side = x;
}

template <class Rule, bool has_theta, bool partial>
void replay_requests(const Tile<typename Rule::Step>& tile, int offset, int count, math::Counterfactual<Pack>* sides) {
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
        if constexpr (std::is_same_v<Rule, math::Adam>)
            Rule::finish(sides[r], tile.plan.units[r * a.classes + tile.parameter_class]);
        store_counterfactual<Rule, partial>(a, r, sides[r], begin, count);
    }
    if constexpr (std::is_same_v<Rule, math::Adam>) Rule::finish(x, tile.plan.units[tile.parameter_class]);
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
template <class Rule, bool has_theta, Format format>
void replay_range(const ReplayArguments& a, const ReplayPlan& plan, int64_t begin, int64_t end, TileStep* log,
                  math::Counterfactual<Pack>* sides) {
    using Step = typename Rule::Step;
    const int prefetch = a.checks == nullptr ? prefetch_distance : int(hashed_elements * sizeof(Payload<format>));
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
        const int64_t last = std::min(segment.end, end);
        for (int64_t at = std::max(segment.begin, begin); at < last;) {
            const int count = int(std::min((at / block_size + 1) * block_size, last) - at);
            const Step* steps = steps_of<Step>(plan) + segment.parameter_class * a.steps;
            prepare<format>(a, steps, at, log);
            const math::QuickStep* quick =
                plan.quick.empty() ? nullptr : plan.quick.data() + segment.parameter_class * a.steps;
            const Tile<Step> tile{a, plan, at, count, segment.parameter_class, steps, quick, log, prefetch};
            int offset = 0;
            for (; offset + Pack::width <= count; offset += Pack::width) {
                if (sides == nullptr)
                    replay_pack<Rule, has_theta, format, false>(tile, offset, Pack::width);
                else
                    replay_requests<Rule, has_theta, false>(tile, offset, Pack::width, sides);
            }
            if (offset < count && sides == nullptr)
                replay_pack<Rule, has_theta, format, true>(tile, offset, count - offset);
            else if (offset < count)
                replay_requests<Rule, has_theta, true>(tile, offset, count - offset, sides);
            at += count;
        }
    }
}

// Without checksums a task is one chunk of sums; with them it is what one checksum covers.
template <class Rule, bool has_theta, Format format>
bool replay(const ReplayArguments& a, const ReplayPlan& plan, int threads, void* workspace, ChunkSums& chunk_sums) {
    const int64_t task_size = a.checks == nullptr ? chunk_size : a.checks->chunk_elements;
    const int64_t tasks = (a.n + task_size - 1) / task_size;
    auto* logs = static_cast<TileStep*>(workspace);
    std::atomic<bool> intact = true;
#pragma omp parallel num_threads(threads) if (threads > 1 && tasks > 1)
    {
#if defined(_OPENMP)
        TileStep* log = logs + omp_get_thread_num() * a.steps;
#else
        TileStep* log = logs;
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
                    replay_range<Rule, has_theta, format>(a, plan, at, stop, log,
                                                          sides.empty() ? nullptr : sides.data());
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
    return with_format(a.gradients.format, [&](auto constant) {
        return replay<Rule, has_theta, constant()>(a, plan, threads, workspace, chunk_sums);
    });
}

template <class Rule>
bool replay_theta(const ReplayArguments& a, const ReplayPlan& plan, int threads, void* workspace,
                  ChunkSums& chunk_sums) {
    if (a.theta != nullptr) return replay_format<Rule, true>(a, plan, threads, workspace, chunk_sums);
    return replay_format<Rule, false>(a, plan, threads, workspace, chunk_sums);
}

}  // namespace

bool optimizer_replay_window(const ReplayArguments& a, const ReplayPlan& plan, int threads, void* workspace,
                             ChunkSums& chunk_sums) {
    switch (a.rule) {
        case math::Rule::sgd:
            if (a.state.empty()) return replay_theta<math::PlainSgd>(a, plan, threads, workspace, chunk_sums);
            return replay_theta<math::MomentumSgd>(a, plan, threads, workspace, chunk_sums);
        case math::Rule::update:
            return replay_theta<math::LoggedUpdate>(a, plan, threads, workspace, chunk_sums);
        case math::Rule::adam:
        case math::Rule::adamw:
            break;
    }
    return replay_theta<math::Adam>(a, plan, threads, workspace, chunk_sums);
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
