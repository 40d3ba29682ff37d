// optimizer_replay_window on the CPU: a block of parameters takes all steps with its deviation and both sides' state in
// registers, and only the log streams past. The formulas are in math/optimizer_replay.h.

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "math/optimizer_replay.h"

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {
namespace {

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
    const Step* steps;
    const TileStep* log;
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

template <Format format, bool partial>
LMC_REGISTER Pack load_some(const void* payload, int64_t offset, int count) {
    const auto* p = static_cast<const Payload<format>*>(payload) + offset;
    if constexpr (partial) return load_payload<format>(Partial<Payload<format>>(p, count).values);
    for (int byte = 0; byte < int(Pack::width * sizeof(*p)); byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(p) + prefetch_distance + byte, 0, 2);
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

Pack load_any(Format format, const void* payload, int64_t offset, int count) {
    return with_format(format, [&](auto constant) { return load_some<constant(), true>(payload, offset, count); });
}

// Sum of weight * injection over the injections of step t. Few steps have any.
template <class Step>
Pack injected_gradient(const Tile<Step>& tile, int64_t t, int64_t offset, int count) {
    const EncodedVectors& injections = tile.arguments.injections;
    Pack sum(0.0f);
    for (int32_t i = tile.plan.injection_begin[t]; i < tile.plan.injection_begin[t + 1]; ++i) {
        if (injections.payloads[i] == nullptr) continue;
        const uint8_t* scales = injections.scales[i];
        const float scale = scales == nullptr ? 1.0f : scale_of(scales[tile.begin / block_size]);
        const Pack payload = load_any(injections.format, injections.payloads[i], tile.begin + offset, count);
        // The decoded value first: weight * scale alone could leave the range of float32.
        sum = fma(Pack(tile.plan.injection_weight[i]), payload * Pack(scale), sum);
    }
    return sum;
}

// Elements [offset, offset + count) of a tile through all steps.
template <class Rule, bool has_theta, Format format, bool partial>
void replay_pack(const Tile<typename Rule::Step>& tile, int offset, int count) {
    const ReplayArguments& a = tile.arguments;
    const int64_t begin = tile.begin + offset;
    typename Rule::template Lane<Pack> x;
    x.delta = load_state<partial>(a.delta + begin, count);
    if constexpr (has_theta) x.theta = load_state<partial>(a.theta + begin, count);
    if constexpr (Rule::states > 0) x.state[0] = load_optional<partial>(a.state[0], begin, count);
    if constexpr (Rule::states > 1) x.state[1] = load_optional<partial>(a.state[1], begin, count);
    if constexpr (Rule::states > 0) x.counterfactual[0] = load_optional<partial>(a.counterfactual[0], begin, count);
    if constexpr (Rule::states > 1) x.counterfactual[1] = load_optional<partial>(a.counterfactual[1], begin, count);

    for (int64_t t = 0; t < a.steps; ++t) {
        const typename Rule::Step& s = tile.steps[t];
        const TileStep& log = tile.log[t];
        if (s.flags & math::START) Rule::start(x);
        if (s.flags & math::ABSENT) continue;
        const Pack payload =
            log.payload == nullptr ? Pack(0.0f) : load_some<format, partial>(log.payload, offset, count);
        if constexpr (std::is_same_v<Rule, math::Adam>) {
            if (s.flags & math::RESCALE) Rule::rescale(x, s);
            if (s.flags & math::SAME_GRADIENT) {
                Rule::template advance_same<has_theta>(x, s, payload, log.moment1, log.moment1_cf, log.moment2);
                continue;
            }
        }
        Pack injected(0.0f), curvature(s.damping);
        if (tile.plan.injection_begin[t] != tile.plan.injection_begin[t + 1] && !(s.flags & math::LEAD))
            injected = injected_gradient(tile, t, offset, count);
        if (a.diagonal != nullptr)
            curvature = fma(Pack(s.curvature), load_state<partial>(a.diagonal + begin, count), curvature);
        Rule::template advance<has_theta>(x, s, payload * Pack(log.scale), injected, curvature);
    }
    if (a.lead > 0 && a.lead == a.steps) Rule::start(x);
    if constexpr (std::is_same_v<Rule, math::Adam>) Rule::finish(x, tile.plan.units[tile.parameter_class]);

    store_state<partial>(a.delta + begin, x.delta, count);
    if constexpr (has_theta) store_state<partial>(a.theta + begin, x.theta, count);
    if constexpr (Rule::states > 0) store_optional<partial>(a.state[0], begin, x.state[0], count);
    if constexpr (Rule::states > 1) store_optional<partial>(a.state[1], begin, x.state[1], count);
    if constexpr (Rule::states > 0) store_optional<partial>(a.counterfactual[0], begin, x.counterfactual[0], count);
    if constexpr (Rule::states > 1) store_optional<partial>(a.counterfactual[1], begin, x.counterfactual[1], count);
}

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
double replay_chunk(const ReplayArguments& a, const ReplayPlan& plan, int64_t begin, int64_t end, TileStep* log) {
    using Step = typename Rule::Step;
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
        const int64_t last = segment.end < end ? segment.end : end;
        for (int64_t at = segment.begin > begin ? segment.begin : begin; at < last;) {
            const int64_t block_end = (at / block_size + 1) * block_size;
            const int count = int((block_end < last ? block_end : last) - at);
            const Step* steps = steps_of<Step>(plan) + segment.parameter_class * a.steps;
            prepare<format>(a, steps, at, log);
            const Tile<Step> tile{a, plan, at, count, segment.parameter_class, steps, log};
            int offset = 0;
            for (; offset + Pack::width <= count; offset += Pack::width)
                replay_pack<Rule, has_theta, format, false>(tile, offset, Pack::width);
            if (offset < count) replay_pack<Rule, has_theta, format, true>(tile, offset, count - offset);
            at += count;
        }
    }
    return sum_of_squares(a.delta + begin, end - begin);
}

template <class Rule, bool has_theta, Format format>
void replay(const ReplayArguments& a, const ReplayPlan& plan, int threads, void* workspace, double* chunk_sums) {
    const int64_t chunks = (a.n + chunk_size - 1) / chunk_size;
    auto* logs = static_cast<TileStep*>(workspace);
#pragma omp parallel num_threads(threads) if (threads > 1 && chunks > 1)
    {
#if defined(_OPENMP)
        TileStep* log = logs + omp_get_thread_num() * a.steps;
#else
        TileStep* log = logs;
#endif
#pragma omp for schedule(dynamic)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const int64_t begin = chunk * chunk_size, end = begin + chunk_size;
            chunk_sums[chunk] = replay_chunk<Rule, has_theta, format>(a, plan, begin, end < a.n ? end : a.n, log);
        }
    }
}

template <class Rule, bool has_theta>
void replay_format(const ReplayArguments& a, const ReplayPlan& plan, int threads, void* workspace, double* chunk_sums) {
    with_format(a.gradients.format,
                [&](auto constant) { replay<Rule, has_theta, constant()>(a, plan, threads, workspace, chunk_sums); });
}

template <class Rule>
void replay_theta(const ReplayArguments& a, const ReplayPlan& plan, int threads, void* workspace, double* chunk_sums) {
    if (a.theta != nullptr)
        replay_format<Rule, true>(a, plan, threads, workspace, chunk_sums);
    else
        replay_format<Rule, false>(a, plan, threads, workspace, chunk_sums);
}

}  // namespace

void optimizer_replay_window(const ReplayArguments& a, const ReplayPlan& plan, int threads, void* workspace,
                             double* chunk_sums) {
    switch (a.rule) {
        case math::Rule::sgd:
            if (a.state.empty()) return replay_theta<math::PlainSgd>(a, plan, threads, workspace, chunk_sums);
            return replay_theta<math::MomentumSgd>(a, plan, threads, workspace, chunk_sums);
        case math::Rule::update:
            return replay_theta<math::LoggedUpdate>(a, plan, threads, workspace, chunk_sums);
        case math::Rule::adam:
        case math::Rule::adamw:
            return replay_theta<math::Adam>(a, plan, threads, workspace, chunk_sums);
    }
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
