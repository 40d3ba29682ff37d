// A few registers treated as one value: what the formulas of csrc/math are instantiated with. Several at once hide the
// latency of each step's chain of dependent operations.

#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "math/replay_plan.h"

// LMCLEANER_INSTRUCTION_SET is portable, avx2 or avx512: the namespace of this build of the kernels.
#if defined(__AVX512F__)
#include "cpu/registers_avx512.h"
#elif defined(__AVX2__)
#include "cpu/registers_avx2.h"
#else
#include "cpu/registers_portable.h"
#endif

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {

// function(i) for each register of a pack, with i known to the compiler: an array indexed by a loop would live in
// memory.
LMC_REGISTER void for_each_register(auto&& function) {
    [&]<size_t... I>(std::index_sequence<I...>) __attribute__((always_inline)) {
        (function(std::integral_constant<int, int(I)>()), ...);
    }(std::make_index_sequence<registers_per_pack>());
}

LMC_REGISTER Register doubled(const Register& x) {
    return x + x;
}

struct Pack {
    static constexpr int width = lanes * registers_per_pack;
    Register r[registers_per_pack];

    Pack() = default;
    inline __attribute__((always_inline)) explicit Pack(float x) {
        for_each_register([&](auto i) __attribute__((always_inline)) { r[i] = broadcast(x); });
    }

    static inline __attribute__((always_inline)) Pack each(auto&& function) {
        Pack out;
        for_each_register([&](auto i) __attribute__((always_inline)) { out.r[i] = function(i); });
        return out;
    }
};

#define LMC_EACH(expression) Pack::each([&](auto i) __attribute__((always_inline)) { return expression; })

LMC_REGISTER Pack operator+(const Pack& a, const Pack& b) {
    return LMC_EACH(a.r[i] + b.r[i]);
}
LMC_REGISTER Pack operator-(const Pack& a, const Pack& b) {
    return LMC_EACH(a.r[i] - b.r[i]);
}
LMC_REGISTER Pack operator*(const Pack& a, const Pack& b) {
    return LMC_EACH(a.r[i] * b.r[i]);
}
LMC_REGISTER Pack operator/(const Pack& a, const Pack& b) {
    return LMC_EACH(a.r[i] / b.r[i]);
}
LMC_REGISTER Pack rounded_product(const Pack& a, const Pack& b) {
    return a * b;
}  // built without contraction
LMC_REGISTER Pack fma(const Pack& a, const Pack& b, const Pack& c) {
    return LMC_EACH(multiply_add(a.r[i], b.r[i], c.r[i]));
}
LMC_REGISTER Pack fnma(const Pack& a, const Pack& b, const Pack& c) {
    return LMC_EACH(multiply_subtract(a.r[i], b.r[i], c.r[i]));
}

LMC_REGISTER Pack sign(const Pack& x) {
    const Register zero = broadcast(0.0f), one = broadcast(1.0f);
    return LMC_EACH(x.r[i] > zero ? one : x.r[i] < zero ? -one : zero);
}

// The divider works beside the multipliers: every second register's root goes to each, which balances the two in Adam's
// step (on Zen 4 a root of 16 lanes keeps the divider busy for 10 cycles, or the multipliers for 4).
LMC_REGISTER Pack scaled_root(const Pack& factor, const Pack& x, const Pack& offset) {
    const Pack half = factor * Pack(0.5f);
    return LMC_EACH(i % 2 == 0 ? multiply_add(factor.r[i], root_by_divider(x.r[i]), offset.r[i])
                               : multiply_add(half.r[i], doubled_root_by_multiplier(x.r[i]), offset.r[i]));
}

LMC_REGISTER Pack quick_scaled_root(const Pack& factor, const Pack& x, const Pack& offset) {
    return scaled_root(factor, x, offset);
}
// The divider is busy with the division: all roots go to the multipliers.
LMC_REGISTER Pack quick_root_beside_division(const Pack& factor, const Pack& x, const Pack& offset) {
    const Pack half = factor * Pack(0.5f);
    return LMC_EACH(multiply_add(half.r[i], doubled_root_by_multiplier(x.r[i]), offset.r[i]));
}
LMC_REGISTER Pack quick_doubled_root(const Pack& x) {
    return LMC_EACH(i % 2 == 0 ? doubled(root_by_divider(x.r[i])) : doubled_root_by_multiplier(x.r[i]));
}
LMC_REGISTER Pack quick_quotient(const Pack& a, const Pack& b) {
    return a / b;
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory. A partial access touches the first `count` elements; the others are read as zero.
// ---------------------------------------------------------------------------------------------------------------------

LMC_REGISTER Pack load_pack(const float* p) {
    return LMC_EACH(load(p + lanes * i));
}
LMC_REGISTER void store_pack(float* p, const Pack& x) {
    for_each_register([&](auto i) __attribute__((always_inline)) { store(p + lanes * i, x.r[i]); });
}

template <Format format>
using Payload = std::conditional_t<
    format == Format::fp32, float,
    std::conditional_t<format == Format::int8, int8_t, std::conditional_t<format == Format::fp8, uint8_t, uint16_t>>>;

// function(constant) with `format` as a constant known to the compiler.
LMC_REGISTER auto with_format(Format format, auto&& function) {
    switch (format) {
        case Format::fp16:
            return function(std::integral_constant<Format, Format::fp16>());
        case Format::bf16:
            return function(std::integral_constant<Format, Format::bf16>());
        case Format::int8:
            return function(std::integral_constant<Format, Format::int8>());
        case Format::fp8:
            return function(std::integral_constant<Format, Format::fp8>());
        case Format::fp32:
            break;
    }
    return function(std::integral_constant<Format, Format::fp32>());
}

template <Format format>
LMC_REGISTER Pack load_payload(const Payload<format>* p) {
    if constexpr (format == Format::fp32) return load_pack(p);
    if constexpr (format == Format::fp16) return LMC_EACH(load_fp16(p + lanes * i));
    if constexpr (format == Format::bf16) return LMC_EACH(load_bf16(p + lanes * i));
    if constexpr (format == Format::int8) return LMC_EACH(load_int8(p + lanes * i));
    if constexpr (format == Format::fp8) return LMC_EACH(load_fp8(p + lanes * i));
}

template <Format format>
LMC_REGISTER void store_payload(Payload<format>* p, const Pack& x) {
    for_each_register([&](auto i) __attribute__((always_inline)) {
        if constexpr (format == Format::fp32) store(p + lanes * i, x.r[i]);
        if constexpr (format == Format::fp16) store_fp16(p + lanes * i, x.r[i]);
        if constexpr (format == Format::bf16) store_bf16(p + lanes * i, x.r[i]);
        if constexpr (format == Format::int8) store_int8(p + lanes * i, x.r[i]);
        if constexpr (format == Format::fp8) store_fp8(p + lanes * i, x.r[i]);
    });
}

// The first `count` elements in a buffer of the full width, the rest zero.
template <class T>
struct Partial {
    alignas(64) T values[Pack::width];
    inline __attribute__((always_inline)) Partial(const T* p, int count) {
        for (int i = 0; i < Pack::width; ++i) values[i] = i < count ? p[i] : T(0);
    }
    inline __attribute__((always_inline)) explicit Partial(const Pack& x)
        requires(std::is_same_v<T, float>)
    {
        store_pack(values, x);
    }
    inline __attribute__((always_inline)) void copy_to(T* p, int count) const {
        for (int i = 0; i < count; ++i) p[i] = values[i];
    }
};

// 2^(e - 127) of an E8M0 scale byte, e <= 254.
LMC_REGISTER float scale_of(uint8_t exponent) {
    const uint32_t bits = exponent == 0 ? 0x00400000u : uint32_t(exponent) << 23;
    float scale;
    __builtin_memcpy(&scale, &bits, sizeof scale);
    return scale;
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
