// One scale block of 256 elements at a time, as floats in the first-level cache. The kernels that are bound by memory
// compute on it: the way through the cache costs them nothing, and every format is decoded in one place.

#pragma once

#include <cstring>

#include "cpu/kernels.h"
#include "cpu/pack.h"

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {

// Elements beyond the end of a vector are zero.
struct alignas(64) Block {
    float x[block_size];
};
static_assert(block_size % Pack::width == 0);

LMC_REGISTER void load_block(const float* p, int count, Block& out) {
    std::memcpy(out.x, p, size_t(count) * sizeof(float));
    std::memset(out.x + count, 0, size_t(block_size - count) * sizeof(float));
}

// A window of the log is many streams, too many for the hardware to foresee: ask for this stream's next block but one.
constexpr int prefetch_blocks = 2;

template <Format format>
LMC_REGISTER void decode_block_as(const void* payload, const uint8_t* scales, int64_t block, int count, Block& out) {
    const auto* p = static_cast<const Payload<format>*>(payload) + block * block_size;
    const Pack scale(scales == nullptr ? 1.0f : scale_of(scales[block]));
    if (count == block_size) {
        for (int i = 0; i < block_size; i += Pack::width) {
            for (int byte = 0; byte < int(Pack::width * sizeof(*p)); byte += 64)
                __builtin_prefetch(reinterpret_cast<const char*>(p + i + prefetch_blocks * block_size) + byte, 0, 2);
            store_pack(out.x + i, load_payload<format>(p + i) * scale);
        }
        return;
    }
    for (int i = 0; i < block_size; i += Pack::width) {
        const int rest = count - i < 0 ? 0 : count - i < Pack::width ? count - i : Pack::width;
        const Partial<Payload<format>> some(p + i, rest);
        store_pack(out.x + i, load_payload<format>(some.values) * scale);
    }
}

// Elements [256 block, 256 block + count) of an encoded vector; a null payload stands for zeros.
LMC_REGISTER void decode_block(const void* payload, const uint8_t* scales, Format format, int64_t block, int count,
                               Block& out) {
    if (payload == nullptr) {
        std::memset(out.x, 0, sizeof out.x);
        return;
    }
    switch (format) {
        case Format::fp16:
            return decode_block_as<Format::fp16>(payload, scales, block, count, out);
        case Format::bf16:
            return decode_block_as<Format::bf16>(payload, scales, block, count, out);
        case Format::int8:
            return decode_block_as<Format::int8>(payload, scales, block, count, out);
        case Format::fp8:
            return decode_block_as<Format::fp8>(payload, scales, block, count, out);
        case Format::fp32:
            return decode_block_as<Format::fp32>(payload, scales, block, count, out);
    }
}

// body(chunk, begin, end) for every chunk of `chunk_size` elements.
template <class Body>
void for_each_chunk(int64_t n, int threads, const Body& body) {
    const int64_t chunks = (n + chunk_size - 1) / chunk_size;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1 && chunks > 1)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t begin = chunk * chunk_size, end = begin + chunk_size;
        body(chunk, begin, end < n ? end : n);
    }
}

// body(block, begin, count) for every scale block of a chunk.
LMC_REGISTER void for_each_block_of(int64_t begin, int64_t end, auto&& body) {
    for (int64_t at = begin; at < end; at += block_size)
        body(at / block_size, at, int(end - at < block_size ? end - at : block_size));
}

// A sum over elements in double, in a fixed order.
struct DoubleSum {
    double parts[16] = {};

    // Of the 256 elements of a block.
    inline __attribute__((always_inline)) void add_squares(const float* x) {
        for (int i = 0; i < block_size; i += 16)
            for (int j = 0; j < 16; ++j) parts[j] += double(x[i + j]) * double(x[i + j]);
    }
    inline __attribute__((always_inline)) double value() const {
        double sum = 0;
        for (double part : parts) sum += part;
        return sum;
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// What csrc/math/damped_propagation.h asks of a value.
// ---------------------------------------------------------------------------------------------------------------------

LMC_REGISTER Pack larger_magnitude(const Pack& a, const Pack& b) {
    return LMC_EACH(larger_magnitude_of(a.r[i], b.r[i]));
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
