// What a replay needs around its kernel: the runs of parameters that thread blocks take, a thread's eight parameters,
// and how the tables of a call get to the device.

#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "cuda/eight.cuh"
#include "math/replay_plan.h"

namespace lmcleaner::cuda {
namespace {

constexpr int warp_size = 32;
static_assert(warp_size * values_per_thread == block_size, "a warp takes one scale block");

// A run of parameters of one class (-1: no segment covers them), and its first thread block.
struct Run {
    int64_t begin, end, parameter_class, first_block;
};

// The run of this thread block: the last one whose first block is not after it.
__device__ __forceinline__ Run own_run(const Run* runs, int64_t count) {
    int64_t low = 0, high = count;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (runs[middle].first_block <= blockIdx.x)
            low = middle;
        else
            high = middle;
    }
    return runs[low];
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

}  // namespace
}  // namespace lmcleaner::cuda
