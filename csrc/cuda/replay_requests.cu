// optimizer_replay_window on CUDA for several requests: up to four of them at once stay in registers beside the factual
// side, group after group. From the second group on, a thread block's part of the log comes from the cache.

#include "cuda/incoming.cuh"
#include "cuda/optimizer_replay.h"
#include "cuda/replay_tables.cuh"
#include "math/optimizer_replay.h"

namespace lmcleaner::cuda {
namespace {

constexpr int steps_ahead = 3;  // payloads on their way while a step is computed

template <class Step>
struct Window {
    int64_t steps, lead, run_count, classes, requests;
    float* theta;
    float* state[2];
    float* const* deltas;           // [requests]
    float* const* counterfactuals;  // [requests, states]
    const Step* coefficients;       // [requests, classes, steps]
    const math::AdamUnits* units;   // [requests, classes]
    const Run* runs;
    const void* const* payloads;
    const uint8_t* const* scales;
    const void* const* injection_payloads;
    const uint8_t* const* injection_scales;
    Format format, injection_format;
    const int32_t* injection_begin;  // [requests * steps + 1]
    const float* injection_weight;
    const float* diagonal;
    double* block_sums;  // [requests, blocks]
};

// A coefficient is the same for all threads: through the read-only cache, in 16 bytes at a time.
template <class Step>
__device__ __forceinline__ Step read(const Step* from) {
    static_assert(sizeof(Step) % sizeof(uint4) == 0 && alignof(Step) == sizeof(uint4));
    constexpr int words = sizeof(Step) / sizeof(uint4);
    union Words {
        uint4 raw[words];
        Step step;
        __device__ Words() {}
    } read;
#pragma unroll
    for (int k = 0; k < words; ++k) read.raw[k] = __ldg(reinterpret_cast<const uint4*>(from) + k);
    return read.step;
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

template <class Step>
__device__ __forceinline__ Eight injected_gradient(const Window<Step>& w, int64_t request, int t, const Place& place) {
    const int32_t* begin = w.injection_begin + request * w.steps + t;
    Eight sum(0.0f);
    for (int32_t j = begin[0]; j < begin[1]; ++j) {
        Eight x;
        load_values(w.injection_format, w.injection_payloads[j], w.injection_scales[j], place.i, place.end, x.x);
        sum = fma(Eight(w.injection_weight[j]), x, sum);
    }
    return sum;
}

template <class Step>
__device__ __forceinline__ Eight curvature_of(const Window<Step>& w, const Step& s, const Place& place) {
    if (w.diagonal == nullptr) return Eight(s.damping);
    Eight h;
    place.load(w.diagonal, h);
    return fma(Eight(s.curvature), h, Eight(s.damping));
}

// The factual side and `group` requests. Past the last one, a request is computed again and not stored.
template <class Rule, bool has_theta, int group>
struct SomeRequests {
    using Step = typename Rule::Step;
    static constexpr int count = group;
    math::Factual<Eight> factual;
    math::Counterfactual<Eight> sides[group];
    int64_t first;

    __device__ __forceinline__ int64_t request(const Window<Step>& w, int r) const {
        return first + r < w.requests ? first + r : w.requests - 1;
    }

    __device__ __forceinline__ void load(const Window<Step>& w, const Place& place, int64_t first_request) {
        first = first_request;
        if constexpr (has_theta) place.load(w.theta, factual.theta);
#pragma unroll
        for (int k = 0; k < Rule::states; ++k) place.load(w.state[k], factual.state[k]);
#pragma unroll
        for (int r = 0; r < group; ++r) {
            place.load(w.deltas[request(w, r)], sides[r].delta);
#pragma unroll
            for (int k = 0; k < Rule::states; ++k)
                place.load(w.counterfactuals[request(w, r) * Rule::states + k], sides[r].counterfactual[k]);
        }
    }

    __device__ __forceinline__ void step(const Window<Step>& w, const Step& s, const Step* steps, int t,
                                         const Place& place, const Eight& payload, float scale) {
        if constexpr (Rule::states == 2) {
            if (s.flags & math::RESCALE) Rule::rescale(factual, s);
        }
        math::Facts<Eight> facts;
        Rule::template step<has_theta>(factual, s, payload * Eight(scale), facts);
#pragma unroll
        for (int r = 0; r < group; ++r) {
            const Step own = read(steps + request(w, r) * w.classes * w.steps);
            if constexpr (Rule::states == 2) {
                if (own.flags & math::RESCALE) Rule::rescale(sides[r], own);
            }
            if (own.flags & math::FACTUAL_ONLY) continue;
            const Eight injected = injected_gradient(w, request(w, r), t, place);
            Rule::template follow<has_theta>(sides[r], own, facts, injected, curvature_of(w, own, place));
        }
    }

    __device__ __forceinline__ void start() {
#pragma unroll
        for (int r = 0; r < group; ++r) Rule::start(sides[r], factual);
    }

    __device__ __forceinline__ void finish(const Window<Step>& w, const Place& place, int64_t parameter_class) {
#pragma unroll
        for (int r = 0; r < group; ++r) {
            if (first + r >= w.requests) break;
            if constexpr (Rule::states == 2)
                Rule::finish(sides[r], w.units[(first + r) * w.classes + parameter_class]);
            place.store(w.deltas[first + r], sides[r].delta);
#pragma unroll
            for (int k = 0; k < Rule::states; ++k)
                place.store(w.counterfactuals[(first + r) * Rule::states + k], sides[r].counterfactual[k]);
        }
        if (first + group < w.requests) return;  // the next group begins where this one did
        if constexpr (Rule::states == 2) Rule::finish(factual, w.units[parameter_class]);
        if constexpr (has_theta) place.store(w.theta, factual.theta);
#pragma unroll
        for (int k = 0; k < Rule::states; ++k) place.store(w.state[k], factual.state[k]);
    }
};

// All steps of the requests from `first` on.
template <class Sides>
__device__ __forceinline__ void replay(Sides& sides, const Window<typename Sides::Step>& w, const Place& place,
                                       int64_t parameter_class, int64_t first) {
    __shared__ Incoming<threads_per_block, steps_ahead> incoming;
    const Reach reach(w.format, place.i, place.begin, place.end);
    const auto ask = [&](int t) {
        if (t < w.steps) incoming.ask(t % incoming.slots, 0, w.payloads[t], reach);
        incoming.asked();
    };
    for (int t = 0; t < steps_ahead; ++t) ask(t);

    sides.load(w, place, first);
    const typename Sides::Step* own = w.coefficients + parameter_class * w.steps;
    const int lane = int(threadIdx.x) % warp_size, steps = int(w.steps);
    float scales_of_32_steps = 1;
    for (int t = 0; t < steps; ++t, ++own) {
        if (t % warp_size == 0) {  // each lane reads the scale of another step
            scales_of_32_steps = 1;
            if (t + lane < steps && place.i - lane * values_per_thread < place.end)
                scales_of_32_steps = scale_of(w.scales[t + lane], place.i);
        }
        const typename Sides::Step s = read(own);
        const float scale = __shfl_sync(0xffffffffu, scales_of_32_steps, t % warp_size);
        incoming.wait();
        Eight payload;
        incoming.values(t % incoming.slots, 0, w.format, payload.x);
        ask(t + steps_ahead);  // into the room of the step before
        if (s.flags & math::START) sides.start();
        if (!(s.flags & math::ABSENT)) sides.step(w, s, own, t, place, payload, scale);
    }
    if (w.lead > 0 && w.lead == w.steps) sides.start();
    sides.finish(w, place, parameter_class);
}

template <class Sides>
__device__ __forceinline__ void replay_block(const Window<typename Sides::Step>& w) {
    const Run run = own_run(w.runs, w.run_count);
    const int64_t block = run.begin / values_per_block + (blockIdx.x - run.first_block);
    const Place place{block * values_per_block + int64_t(threadIdx.x) * values_per_thread, run.begin, run.end};
    for (int64_t first = 0; first < w.requests; first += Sides::count) {
        Sides sides;
        if (run.parameter_class >= 0) replay(sides, w, place, run.parameter_class, first);
#pragma unroll
        for (int r = 0; r < Sides::count; ++r) {
            if (first + r >= w.requests) break;
            Eight delta;
            if (run.parameter_class >= 0)
                delta = sides.sides[r].delta;
            else
                place.load(w.deltas[first + r], delta);
            double squares = 0;
#pragma unroll
            for (int k = 0; k < values_per_thread; ++k)
                if (place.i + k >= place.begin && place.i + k < place.end)
                    squares += double(delta.x[k]) * double(delta.x[k]);
            if (first + r > 0) __syncthreads();  // the sum before is read
            const double sum = reduce_block(squares, Sum());
            if (threadIdx.x == 0) w.block_sums[(first + r) * gridDim.x + blockIdx.x] = sum;
        }
    }
}

template <class Rule, bool has_theta, int group>
__global__ void __launch_bounds__(threads_per_block, 1)  // left to itself the compiler aims at more, and spills
    requests_kernel(const __grid_constant__ Window<typename Rule::Step> w) {
    replay_block<SomeRequests<Rule, has_theta, group>>(w);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------------

template <class Rule>
void run(const ReplayArguments& a, double* sums_of_squares, cudaStream_t stream) {
    using Step = typename Rule::Step;
    const ReplayPlan plan(a);
    std::vector<Run> runs;
    const int64_t blocks = runs_of(a, runs), requests = a.requests();
    Tables tables;
    const size_t coefficients = tables.add(steps_of<Step>(plan)), units = tables.add(plan.units),
                 run_table = tables.add(runs), payloads = tables.add(a.gradients.payloads),
                 scales = tables.add(a.gradients.scales), injections = tables.add(a.injections.payloads),
                 injection_scales = tables.add(a.injections.scales), begin = tables.add(plan.injection_begin),
                 weight = tables.add(plan.injection_weight), deltas = tables.add(a.delta),
                 counterfactuals = tables.add(a.counterfactual);
    const StreamMemory memory(tables.size() + size_t(requests * blocks + 1) * sizeof(double), stream);
    tables.deliver_to(memory.at<char>(0), stream);

    Window<Step> window{};
    window.steps = a.steps;
    window.lead = a.lead;
    window.run_count = int64_t(runs.size());
    window.classes = a.classes;
    window.requests = requests;
    window.theta = a.theta;
    for (int k = 0; k < Rule::states; ++k) window.state[k] = a.state[k];
    window.deltas = memory.at<float* const>(deltas);
    window.counterfactuals = memory.at<float* const>(counterfactuals);
    window.coefficients = memory.at<const Step>(coefficients);
    window.units = memory.at<const math::AdamUnits>(units);
    window.runs = memory.at<const Run>(run_table);
    window.payloads = memory.at<const void* const>(payloads);
    window.scales = memory.at<const uint8_t* const>(scales);
    window.injection_payloads = memory.at<const void* const>(injections);
    window.injection_scales = memory.at<const uint8_t* const>(injection_scales);
    window.format = a.gradients.format;
    window.injection_format = a.injections.format;
    window.injection_begin = memory.at<const int32_t>(begin);
    window.injection_weight = memory.at<const float>(weight);
    window.diagonal = a.diagonal;
    window.block_sums = memory.at<double>(tables.size());

    if (blocks > 0) {
        const auto launch = [&](auto kernel) {
            kernel<<<unsigned(blocks), threads_per_block, 0, stream>>>(window);
        };
        const bool theta = a.theta != nullptr;
        if (requests == 2)
            launch(theta ? requests_kernel<Rule, true, 2> : requests_kernel<Rule, false, 2>);
        else
            launch(theta ? requests_kernel<Rule, true, 4> : requests_kernel<Rule, false, 4>);
        check(cudaGetLastError(), "launching optimizer_replay_window");
    }
    combine_parts<Sum><<<unsigned(requests), threads_per_block, 0, stream>>>(window.block_sums, blocks, sums_of_squares);
    check(cudaGetLastError(), "launching optimizer_replay_window");
}

}  // namespace

void replay_requests(const ReplayArguments& a, double* sums_of_squares, cudaStream_t stream) {
    switch (a.rule) {
        case math::Rule::sgd:
            if (a.state.empty()) return run<math::PlainSgd>(a, sums_of_squares, stream);
            return run<math::MomentumSgd>(a, sums_of_squares, stream);
        case math::Rule::update:
            return run<math::LoggedUpdate>(a, sums_of_squares, stream);
        case math::Rule::adam:
        case math::Rule::adamw:
            return run<math::Adam>(a, sums_of_squares, stream);
    }
}

}  // namespace lmcleaner::cuda
