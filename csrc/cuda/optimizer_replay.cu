// optimizer_replay_window on CUDA: one thread takes one parameter through all steps with its state in registers, one
// thread block is one scale block of 256 parameters. The formulas are in math/optimizer_replay.h.

#include "cuda/optimizer_replay.h"

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device_tools.cuh"
#include "math/optimizer_replay.h"

namespace lmcleaner::cuda {
namespace {

static_assert(threads_per_block == block_size);
// Left to itself the compiler aims at one more, and spills registers for it.
constexpr int blocks_per_multiprocessor = 5;
// Payloads of this many steps are loaded before the first is used: one two-byte load per thread is far from enough to
// keep the memory busy.
constexpr int steps_ahead = 8;

// ---------------------------------------------------------------------------------------------------------------------
// Traits: what a thread needs, all pointers to device memory.
// ---------------------------------------------------------------------------------------------------------------------

template <class Step>
struct Window {
    int64_t n, steps, lead, segment_count;
    float *delta, *theta;
    float *state[2], *counterfactual[2];
    const Step* coefficients;  // [classes, steps]
    const math::AdamUnits* units;
    const Segment* segments;
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

// The class of parameter i, or -1 if no segment covers it.
__device__ int64_t class_of(const Segment* segments, int64_t count, int64_t i) {
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (segments[middle].end <= i)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && segments[low].begin <= i ? segments[low].parameter_class : -1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

template <class Rule, bool has_theta>
__device__ void take_step(typename Rule::template Lane<float>& x, const Window<typename Rule::Step>& w,
                          const typename Rule::Step& s, int64_t t, int64_t i, float g) {
    if (s.flags & math::START) Rule::start(x);
    if (s.flags & math::ABSENT) return;
    if constexpr (Rule::states == 2) {
        if (s.flags & math::RESCALE) Rule::rescale(x, s);
    }
    float injected = 0, curvature = s.damping;
    if (!(s.flags & math::LEAD)) {
        for (int32_t j = w.injection_begin[t]; j < w.injection_begin[t + 1]; ++j) {
            const void* payload = w.injection_payloads[j];
            if (payload == nullptr) continue;
            const float value = value_of(w.injection_format, payload, i) * scale_of(w.injection_scales[j], i);
            injected = math::fma(w.injection_weight[j], value, injected);
        }
    }
    if (w.diagonal != nullptr) curvature = math::fma(s.curvature, w.diagonal[i], curvature);
    Rule::template advance<has_theta>(x, s, g, injected, curvature);
}

template <class Rule, bool has_theta>
__device__ float replay(const Window<typename Rule::Step>& w, int64_t i, int64_t parameter_class) {
    typename Rule::template Lane<float> x;
    x.delta = w.delta[i];
    if constexpr (has_theta) x.theta = w.theta[i];
    for (int k = 0; k < Rule::states; ++k) {
        // a vector that is not there begins at zero and is not wanted afterwards
        x.state[k] = w.state[k] == nullptr ? 0.0f : w.state[k][i];
        x.counterfactual[k] = w.counterfactual[k] == nullptr ? 0.0f : w.counterfactual[k][i];
    }
    const typename Rule::Step* steps = w.coefficients + parameter_class * w.steps;
    for (int64_t begin = 0; begin < w.steps; begin += steps_ahead) {
        float g[steps_ahead];
#pragma unroll
        for (int k = 0; k < steps_ahead; ++k) {
            const void* payload = begin + k < w.steps ? w.payloads[begin + k] : nullptr;
            g[k] = payload == nullptr ? 0.0f : value_of(w.format, payload, i) * scale_of(w.scales[begin + k], i);
        }
#pragma unroll
        for (int k = 0; k < steps_ahead; ++k)
            if (begin + k < w.steps) take_step<Rule, has_theta>(x, w, steps[begin + k], begin + k, i, g[k]);
    }
    if (w.lead > 0 && w.lead == w.steps) Rule::start(x);
    if constexpr (Rule::states == 2) Rule::finish(x, w.units[parameter_class]);

    w.delta[i] = x.delta;
    if constexpr (has_theta) w.theta[i] = x.theta;
    for (int k = 0; k < Rule::states; ++k) {
        if (w.state[k] != nullptr) w.state[k][i] = x.state[k];
        if (w.counterfactual[k] != nullptr) w.counterfactual[k][i] = x.counterfactual[k];
    }
    return x.delta;
}

template <class Rule, bool has_theta>
__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    replay_kernel(Window<typename Rule::Step> w) {
    const int64_t i = int64_t(blockIdx.x) * threads_per_block + threadIdx.x;
    double square = 0;
    if (i < w.n) {
        const int64_t parameter_class = class_of(w.segments, w.segment_count, i);
        const float delta = parameter_class < 0 ? w.delta[i] : replay<Rule, has_theta>(w, i, parameter_class);
        square = double(delta) * double(delta);
    }
    const double sum = reduce_block(square, Sum());
    if (threadIdx.x == 0) w.block_sums[blockIdx.x] = sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------------

// The tables of one call, gathered on the host and sent to the device in one copy.
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
    // Room for values that the device writes.
    size_t reserve(size_t bytes) {
        reserved_ = (bytes_.size() + 15) / 16 * 16;
        extra_ = bytes;
        return reserved_;
    }
    size_t size() const { return reserved_ + extra_; }
    const std::vector<char>& bytes() const { return bytes_; }

  private:
    std::vector<char> bytes_;
    size_t reserved_ = 0, extra_ = 0;
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
    const int64_t blocks = (a.n + threads_per_block - 1) / threads_per_block;
    Tables tables;
    const size_t coefficients = tables.add(steps_of<Step>(plan)), units = tables.add(plan.units),
                 segments = tables.add(a.segments, size_t(a.segment_count)),
                 payloads = tables.add(a.gradients.payloads), scales = tables.add(a.gradients.scales),
                 injections = tables.add(a.injections.payloads), injection_scales = tables.add(a.injections.scales),
                 begin = tables.add(plan.injection_begin), weight = tables.add(plan.injection_weight),
                 sums = tables.reserve(size_t(blocks) * sizeof(double));
    const StreamMemory memory(tables.size() + 1, stream);
    // From pageable memory: the copy has left the host's buffer when the call returns.
    check(cudaMemcpyAsync(memory.at<char>(0), tables.bytes().data(), tables.bytes().size(), cudaMemcpyHostToDevice,
                          stream),
          "copying the tables of optimizer_replay_window");

    Window<Step> window{};
    window.n = a.n;
    window.steps = a.steps;
    window.lead = a.lead;
    window.segment_count = a.segment_count;
    window.delta = a.delta;
    window.theta = a.theta;
    for (int k = 0; k < Rule::states; ++k) {
        window.state[k] = a.state[k];
        window.counterfactual[k] = a.counterfactual[k];
    }
    window.coefficients = memory.at<const Step>(coefficients);
    window.units = memory.at<const math::AdamUnits>(units);
    window.segments = memory.at<const Segment>(segments);
    window.payloads = memory.at<const void* const>(payloads);
    window.scales = memory.at<const uint8_t* const>(scales);
    window.injection_payloads = memory.at<const void* const>(injections);
    window.injection_scales = memory.at<const uint8_t* const>(injection_scales);
    window.format = a.gradients.format;
    window.injection_format = a.injections.format;
    window.injection_begin = memory.at<const int32_t>(begin);
    window.injection_weight = memory.at<const float>(weight);
    window.diagonal = a.diagonal;
    window.block_sums = memory.at<double>(sums);

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
