// What optimizer_replay_window's loops read and write: the log of one scale block, and the two sides' vectors.

#pragma once

#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "math/rules/rules.h"

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {

// One logged vector as a tile sees it.
template <class Rule>
struct TileStep {
    const void* payload;  // of the tile's first element; null: zeros
    float scale;
    [[no_unique_address]] typename Rule::Scaled scaled;  // the coefficients of the payload, the scale included
};

// At most one scale block of elements, all of one class.
template <class Rule>
struct Tile {
    using Step = typename Rule::Step;

    const ReplayArguments& arguments;
    const ReplayPlan& plan;
    int64_t begin;  // first element
    int count;
    int64_t parameter_class;
    const Step* steps;                      // of the first request
    const typename Rule::QuickStep* quick;  // or null
    const TileStep<Rule>* log;
    int prefetch;  // bytes

    const Step* steps_of_request(int64_t r) const { return steps + r * arguments.classes * arguments.steps; }
    const typename Rule::Units& units_of_request(int64_t r) const {
        return plan.of<Rule>().units[r * arguments.classes + parameter_class];
    }
};

// The log is read once and each of its vectors is a separate stream, too many for the hardware to foresee. This many
// bytes ahead suits a stream that is visited once per pack and step.
constexpr int prefetch_distance = 1024;

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

// How the payloads of a tile's log are read: whole packs in a format that the compiler knows, or in any, or fewer
// elements than a pack, which are few.
template <Format known>
struct WholePacks {
    static constexpr bool partial = false;
    static constexpr Format format = known;
    inline __attribute__((always_inline)) Pack load(const void* payload, int64_t offset, int count,
                                                    int prefetch) const {
        return load_some<known, false>(payload, offset, count, prefetch);
    }
};
template <bool part>
struct AnyFormat {
    static constexpr bool partial = part;
    Format format;
    inline __attribute__((always_inline)) Pack load(const void* payload, int64_t offset, int count,
                                                    int prefetch) const {
        return load_any<part>(format, payload, offset, count, prefetch);
    }
};

// Sum of weight * injection over the injections of step t of request r. Few steps have any.
template <bool partial, class Rule>
LMC_REGISTER Pack injected_gradient(const Tile<Rule>& tile, int64_t r, int64_t t, int64_t offset, int count) {
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

template <class Rule>
Pack curvature_of(const Tile<Rule>& tile, const typename Rule::Step& s, const Pack& diagonal) {
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

// The logged vectors at one tile.
template <class Rule>
void prepare(const ReplayArguments& a, const typename Rule::Step* steps, int64_t begin, TileStep<Rule>* log) {
    const int64_t offset = begin * bytes_of(a.gradients.format);
    for (int64_t t = 0; t < a.steps; ++t) {
        const void* payload = a.gradients.payloads[t];
        const uint8_t* scales = a.gradients.scales[t];
        const float scale = scales == nullptr || payload == nullptr ? 1.0f : scale_of(scales[begin / block_size]);
        log[t].payload = payload == nullptr ? nullptr : static_cast<const char*>(payload) + offset;
        log[t].scale = scale;
        log[t].scaled = Rule::scaled(steps[t], scale);
    }
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
