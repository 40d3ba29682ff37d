// One AVX-512 register of floats (or 16 encoded values in memory).

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace lmcleaner::avx512 {

using Register = __m512;
inline constexpr int lanes = 16;
inline constexpr int registers_per_pack = 4;  // 32 registers hold five values per element and their temporaries

#define LMC_REGISTER static inline __attribute__((always_inline))

LMC_REGISTER Register load(const float* p) {
    return _mm512_loadu_ps(p);
}
LMC_REGISTER void store(float* p, Register x) {
    _mm512_storeu_ps(p, x);
}
// Past the cache: for what is not read again soon. `to` is aligned to 64 bytes, `bytes` a multiple of 64.
LMC_REGISTER void copy_past_cache(void* to, const void* from, int bytes) {
    for (int i = 0; i < bytes / int(sizeof(__m512i)); ++i)
        _mm512_stream_si512(static_cast<__m512i*>(to) + i, _mm512_load_si512(static_cast<const __m512i*>(from) + i));
}
// What was copied is there for other threads.
LMC_REGISTER void finish_copies() {
    _mm_sfence();
}
LMC_REGISTER Register broadcast(float x) {
    return _mm512_set1_ps(x);
}
LMC_REGISTER Register multiply_add(Register a, Register b, Register c) {
    return _mm512_fmadd_ps(a, b, c);
}
LMC_REGISTER Register multiply_subtract(Register a, Register b, Register c) {
    return _mm512_fnmadd_ps(a, b, c);
}

// The larger one of |a| and b; b where a is NaN. For b >= 0.
LMC_REGISTER Register larger_magnitude_of(Register a, Register b) {
    return _mm512_range_ps(a, b, 0b1011);
}

LMC_REGISTER Register root_by_divider(Register x) {
    return _mm512_sqrt_ps(x);
}

// 2 sqrt(x) = x y (3 - x y^2), one Newton step from y ~ 1/sqrt(x); within 1.5 units in the last place, 0 for 0.
LMC_REGISTER Register doubled_root_by_multiplier(Register x) {
    const Register y = _mm512_rsqrt14_ps(_mm512_max_ps(x, broadcast(1.17549435e-38f)));
    const Register h = x * y;
    return h * multiply_subtract(h, y, broadcast(3.0f));
}

LMC_REGISTER Register load_fp16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
LMC_REGISTER void store_fp16(uint16_t* p, Register x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
LMC_REGISTER Register load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
LMC_REGISTER void store_bf16(uint16_t* p, Register x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

LMC_REGISTER Register load_int8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
LMC_REGISTER void store_int8(int8_t* p, Register x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}
// Shifted into place, e4m3 is the fp16 number with the same digits (math::fp16_bits_of_fp8).
LMC_REGISTER Register load_fp8(const uint8_t* p) {
    const __m256i code = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i half = _mm256_and_si256(_mm256_slli_epi16(code, 7), _mm256_set1_epi16(int16_t(0xbfff)));
    return _mm512_cvtph_ps(half) * broadcast(math::fp8_unit);
}
// Magnitudes up to 256. Adding 2^14 aligns the subnormal ones to multiples of 2^-9, rounding to even.
LMC_REGISTER void store_fp8(uint8_t* p, Register x) {
    const __m512i bits = _mm512_castps_si512(x), magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(magnitude, odd), _mm512_set1_epi32(0x7ffff - 0x3c000000));
    const __m512i shifted = _mm512_castps_si512(_mm512_castsi512_ps(magnitude) + broadcast(0x1p14f));
    const __m512i subnormal = _mm512_sub_epi32(shifted, _mm512_set1_epi32(0x46800000));             // the bits of 2^14
    const __mmask16 is_normal = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x3c7fffff));  // from 2^-6 on
    const __m512i code = _mm512_mask_srli_epi32(subnormal, is_normal, rounded, 20);
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_or_si512(code, sign)));
}

}  // namespace lmcleaner::avx512
