// optimizer_replay_window on CUDA: a thread takes eight neighbouring parameters through all steps with their state in
// registers, a warp one scale block of 256. The formulas are in math/optimizer_replay.h.

#include "cuda/optimizer_replay.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/eight.cuh"
#include "cuda/incoming.cuh"
#include "math/optimizer_replay.h"

namespace lmcleaner::cuda {
namespace {

constexpr int warp_size = 32;
static_assert(warp_size * values_per_thread == block_size, "a warp takes one scale block");
constexpr int blocks_per_multiprocessor = 2;  // of a register file that holds the state of 2 x 2048 parameters
constexpr int steps_ahead = 3;                // payloads on their way while a step is computed

// ---------------------------------------------------------------------------------------------------------------------
// What the kernel needs, all pointers to device memory.
// ---------------------------------------------------------------------------------------------------------------------

// A run of parameters of one class (-1: no segment covers them), and its first thread block.
struct Run {
    int64_t begin, end, parameter_class, first_block;
};

template <class Step>
struct Window {
    int64_t steps, lead, run_count;
    float *delta, *theta;
    float *state[2], *counterfactual[2];
    const Step* coefficients;  // [classes, steps]
    const math::AdamUnits* units;
    const Run* runs;
    const void* const* payloads;
    const uint8_t* const* scales;
    const void* const* injection_payloads;
    const uint8_t* const* injection_scales;
    Format format, injection_format;
    const int32_t* injection_begin;
    const float* injection_weight;
    const float* diagonal;
    double* block_sums;
};

// The run of this thread block: the last one whose first block is not after it.
template <class Step>
__device__ Run own_run(const Window<Step>& w) {
    int64_t low = 0, high = w.run_count;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (w.runs[middle].first_block <= blockIdx.x)
            low = middle;
        else
            high = middle;
    }
    return w.runs[low];
}

// The eight parameters of this thread, those of [begin, end).
struct Place {
    int64_t i, begin, end;

    __device__ __forceinline__ void load(const float* from, Eight& to) const {
        if (from != nullptr)
            load_floats(from, i, begin, end, to.x);
        else
            to = Eight(0.0f);  // a vector that is not there begins at zero and is not wanted afterwards
    }
    __device__ __forceinline__ void store(float* to, const Eight& from) const {
        if (to != nullptr) store_floats(to, i, begin, end, from.x);
    }
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
__device__ __forceinline__ Eight injected_gradient(const Window<Step>& w, int t, const Place& place) {
    Eight sum(0.0f);
    for (int32_t j = w.injection_begin[t]; j < w.injection_begin[t + 1]; ++j) {
        Eight x;
        load_values(w.injection_format, w.injection_payloads[j], w.injection_scales[j], place.i, place.end, x.x);
        sum = fma(Eight(w.injection_weight[j]), x, sum);
    }
    return sum;
}

template <class Rule, bool has_theta>
__device__ __forceinline__ void take_step(typename Rule::template Lane<Eight>& x,
                                          const Window<typename Rule::Step>& w, const typename Rule::Step& s, int t,
                                          const Place& place, const Eight& payload, float scale) {
    if constexpr (Rule::states == 2) {
        if (s.flags & math::RESCALE) Rule::rescale(x, s);
        if (s.flags & math::SAME_GRADIENT) {
            const float unit = s.gain * scale;
            Rule::template advance_same<has_theta>(x, s, payload, s.moment1 * unit, s.moment1_cf * unit,
                                                   s.moment2 * unit);
            return;
        }
    }
    Eight injected(0.0f), curvature(s.damping);
    if (!(s.flags & math::LEAD)) injected = injected_gradient(w, t, place);
    if (w.diagonal != nullptr) {
        Eight h;
        place.load(w.diagonal, h);
        curvature = fma(Eight(s.curvature), h, curvature);
    }
    Rule::template advance<has_theta>(x, s, payload * Eight(scale), injected, curvature);
}

template <class Rule, bool has_theta>
__device__ __forceinline__ Eight replay(const Window<typename Rule::Step>& w, const Place& place,
                                        int64_t parameter_class) {
    __shared__ Incoming<threads_per_block, steps_ahead> incoming;
    const Reach reach(w.format, place.i, place.begin, place.end);
    const auto ask = [&](int t) {
        if (t < w.steps) incoming.ask(t % incoming.slots, 0, w.payloads[t], reach);
        incoming.asked();
    };
    for (int t = 0; t < steps_ahead; ++t) ask(t);

    typename Rule::template Lane<Eight> x;
    place.load(w.delta, x.delta);
    if constexpr (has_theta) place.load(w.theta, x.theta);
#pragma unroll
    for (int k = 0; k < Rule::states; ++k) {
        place.load(w.state[k], x.state[k]);
        place.load(w.counterfactual[k], x.counterfactual[k]);
    }
    const typename Rule::Step* own = w.coefficients + parameter_class * w.steps;
    const int lane = int(threadIdx.x) % warp_size, steps = int(w.steps);
    float scales_of_32_steps = 1;
    for (int t = 0; t < steps; ++t, ++own) {
        if (t % warp_size == 0) {  // each lane reads the scale of another step
            scales_of_32_steps = 1;
            if (t + lane < steps && place.i - lane * values_per_thread < place.end)
                scales_of_32_steps = scale_of(w.scales[t + lane], place.i);
        }
        const typename Rule::Step s = read(own);
        const float scale = __shfl_sync(0xffffffffu, scales_of_32_steps, t % warp_size);
        incoming.wait();
        Eight payload;
        incoming.values(t % incoming.slots, 0, w.format, payload.x);
        ask(t + steps_ahead);  // into the room of the step before
        if (s.flags & math::START) Rule::start(x);
        if (!(s.flags & math::ABSENT)) take_step<Rule, has_theta>(x, w, s, t, place, payload, scale);
    }
    if (w.lead > 0 && w.lead == w.steps) Rule::start(x);
    if constexpr (Rule::states == 2) Rule::finish(x, w.units[parameter_class]);

    place.store(w.delta, x.delta);
    if constexpr (has_theta) place.store(w.theta, x.theta);
#pragma unroll
    for (int k = 0; k < Rule::states; ++k) {
        place.store(w.state[k], x.state[k]);
        place.store(w.counterfactual[k], x.counterfactual[k]);
    }
    return x.delta;
}

template <class Rule, bool has_theta>
__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    replay_kernel(const __grid_constant__ Window<typename Rule::Step> w) {
    const Run run = own_run(w);
    const int64_t block = run.begin / values_per_block + (blockIdx.x - run.first_block);
    const Place place{block * values_per_block + int64_t(threadIdx.x) * values_per_thread, run.begin, run.end};
    Eight delta;
    if (run.parameter_class >= 0)
        delta = replay<Rule, has_theta>(w, place, run.parameter_class);
    else
        place.load(w.delta, delta);
    double squares = 0;
#pragma unroll
    for (int k = 0; k < values_per_thread; ++k)
        if (place.i + k >= place.begin && place.i + k < place.end) squares += double(delta.x[k]) * double(delta.x[k]);
    const double sum = reduce_block(squares, Sum());
    if (threadIdx.x == 0) w.block_sums[blockIdx.x] = sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------------

// The segments and the gaps between them, each with its thread blocks; returns how many these are.
int64_t runs_of(const ReplayArguments& a, std::vector<Run>& runs) {
    int64_t blocks = 0, at = 0;
    const auto add = [&](int64_t begin, int64_t end, int64_t parameter_class) {
        if (end <= begin) return;
        runs.push_back({begin, end, parameter_class, blocks});
        blocks += (end + values_per_block - 1) / values_per_block - begin / values_per_block;
    };
    for (int64_t k = 0; k < a.segment_count; ++k) {
        const Segment& segment = a.segments[k];
        add(at, segment.begin, -1);
        add(segment.begin, segment.end, segment.parameter_class);
        at = std::max(at, segment.end);
    }
    add(at, a.n, -1);
    return blocks;
}

// Tables travel as kernel parameters, so that nothing waits for a copy from the host's memory and a graph that captures
// the call has them for good.
struct Parcel {
    static constexpr size_t capacity = 3840;
    uint4 words[capacity / sizeof(uint4)];
};

__global__ void __launch_bounds__(threads_per_block) deliver(const __grid_constant__ Parcel parcel, uint4* to) {
    if (threadIdx.x < Parcel::capacity / sizeof(uint4)) to[threadIdx.x] = parcel.words[threadIdx.x];
}

// The tables of one call, gathered on the host.
class Tables {
  public:
    template <class T>
    size_t add(const T* values, size_t count) {
        const size_t at = (bytes_.size() + 15) / 16 * 16;
        bytes_.resize(at + count * sizeof(T));
        if (count > 0) std::memcpy(bytes_.data() + at, values, count * sizeof(T));
        return at;
    }
    template <class T>
    size_t add(const std::vector<T>& values) {
        return add(values.data(), values.size());
    }
    // How much deliver_to() writes.
    size_t size() const { return (bytes_.size() + Parcel::capacity - 1) / Parcel::capacity * Parcel::capacity; }

    void deliver_to(char* device, cudaStream_t stream) const {
        for (size_t at = 0; at < bytes_.size(); at += Parcel::capacity) {
            Parcel parcel{};
            std::memcpy(parcel.words, bytes_.data() + at, std::min(Parcel::capacity, bytes_.size() - at));
            deliver<<<1, threads_per_block, 0, stream>>>(parcel, reinterpret_cast<uint4*>(device + at));
        }
        check(cudaGetLastError(), "sending the tables of optimizer_replay_window");
    }

  private:
    std::vector<char> bytes_;
};

// Device memory of one call; it returns to the stream's pool once the kernels before it have run.
class StreamMemory {
  public:
    StreamMemory(size_t bytes, cudaStream_t stream) : stream_(stream) {
        check(cudaMallocAsync(&memory_, bytes, stream), "allocating the tables of optimizer_replay_window");
    }
    ~StreamMemory() { cudaFreeAsync(memory_, stream_); }
    StreamMemory(const StreamMemory&) = delete;
    StreamMemory& operator=(const StreamMemory&) = delete;

    template <class T>
    T* at(size_t offset) const {
        return reinterpret_cast<T*>(static_cast<char*>(memory_) + offset);
    }

  private:
    void* memory_ = nullptr;
    cudaStream_t stream_;
};

template <class Step>
const std::vector<Step>& steps_of(const ReplayPlan& plan) {
    if constexpr (std::is_same_v<Step, math::AdamStep>)
        return plan.adam;
    else
        return plan.sgd;
}

template <class Rule>
void run(const ReplayArguments& a, double* sum_of_squares, cudaStream_t stream) {
    using Step = typename Rule::Step;
    const ReplayPlan plan(a);
    std::vector<Run> runs;
    const int64_t blocks = runs_of(a, runs);
    Tables tables;
    const size_t coefficients = tables.add(steps_of<Step>(plan)), units = tables.add(plan.units),
                 run_table = tables.add(runs), payloads = tables.add(a.gradients.payloads),
                 scales = tables.add(a.gradients.scales), injections = tables.add(a.injections.payloads),
                 injection_scales = tables.add(a.injections.scales), begin = tables.add(plan.injection_begin),
                 weight = tables.add(plan.injection_weight);
    const StreamMemory memory(tables.size() + size_t(blocks + 1) * sizeof(double), stream);
    tables.deliver_to(memory.at<char>(0), stream);

    Window<Step> window{};
    window.steps = a.steps;
    window.lead = a.lead;
    window.run_count = int64_t(runs.size());
    window.delta = a.delta;
    window.theta = a.theta;
    for (int k = 0; k < Rule::states; ++k) {
        window.state[k] = a.state[k];
        window.counterfactual[k] = a.counterfactual[k];
    }
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
        if (a.theta != nullptr)
            replay_kernel<Rule, true><<<unsigned(blocks), threads_per_block, 0, stream>>>(window);
        else
            replay_kernel<Rule, false><<<unsigned(blocks), threads_per_block, 0, stream>>>(window);
        check(cudaGetLastError(), "launching optimizer_replay_window");
    }
    combine_parts<Sum><<<1, threads_per_block, 0, stream>>>(window.block_sums, blocks, sum_of_squares);
    check(cudaGetLastError(), "launching optimizer_replay_window");
}

}  // namespace

void optimizer_replay_window(const ReplayArguments& a, double* sum_of_squares, cudaStream_t stream) {
    switch (a.rule) {
        case math::Rule::sgd:
            if (a.state.empty()) return run<math::PlainSgd>(a, sum_of_squares, stream);
            return run<math::MomentumSgd>(a, sum_of_squares, stream);
        case math::Rule::update:
            return run<math::LoggedUpdate>(a, sum_of_squares, stream);
        case math::Rule::adam:
        case math::Rule::adamw:
            return run<math::Adam>(a, sum_of_squares, stream);
    }
}

}  // namespace lmcleaner::cuda
