// One AVX2 register of floats (or 8 encoded values in memory).

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace lmcleaner::avx2 {

using Register = __m256;
inline constexpr int lanes = 8;
inline constexpr int registers_per_pack = 2;  // 16 registers

#define LMC_REGISTER static inline __attribute__((always_inline))

LMC_REGISTER Register load(const float* p) {
    return _mm256_loadu_ps(p);
}
LMC_REGISTER void store(float* p, Register x) {
    _mm256_storeu_ps(p, x);
}
// Past the cache: for what is not read again soon. `to` is aligned to 64 bytes, `bytes` a multiple of 64.
LMC_REGISTER void copy_past_cache(void* to, const void* from, int bytes) {
    for (int i = 0; i < bytes / int(sizeof(__m256i)); ++i)
        _mm256_stream_si256(static_cast<__m256i*>(to) + i, _mm256_load_si256(static_cast<const __m256i*>(from) + i));
}
// What was copied is there for other threads.
LMC_REGISTER void finish_copies() {
    _mm_sfence();
}
LMC_REGISTER Register broadcast(float x) {
    return _mm256_set1_ps(x);
}
LMC_REGISTER Register multiply_add(Register a, Register b, Register c) {
    return _mm256_fmadd_ps(a, b, c);
}
LMC_REGISTER Register multiply_subtract(Register a, Register b, Register c) {
    return _mm256_fnmadd_ps(a, b, c);
}

// The larger one of |a| and b; b where a is NaN. For b >= 0.
LMC_REGISTER Register larger_magnitude_of(Register a, Register b) {
    return _mm256_max_ps(_mm256_andnot_ps(broadcast(-0.0f), a), b);
}

LMC_REGISTER Register root_by_divider(Register x) {
    return _mm256_sqrt_ps(x);
}

// 2 sqrt(x) = x y (3 - x y^2), one Newton step from y ~ 1/sqrt(x), here of 12 bits; within 3 units in the last place, 0
// for 0.
LMC_REGISTER Register doubled_root_by_multiplier(Register x) {
    const Register y = _mm256_rsqrt_ps(_mm256_max_ps(x, broadcast(1.17549435e-38f)));
    const Register h = x * y;
    return h * multiply_subtract(h, y, broadcast(3.0f));
}

LMC_REGISTER Register load_fp16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
LMC_REGISTER void store_fp16(uint16_t* p, Register x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
LMC_REGISTER Register load_bf16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
LMC_REGISTER void store_bf16(uint16_t* p, Register x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    const __m256i high = _mm256_srli_epi32(rounded, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

LMC_REGISTER Register load_int8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
LMC_REGISTER void store_int8(int8_t* p, Register x) {
    const __m256i rounded = _mm256_cvtps_epi32(x);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(rounded, rounded), 0xd8);
    const __m128i low = _mm256_castsi256_si128(words);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(low, low));
}
// Shifted into place, e4m3 is the fp16 number with the same digits (math::fp16_bits_of_fp8).
LMC_REGISTER Register load_fp8(const uint8_t* p) {
    const __m128i code = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m128i half = _mm_and_si128(_mm_slli_epi16(code, 7), _mm_set1_epi16(int16_t(0xbfff)));
    return _mm256_cvtph_ps(half) * broadcast(math::fp8_unit);
}
// Magnitudes up to 256. Adding 2^14 aligns the subnormal ones to multiples of 2^-9, rounding to even.
LMC_REGISTER void store_fp8(uint8_t* p, Register x) {
    const __m256i bits = _mm256_castps_si256(x), magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(magnitude, odd), _mm256_set1_epi32(0x7ffff - 0x3c000000));
    const __m256i shifted = _mm256_castps_si256(_mm256_castsi256_ps(magnitude) + broadcast(0x1p14f));
    const __m256i subnormal = _mm256_sub_epi32(shifted, _mm256_set1_epi32(0x46800000));      // the bits of 2^14
    const __m256i is_normal = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x3c7fffff));  // from 2^-6 on
    const __m256i code = _mm256_blendv_epi8(subnormal, _mm256_srli_epi32(rounded, 20), is_normal);
    const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80));
    const __m256i signed_code = _mm256_or_si256(code, sign);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(signed_code, signed_code), 0xd8);
    const __m128i low = _mm256_castsi256_si128(words);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(low, low));
}

}  // namespace lmcleaner::avx2
