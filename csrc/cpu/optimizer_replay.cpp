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

#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "cpu/passing_checksums.h"
#include "math/optimizer_replay.h"

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {
namespace {

using ChunkSums = std::vector<std::vector<double>>;  // [requests, chunks]

// One logged vector as a tile sees it.
struct TileStep {
    const void* payload;  // of the tile's first element; null: zeros
    float scale;
    float moment1, moment1_cf, moment2;  // adam: the coefficients of the payload, the scale included
};
static_assert(sizeof(TileStep) <= replay_workspace_per_step);

// At most one scale block of elements, all of one class.
template <class Step>
struct Tile {
    const ReplayArguments& arguments;
    const ReplayPlan& plan;
    int64_t begin;  // first element
    int count;
    int64_t parameter_class;
    const Step* steps;  // of the first request
    const TileStep* log;
    int prefetch;  // bytes

    const Step* steps_of_request(int64_t r) const { return steps + r * arguments.classes * arguments.steps; }
};

template <class Step>
const Step* steps_of(const ReplayPlan& plan);
template <>
const math::SgdStep* steps_of<math::SgdStep>(const ReplayPlan& plan) {
    return plan.sgd.data();
}
template <>
const math::AdamStep* steps_of<math::AdamStep>(const ReplayPlan& plan) {
    return plan.adam.data();
}

// The log is read once and each of its vectors is a separate stream, too many for the hardware to foresee. This many
// bytes ahead suits a stream that is visited once per pack and step.
constexpr int prefetch_distance = 1024;

// With checksums a block of this many elements is hashed, all steps of it, just before it is used: all steps of two
// blocks, this one and the next that is being fetched, fit into the second-level cache.
constexpr int64_t hashed_elements = 2048;

template <Format format, bool partial>
LMC_REGISTER Pack load_some(const void* payload, int64_t offset, int count, int prefetch = prefetch_distance) {
    const auto* p = static_cast<const Payload<format>*>(payload) + offset;
    if constexpr (partial) return load_payload<format>(Partial<Payload<format>>(p, count).values);
    for (int byte = 0; byte < int(Pack::width * sizeof(*p)); byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(p) + prefetch + byte, 0, 2);
    return load_payload<format>(p);
}

template <bool partial>
LMC_REGISTER Pack load_state(const float* p, int count) {
    if constexpr (partial) return load_pack(Partial<float>(p, count).values);
    return load_pack(p);
}

// A state vector that is not there begins at zero and is not wanted afterwards.
template <bool partial>
LMC_REGISTER Pack load_optional(const float* vector, int64_t begin, int count) {
    return vector == nullptr ? Pack(0.0f) : load_state<partial>(vector + begin, count);
}

template <bool partial>
LMC_REGISTER void store_state(float* p, const Pack& x, int count) {
    if constexpr (partial)
        Partial<float>(x).copy_to(p, count);
    else
        store_pack(p, x);
}

template <bool partial>
LMC_REGISTER void store_optional(float* vector, int64_t begin, const Pack& x, int count) {
    if (vector != nullptr) store_state<partial>(vector + begin, x, count);
}

template <bool partial>
LMC_REGISTER Pack load_any(Format format, const void* payload, int64_t offset, int count, int prefetch) {
    return with_format(format, [&](auto constant) __attribute__((always_inline)) {
        return load_some<constant(), partial>(payload, offset, count, prefetch);
    });
}

// Sum of weight * injection over the injections of step t of request r. Few steps have any.
template <bool partial, class Step>
LMC_REGISTER Pack injected_gradient(const Tile<Step>& tile, int64_t r, int64_t t, int64_t offset, int count) {
    const EncodedVectors& injections = tile.arguments.injections;
    const int32_t* first = tile.plan.injection_begin.data() + r * tile.arguments.steps + t;
    Pack sum(0.0f);
    for (int32_t i = first[0]; i < first[1]; ++i) {
        if (injections.payloads[i] == nullptr) continue;
        const uint8_t* scales = injections.scales[i];
        const float scale = scales == nullptr ? 1.0f : scale_of(scales[tile.begin / block_size]);
        const Pack payload =
            load_any<partial>(injections.format, injections.payloads[i], tile.begin + offset, count, tile.prefetch);
        // The decoded value first: weight * scale alone could leave the range of float32.
        sum = fma(Pack(tile.plan.injection_weight[i]), payload * Pack(scale), sum);
    }
    return sum;
}

template <class Step>
Pack curvature_of(const Tile<Step>& tile, const Step& s, const Pack& diagonal) {
    return tile.arguments.diagonal == nullptr ? Pack(s.damping) : fma(Pack(s.curvature), diagonal, Pack(s.damping));
}

// ---------------------------------------------------------------------------------------------------------------------
// One side of some elements: what it is in memory. [begin, begin + count) are elements of the whole vectors.
// ---------------------------------------------------------------------------------------------------------------------

template <class Rule, bool has_theta, bool partial>
LMC_REGISTER void load_factual(const ReplayArguments& a, math::Factual<Pack>& x, int64_t begin, int count) {
    if constexpr (has_theta) x.theta = load_state<partial>(a.theta + begin, count);
    if constexpr (Rule::states > 0) x.state[0] = load_optional<partial>(a.state[0], begin, count);
    if constexpr (Rule::states > 1) x.state[1] = load_optional<partial>(a.state[1], begin, count);
}

template <class Rule, bool has_theta, bool partial>
LMC_REGISTER void store_factual(const ReplayArguments& a, const math::Factual<Pack>& x, int64_t begin, int count) {
    if constexpr (has_theta) store_state<partial>(a.theta + begin, x.theta, count);
    if constexpr (Rule::states > 0) store_optional<partial>(a.state[0], begin, x.state[0], count);
    if constexpr (Rule::states > 1) store_optional<partial>(a.state[1], begin, x.state[1], count);
}

template <class Rule, bool partial>
LMC_REGISTER void load_counterfactual(const ReplayArguments& a, int64_t r, math::Counterfactual<Pack>& x, int64_t begin,
                                      int count) {
    float* const* vectors = a.counterfactual.data() + r * Rule::states;
    x.delta = load_state<partial>(a.delta[r] + begin, count);
    if constexpr (Rule::states > 0) x.counterfactual[0] = load_optional<partial>(vectors[0], begin, count);
    if constexpr (Rule::states > 1) x.counterfactual[1] = load_optional<partial>(vectors[1], begin, count);
}

template <class Rule, bool partial>
LMC_REGISTER void store_counterfactual(const ReplayArguments& a, int64_t r, const math::Counterfactual<Pack>& x,
                                       int64_t begin, int count) {
    float* const* vectors = a.counterfactual.data() + r * Rule::states;
    store_state<partial>(a.delta[r] + begin, x.delta, count);
    if constexpr (Rule::states > 0) store_optional<partial>(vectors[0], begin, x.counterfactual[0], count);
    if constexpr (Rule::states > 1) store_optional<partial>(vectors[1], begin, x.counterfactual[1], count);
}

// ---------------------------------------------------------------------------------------------------------------------
// One request: both sides of elements [offset, offset + count) of a tile through all steps
// ---------------------------------------------------------------------------------------------------------------------
template <class Rule, bool has_theta, Format format, bool partial>
void replay_pack(const Tile<typename Rule::Step>& tile, int offset, int count) {
    const ReplayArguments& a = tile.arguments;
    const int64_t begin = tile.begin + offset;
    math::Lane<Pack> x;
    load_factual<Rule, has_theta, partial>(a, x, begin, count);
    load_counterfactual<Rule, partial>(a, 0, x, begin, count);

    for (int64_t t = 0; t < a.steps; ++t) {
        const typename Rule::Step& s = tile.steps[t];
        const TileStep& log = tile.log[t];
        if (s.flags & math::START) Rule::start(x, x);
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

// The logged vectors at one tile.
template <Format format, class Step>
void prepare(const ReplayArguments& a, const Step* steps, int64_t begin, TileStep* log) {
    for (int64_t t = 0; t < a.steps; ++t) {
        const void* payload = a.gradients.payloads[t];
        const uint8_t* scales = a.gradients.scales[t];
        const float scale = scales == nullptr || payload == nullptr ? 1.0f : scale_of(scales[begin / block_size]);
        log[t].payload = payload == nullptr ? nullptr : static_cast<const Payload<format>*>(payload) + begin;
        log[t].scale = scale;
        if constexpr (std::is_same_v<Step, math::AdamStep>) {
            const float factor = steps[t].gain * scale;
            log[t].moment1 = steps[t].moment1 * factor;
            log[t].moment1_cf = steps[t].moment1_cf * factor;
            log[t].moment2 = steps[t].moment2 * factor;
        }
    }
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
            const Tile<Step> tile{a, plan, at, count, segment.parameter_class, steps, log, prefetch};
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
