// One scale block of 256 elements at a time, as floats in the first-level cache. The kernels that are bound by memory
// compute on it: the way through the cache costs them nothing, and every format is decoded in one place.

#pragma once

#include <cstring>

#include "cpu/pack.h"
#include "cpu/vector_kernels.h"

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
// What csrc/math/damped_propagation.h asks of a value, on the compiler's own vector operations.
// ---------------------------------------------------------------------------------------------------------------------

typedef int32_t Integers __attribute__((vector_size(sizeof(Register))));
typedef float Floats __attribute__((vector_size(sizeof(Register))));

LMC_REGISTER Pack lesser(const Pack& a, const Pack& b) {
    return LMC_EACH(Register(Floats(a.r[i]) < Floats(b.r[i]) ? Floats(a.r[i]) : Floats(b.r[i])));
}
LMC_REGISTER Pack larger_magnitude(const Pack& a, const Pack& b) {
    return LMC_EACH(larger_magnitude_of(a.r[i], b.r[i]));
}

LMC_REGISTER Register polynomial(Register x, std::initializer_list<float> coefficients) {
    Register sum = broadcast(0.0f);
    for (float c : coefficients) sum = multiply_add(sum, x, broadcast(c));
    return sum;
}

// ln x = e ln 2 + ln m with m in [sqrt(1/2), sqrt(2)); positive normal x. Coefficients: S. L. Moshier, Cephes, logf.
LMC_REGISTER Register logarithm_of(Register x) {
    const Integers shifted = Integers(x) - 0x3f3504f3;
    const Register e = Register(__builtin_convertvector(shifted >> 23, Floats));
    const Register m = Register((shifted & 0x007fffff) + 0x3f3504f3) - broadcast(1.0f);
    const Register p =
        polynomial(m, {7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                       -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f});
    const Register square = m * m;
    Register y = multiply_add(broadcast(-2.12194440e-4f), e, p * m * square);
    y = multiply_subtract(broadcast(0.5f), square, y);
    return multiply_add(broadcast(0.693359375f), e, m + y);
}

// e^x = 2^k e^r, |r| <= ln(2)/2. Under e^-87 it stays at that; beyond float32's range it is infinite. Same source,
// expf.
LMC_REGISTER Register exponential_of(Register x) {
    const Floats low = Floats(broadcast(-87.0f)), high = Floats(broadcast(88.72f));
    const Register bounded = Register(low > Floats(x) ? low : Floats(x));  // keeps a NaN
    const Register rounder = broadcast(12582912.0f);                       // 1.5 * 2^23: adding it rounds to an integer
    const Register shifted = multiply_add(bounded, broadcast(1.44269504f), rounder);
    const Register k = shifted - rounder;
    Register r = multiply_subtract(k, broadcast(0.693359375f), bounded);
    r = multiply_subtract(k, broadcast(-2.12194440e-4f), r);
    const Register p = polynomial(r, {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                                      1.6666665459e-1f, 5.0000001201e-1f});
    const Register y = multiply_add(p, r * r, r + broadcast(1.0f));
    // 2^k in two factors: k may be 128
    const Integers exponent = Integers(shifted) - Integers(rounder), half = exponent >> 1;
    const Register power = Register((half + 127) << 23), rest = Register((exponent - half + 127) << 23);
    const Floats infinity = Floats(broadcast(__builtin_inff()));
    return Register(Floats(x) > high ? infinity : Floats(y * power * rest));
}

LMC_REGISTER Pack logarithm(const Pack& x) {
    return LMC_EACH(logarithm_of(x.r[i]));
}
LMC_REGISTER Pack exponential(const Pack& x) {
    return LMC_EACH(exponential_of(x.r[i]));
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
