// Four floats in the compiler's own vector type: any processor. The half-precision formats are converted in integers.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace lmcleaner::portable {

typedef float Register __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));
inline constexpr int lanes = 4;
inline constexpr int registers_per_pack = 2;

#define LMC_REGISTER static inline __attribute__((always_inline))

LMC_REGISTER Register load(const float* p) {
    Register x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
LMC_REGISTER void store(float* p, Register x) {
    std::memcpy(p, &x, sizeof x);
}
LMC_REGISTER void copy_past_cache(void* to, const void* from, int bytes) {
    std::memcpy(to, from, size_t(bytes));
}
LMC_REGISTER void finish_copies() {}
LMC_REGISTER Register broadcast(float x) {
    return Register{x, x, x, x};
}
// Rounded twice: a fused multiply-add without the instruction is a library call per element.
LMC_REGISTER Register multiply_add(Register a, Register b, Register c) {
    return a * b + c;
}
LMC_REGISTER Register multiply_subtract(Register a, Register b, Register c) {
    return c - a * b;
}

// The larger one of |a| and b; b where a is NaN. For b >= 0.
LMC_REGISTER Register larger_magnitude_of(Register a, Register b) {
    const Register magnitude = Register(Bits(a) & 0x7fffffffu);
    return magnitude > b ? magnitude : b;
}

LMC_REGISTER Register root_by_divider(Register x) {
    return Register{std::sqrt(x[0]), std::sqrt(x[1]), std::sqrt(x[2]), std::sqrt(x[3])};
}
LMC_REGISTER Register doubled_root_by_multiplier(Register x) {
    return 2.0f * root_by_divider(x);
}

LMC_REGISTER uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
LMC_REGISTER float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

LMC_REGISTER uint16_t fp16_of_float(float x) {
    const uint32_t bits = bits_of(x), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);   // NaN
    if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds beyond 65504
    if (magnitude < 0x38800000)  // subnormal in fp16: adding 0.5 aligns it to multiples of 2^-24, rounding to even
        return uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
    const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    return uint16_t(sign | ((rounded - 0x38000000) >> 13));
}

LMC_REGISTER Register load_fp16(const uint16_t* p) {
    const Bits half = {p[0], p[1], p[2], p[3]};
    const Bits sign = (half & 0x8000) << 16, magnitude = (half & 0x7fff) << 13;
    // Read as a float, these bits are value * 2^-112, for fp16 subnormals too.
    const Bits value = Bits(Register(magnitude) * 0x1p112f);
    const Bits infinity = Bits(magnitude >= 0x0f800000) & 0x7f800000;  // infinity, NaN
    return Register(sign | value | infinity);
}
LMC_REGISTER void store_fp16(uint16_t* p, Register x) {
    for (int i = 0; i < lanes; ++i) p[i] = fp16_of_float(x[i]);
}
LMC_REGISTER Register load_bf16(const uint16_t* p) {
    Register x;
    for (int i = 0; i < lanes; ++i) x[i] = float_of(uint32_t(p[i]) << 16);
    return x;
}
LMC_REGISTER void store_bf16(uint16_t* p, Register x) {
    for (int i = 0; i < lanes; ++i) {
        const uint32_t bits = bits_of(x[i]);
        p[i] = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
}

LMC_REGISTER Register load_int8(const int8_t* p) {
    return Register{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
}
LMC_REGISTER void store_int8(int8_t* p, Register x) {
    const Bits rounded = Bits(x + 0x1.8p23f);  // whole numbers, to even, in the low bits
    for (int i = 0; i < lanes; ++i) p[i] = int8_t(rounded[i]);
}
LMC_REGISTER Register load_fp8(const uint8_t* p) {
    const Bits code = {p[0], p[1], p[2], p[3]};
    // Read as a float, these bits are value * 2^-120, for subnormals too.
    return Register((code & 0x80) << 24 | Bits(Register((code & 0x7f) << 20) * 0x1p120f));
}
// Magnitudes up to 256. Adding 2^14 aligns the subnormal ones to multiples of 2^-9, rounding to even.
LMC_REGISTER void store_fp8(uint8_t* p, Register x) {
    const Bits bits = Bits(x), magnitude = bits & 0x7fffffff;
    const Bits normal = (magnitude + ((bits >> 20) & 1) + (0x7ffff - 0x3c000000)) >> 20;
    const Bits subnormal = Bits(Register(magnitude) + 0x1p14f) - bits_of(0x1p14f);
    const Bits is_subnormal = Bits(magnitude < 0x3c800000);  // under 2^-6
    const Bits code = (is_subnormal & subnormal) | (~is_subnormal & normal) | ((bits >> 24) & 0x80);
    for (int i = 0; i < lanes; ++i) p[i] = uint8_t(code[i]);
}

}  // namespace lmcleaner::portable
