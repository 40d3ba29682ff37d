// optimizer_replay_window on CUDA: a thread takes eight neighbouring parameters through all steps with their state in
// registers, a warp one scale block of 256. The formulas are in math/rules/. Several requests are as many
// launches: holding their states beside each other left too few registers for what hides the memory's latency.

#include <vector>

#include "cuda/incoming.cuh"
#include "cuda/kernels.h"
#include "cuda/replay_tables.cuh"
#include "math/rules/rules.h"

namespace lmcleaner::cuda {
namespace {

constexpr int blocks_per_multiprocessor = 2;  // of a register file that holds the state of 2 x 2048 parameters
constexpr int turns_ahead = 7;                // payloads on their way while a step is computed
constexpr int turns_at_once = 2 * warp_size;  // whose tables lie in shared memory

// ---------------------------------------------------------------------------------------------------------------------
// What the kernel needs, all pointers to device memory.
// ---------------------------------------------------------------------------------------------------------------------

// One logged vector: an injection into a step, or, after the step's injections, its gradient.
struct alignas(16) Turn {
    const void* payload;    // null: zeros
    const uint8_t* scales;  // or null
    int32_t step;
    float weight;  // of an injection
    bool injection;
};

template <class Rule>
struct Window {
    int64_t turn_count, steps, lead, run_count;
    float *delta, *theta;
    float *state[2], *counterfactual[2];
    const Turn* turns;
    const typename Rule::Step* coefficients;  // [classes, steps]
    const typename Rule::Units* units;        // [classes]
    const Run* runs;
    Format format, injection_format;
    const float* diagonal;
    double* block_sums;
    bool store_factual;  // for another request the factual side begins again
};

// What a thread block has in shared memory: the payloads on their way, and the tables of the turns in use.
template <class Rule>
struct Room {
    using Step = typename Rule::Step;

    Incoming<threads_per_block, turns_ahead> incoming;
    Turn turns[turns_at_once + turns_ahead];
    Step steps[turns_at_once];

    // The tables from `turn` on, whose step is the first one there.
    __device__ __forceinline__ void read_tables(const Window<Rule>& w, const Step* own, int turn) {
        __syncthreads();
        copy(turns, w.turns + turn, min(turns_at_once + turns_ahead, int(w.turn_count) - turn));
        const int step = w.turns[turn].step;
        copy(steps, own + step, min(turns_at_once, int(w.steps) - step));
        __syncthreads();
    }

  private:
    template <class Entry>
    static __device__ __forceinline__ void copy(Entry* to, const Entry* from, int count) {
        static_assert(sizeof(Entry) % sizeof(uint4) == 0);
        for (int k = int(threadIdx.x); k < count * int(sizeof(Entry) / sizeof(uint4)); k += threads_per_block)
            reinterpret_cast<uint4*>(to)[k] = reinterpret_cast<const uint4*>(from)[k];
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

// plain: what the host knows of all steps of the window (the plan says it), so that no branch asks for it.
template <class Rule, bool has_theta, bool plain>
__device__ __forceinline__ void take_step(math::Lane<Eight>& x, const Window<Rule>& w, const typename Rule::Step& s,
                                          const Place& place, const Eight& payload, float scale,
                                          const Eight& injected) {
    if constexpr (plain) {
        Rule::before(x, s);
        Rule::template advance_plain<has_theta>(x, s, payload, s.gain * scale, injected);
    } else {
        if (s.flags & math::START) Rule::start(x, x);
        if (s.flags & math::ABSENT) return;
        Rule::before(x, s);
        Eight curvature(s.damping);
        if (w.diagonal != nullptr) {
            Eight h;
            place.load(w.diagonal, h);
            curvature = fma(Eight(s.curvature), h, curvature);
        }
        math::advance<Rule, has_theta>(x, s, payload * Eight(scale), injected, curvature);
    }
}

// half: all payloads are fp16.
template <class Rule, bool has_theta, bool plain, bool half>
__device__ __forceinline__ Eight replay(const Window<Rule>& w, const Place& place, int64_t parameter_class) {
    extern __shared__ __align__(16) char memory[];
    auto& room = *reinterpret_cast<Room<Rule>*>(memory);
    const typename Rule::Step* own = w.coefficients + parameter_class * w.steps;
    const int lane = int(threadIdx.x) % warp_size, turns = int(w.turn_count);
    const auto format_of = [&](bool injection) {
        return half ? Format::fp16 : injection ? w.injection_format : w.format;
    };
    const Reach reach_of_halves(Format::fp16, place.i, place.begin, place.end);
    const auto ask = [&](int turn, const void* payload, bool injection) {
        if (turn < turns) {
            const int slot = turn % room.incoming.slots;
            if constexpr (half)
                room.incoming.ask(slot, 0, payload, reach_of_halves);
            else
                room.incoming.ask(slot, 0, payload, Reach(format_of(injection), place.i, place.begin, place.end));
        }
        room.incoming.asked();
    };
    if (turns > 0) room.read_tables(w, own, 0);
    for (int turn = 0; turn < turns_ahead; ++turn) ask(turn, room.turns[turn].payload, room.turns[turn].injection);

    math::Lane<Eight> x;
    place.load(w.delta, x.delta);
    if constexpr (has_theta) place.load(w.theta, x.theta);
#pragma unroll
    for (int k = 0; k < Rule::states; ++k) {
        place.load(w.state[k], x.state[k]);
        place.load(w.counterfactual[k], x.counterfactual[k]);
    }
    Eight injected(0.0f);
    bool has_injected = false;
    for (int first = 0; first < turns; first += turns_at_once) {
        if (first > 0) room.read_tables(w, own, first);
        const int first_step = room.turns[0].step, count = min(turns_at_once, turns - first);
        const bool any = place.i - lane * values_per_thread < place.end;  // the same for all lanes
        float scales[2];                                                  // each lane's are those of two turns
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int k = lane + j * warp_size;
            scales[j] = k < count && any ? scale_of(room.turns[k].scales, place.i) : 1.0f;
        }
#pragma unroll 1
        for (int k = 0; k < count; ++k) {
            const float weight = room.turns[k].weight;
            const int step = room.turns[k].step - first_step;
            const bool injection = room.turns[k].injection, next_injection = room.turns[k + turns_ahead].injection;
            const void* next_payload = room.turns[k + turns_ahead].payload;
            const float scale = __shfl_sync(0xffffffffu, k < warp_size ? scales[0] : scales[1], k % warp_size);
            room.incoming.wait();
            Eight payload;
            room.incoming.values((first + k) % room.incoming.slots, 0, format_of(injection), payload.x);
            ask(first + k + turns_ahead, next_payload, next_injection);  // into the room of the turn before
            if (injection) {
                injected = fma(Eight(weight * scale), payload, injected);
                has_injected = true;
                continue;
            }
            take_step<Rule, has_theta, plain>(x, w, room.steps[step], place, payload, scale, injected);
            if (has_injected) injected = Eight(0.0f), has_injected = false;
        }
    }
    if (w.lead > 0 && w.lead == w.steps) Rule::start(x, x);
    Rule::finish(x, w.units[parameter_class]);

    place.store(w.delta, x.delta);
    if (has_theta && w.store_factual) place.store(w.theta, x.theta);
#pragma unroll
    for (int k = 0; k < Rule::states; ++k) {
        if (w.store_factual) place.store(w.state[k], x.state[k]);
        place.store(w.counterfactual[k], x.counterfactual[k]);
    }
    return x.delta;
}

template <class Rule, bool has_theta, bool plain = false, bool half = false>
__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    replay_kernel(const __grid_constant__ Window<Rule> w) {
    const Run run = own_run(w.runs, w.run_count);
    const int64_t block = run.begin / values_per_block + (blockIdx.x - run.first_block);
    const Place place{block * values_per_block + int64_t(threadIdx.x) * values_per_thread, run.begin, run.end};
    Eight delta;
    if (run.parameter_class >= 0)
        delta = replay<Rule, has_theta, plain, half>(w, place, run.parameter_class);
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

// The injections of a step before its gradient; those before the counterfactual begins are left out.
std::vector<Turn> turns_of(const ReplayArguments& a, const ReplayPlan& plan) {
    std::vector<Turn> turns;
    for (int32_t t = 0; t < a.steps; ++t) {
        for (int32_t j = plan.injection_begin[t]; j < plan.injection_begin[t + 1] && t >= a.lead; ++j)
            turns.push_back({a.injections.payloads[j], a.injections.scales[j], t, plan.injection_weight[j], true});
        turns.push_back({a.gradients.payloads[t], a.gradients.scales[t], t, 0, false});
    }
    return turns;
}

template <class Rule>
void run(const ReplayArguments& a, bool store_factual, double* sum_of_squares, cudaStream_t stream) {
    const ReplayPlan plan(a);
    const RulePlan<Rule>& own = plan.of<Rule>();
    std::vector<Run> runs;
    const int64_t blocks = runs_of(a, runs);
    Tables tables;
    const std::vector<Turn> turns = turns_of(a, plan);
    const size_t coefficients = tables.add(own.steps), units = tables.add(own.units), run_table = tables.add(runs),
                 turn_table = tables.add(turns);
    const StreamMemory memory(tables.size() + size_t(blocks + 1) * sizeof(double), stream);
    tables.deliver_to(memory.at<char>(0), stream);

    Window<Rule> window{};
    window.turn_count = int64_t(turns.size());
    window.steps = a.steps;
    window.lead = a.lead;
    window.run_count = int64_t(runs.size());
    window.delta = a.delta[0];
    window.theta = a.theta;
    for (int k = 0; k < Rule::states; ++k) {
        window.state[k] = a.state[k];
        window.counterfactual[k] = a.counterfactual[k];
    }
    window.coefficients = memory.at<const typename Rule::Step>(coefficients);
    window.units = memory.at<const typename Rule::Units>(units);
    window.runs = memory.at<const Run>(run_table);
    window.turns = memory.at<const Turn>(turn_table);
    window.format = a.gradients.format;
    // No injections: any format, so the gradients'.
    window.injection_format = a.injections.payloads.empty() ? a.gradients.format : a.injections.format;
    window.diagonal = a.diagonal;
    window.store_factual = store_factual;
    window.block_sums = memory.at<double>(tables.size());

    if (blocks > 0) {
        const auto launch = [&](auto kernel) {
            constexpr int room = sizeof(Room<Rule>);
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, room),
                  "shared memory of optimizer_replay_window");
            kernel<<<unsigned(blocks), threads_per_block, room, stream>>>(window);
        };
        const bool theta = a.theta != nullptr;
        bool launched = false;
        if constexpr (Rule::has_plain_window) {
            const bool halves = window.format == Format::fp16 && window.injection_format == Format::fp16;
            launched = own.plain;
            if (launched && halves)
                launch(theta ? replay_kernel<Rule, true, true, true> : replay_kernel<Rule, false, true, true>);
            else if (launched)
                launch(theta ? replay_kernel<Rule, true, true> : replay_kernel<Rule, false, true>);
        }
        if (!launched) launch(theta ? replay_kernel<Rule, true> : replay_kernel<Rule, false>);
        check(cudaGetLastError(), "launching optimizer_replay_window");
    }
    combine_parts<Sum><<<1, threads_per_block, 0, stream>>>(window.block_sums, blocks, sum_of_squares);
    check(cudaGetLastError(), "launching optimizer_replay_window");
}

// Request r alone; `table` is where its injections are listed.
ReplayArguments request_of(const ReplayArguments& a, int64_t r, std::vector<double>& table) {
    ReplayArguments one = a;
    const auto states = int64_t(a.state.size());
    one.delta = {a.delta[size_t(r)]};
    one.counterfactual.assign(a.counterfactual.begin() + r * states, a.counterfactual.begin() + (r + 1) * states);
    one.coefficients = a.coefficients + r * a.classes * a.steps * math::COLUMNS;
    one.injections.payloads.clear();
    one.injections.scales.clear();
    table.clear();
    for (size_t j = 0; j < a.injections.payloads.size(); ++j) {
        const double* row = a.injection_table + int64_t(j) * a.injection_columns;
        if (row[2] != double(r)) continue;
        one.injections.payloads.push_back(a.injections.payloads[j]);
        one.injections.scales.push_back(a.injections.scales[j]);
        table.insert(table.end(), {row[0], row[1]});
    }
    one.injection_table = table.data();
    one.injection_columns = 2;
    return one;
}

}  // namespace

void optimizer_replay_window(const ReplayArguments& a, double* sum_of_squares, cudaStream_t stream) {
    std::vector<double> table;
    for (int64_t r = 0; r < a.requests(); ++r) {
        const ReplayArguments one = a.requests() == 1 ? a : request_of(a, r, table);
        const bool last = r + 1 == a.requests();
        double* sum = sum_of_squares + r;
        math::with_rule(a.rule, [&](auto rule) { run<typename decltype(rule)::Kernel>(one, last, sum, stream); });
    }
}

}  // namespace lmcleaner::cuda
