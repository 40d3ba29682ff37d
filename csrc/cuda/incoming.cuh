// Logged vectors on their way to a thread. A load into registers is waited for as soon as a branch stands between it
// and the next one, and formats, missing vectors and ragged ends are branches; so eight elements travel to shared
// memory (cp.async), several vectors ahead of the one in use. A thread reads only what it asked for itself: no barrier.

#pragma once

#include "cuda/device_tools.cuh"

namespace lmcleaner::cuda {

__device__ __forceinline__ void copy_16_async(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(shared))),
                 "l"(global)
                 : "memory");
}
__device__ __forceinline__ void copy_8_async(void* shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(unsigned(__cvta_generic_to_shared(shared))),
                 "l"(global)
                 : "memory");
}

__device__ __forceinline__ void copy_16_async_through_l1(void* shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(shared))),
                 "l"(global)
                 : "memory");
}

// Elements [i, i + 8) of a vector, those outside [begin, end) as zero: what does not change from vector to vector.
struct Reach {
    int64_t i, begin, end, offset;  // offset: of element i, in bytes
    int bytes;                      // of an element
    unsigned misaligned;            // bits of an address that must not be set
    bool whole;

    __device__ __forceinline__ Reach(Format format, int64_t i, int64_t begin, int64_t end)
        : i(i),
          begin(begin),
          end(end),
          offset(i * bytes_of(format)),
          bytes(bytes_of(format)),
          misaligned(bytes == 1 ? 7u : 15u),
          whole(i >= begin && i + values_per_thread <= end) {}
};

// Room for `ahead` + 1 turns of `width` vectors each: the turn in use and those on their way.
template <int threads, int ahead, int width = 1>
class Incoming {
  public:
    static constexpr int slots = ahead + 1;

    // Ask for a vector (null: zeros) of the turn that uses `slot`. Turns take the slots in order, round and round;
    // after the last vector of a turn comes asked().
    __device__ __forceinline__ void ask(int slot, int lane, const void* payload, const Reach& reach) {
        uint4 *low = &low_[slot][lane][threadIdx.x], *high = &high_[slot][lane][threadIdx.x];
        const char* from = static_cast<const char*>(payload) + reach.offset;
        if (payload == nullptr || !reach.whole || (unsigned(reinterpret_cast<uintptr_t>(from)) & reach.misaligned)) {
            piecemeal(low, high, payload, reach);
        } else if (reach.bytes == 2) {
            copy_16_async(low, from);
        } else if (reach.bytes == 1) {
            copy_8_async(low, from);
        } else {  // two halves of the same sectors
            copy_16_async_through_l1(low, from);
            copy_16_async_through_l1(high, from + 16);
        }
    }

    static __device__ __forceinline__ void asked() { asm volatile("cp.async.commit_group;" ::: "memory"); }

    // Until all but the newest `ahead` - 1 turns are here.
    static __device__ __forceinline__ void wait() {
        asm volatile("cp.async.wait_group %0;" ::"n"(ahead - 1) : "memory");
    }

    // The payload's values, not yet scaled. One branch on the format for all of them.
    __device__ __forceinline__ void values(int slot, int lane, Format format, float (&x)[values_per_thread]) const {
        const uint4 *low = &low_[slot][lane][threadIdx.x], *high = &high_[slot][lane][threadIdx.x];
        if (bytes_of(format) == 1) {
            const uint2 raw = *reinterpret_cast<const uint2*>(low);
            const unsigned words[2] = {raw.x, raw.y};
            if (format == Format::int8) {
#pragma unroll
                for (int k = 0; k < values_per_thread; ++k)
                    x[k] = value_of_code(Format::int8, words[k / 4] >> 8 * (k % 4) & 0xffu);
            } else {
#pragma unroll
                for (int k = 0; k < values_per_thread; ++k)
                    x[k] = value_of_code(Format::fp8, words[k / 4] >> 8 * (k % 4) & 0xffu);
            }
            return;
        }
        const unsigned words[4] = {low->x, low->y, low->z, low->w};
        if (format == Format::fp16) {  // before the others: it is the common one
#pragma unroll
            for (int k = 0; k < values_per_thread; ++k)
                x[k] = value_of_code(Format::fp16, words[k / 2] >> 16 * (k % 2) & 0xffffu);
        } else if (format == Format::bf16) {
#pragma unroll
            for (int k = 0; k < values_per_thread; ++k)
                x[k] = value_of_code(Format::bf16, words[k / 2] >> 16 * (k % 2) & 0xffffu);
        } else {
            const unsigned more[4] = {high->x, high->y, high->z, high->w};
#pragma unroll
            for (int k = 0; k < values_per_thread; ++k) x[k] = __uint_as_float(k < 4 ? words[k] : more[k - 4]);
        }
    }

  private:
    static __device__ __forceinline__ void piecemeal(uint4* low, uint4* high, const void* payload, const Reach& reach) {
        *low = *high = make_uint4(0, 0, 0, 0);
        if (payload == nullptr) return;
#pragma unroll 1  // rare: as little code as possible
        for (int k = 0; k < values_per_thread; ++k) {
            const int64_t i = reach.i + k;
            if (i < reach.begin || i >= reach.end) continue;
            if (reach.bytes == 1)
                reinterpret_cast<uint8_t*>(low)[k] = static_cast<const uint8_t*>(payload)[i];
            else if (reach.bytes == 2)
                reinterpret_cast<uint16_t*>(low)[k] = static_cast<const uint16_t*>(payload)[i];
            else
                reinterpret_cast<uint32_t*>(k < 4 ? low : high)[k % 4] = static_cast<const uint32_t*>(payload)[i];
        }
    }

    uint4 low_[slots][width][threads], high_[slots][width][threads];
};

}  // namespace lmcleaner::cuda
