// The formats of logged vectors, and the exponent of a block of them: one rule for every backend
// (lmcleaner_ext/ops/encoding.py has the format).

#pragma once

#include <vector>

#include "math/value.h"

namespace lmcleaner {

enum class Format : int { fp32 = 0, fp16 = 1, bf16 = 2, int8 = 3, fp8 = 4 };  // payload of an encoded vector

inline constexpr int64_t block_size = 256;  // elements that share a scale

struct EncodedVector {
    const void* payload;    // null: zeros
    const uint8_t* scales;  // or null
    Format format;
};

// Several encoded vectors of one format.
struct EncodedVectors {
    std::vector<const void*> payloads;   // null: zeros
    std::vector<const uint8_t*> scales;  // null: none
    Format format = Format::fp32;
};

LMC_HD constexpr int bytes_of(Format format) {
    return format == Format::fp32 ? 4 : format == Format::fp16 || format == Format::bf16 ? 2 : 1;
}

namespace math {

inline constexpr uint32_t infinity_bits = 0x7f800000u;

LMC_HD constexpr bool is_scaled(Format format) {
    return format == Format::fp16 || format == Format::int8 || format == Format::fp8;
}

// Half a unit in the last place of a payload, in the bits of a float32 of the same exponent; 0 for fp32.
LMC_HD constexpr uint32_t half_unit(Format format) {
    const int significant_bits = format == Format::fp16   ? 11
                                 : format == Format::bf16 ? 8
                                 : format == Format::int8 ? 7
                                 : format == Format::fp8  ? 4
                                                          : 24;
    return 0x00800000u >> significant_bits;
}

// From these bits on a float32 rounds to 2^128, which float32 does not have, or is not finite.
LMC_HD constexpr uint32_t overflow_bits(Format format) {
    return infinity_bits - half_unit(format);
}

// E8M0 exponent e of a block whose largest magnitude has these float32 bits: value = payload * 2^(e - 127). With
// 2^k <= largest < 2^(k+1) it brings the largest magnitude into [2^14, 2^15) for fp16, [2^7, 2^8) for fp8, [2^6, 127.5)
// for int8, but e is not under 0; 127 for zeros.
LMC_HD uint8_t block_exponent(Format format, uint32_t largest_bits) {
    if (largest_bits == 0) return 127;
    // int8 has no 128: what would round to it belongs to the next exponent.
    if (format == Format::int8) largest_bits += half_unit(format);
    const int top = format == Format::fp16 ? 14 : format == Format::fp8 ? 7 : 6;
    const int e =
        int(largest_bits >> 23) - top;  // the exponent field is k + 127; 0 for subnormals, far under the clamp
    return uint8_t(e < 0 ? 0 : e > 254 ? 254 : e);
}

// e4m3 (sign, 4 bits of exponent, 3 of fraction) as fp16 bits: fp8_unit times the fp16 number with the same digits. The
// codes 0x7f and 0xff, not a number, are never written.
inline constexpr float fp8_unit = 0x1p8f;
LMC_HD uint16_t fp16_bits_of_fp8(uint8_t code) {
    return uint16_t((code & 0x80) << 8 | (code & 0x7f) << 7);
}

}  // namespace math
}  // namespace lmcleaner
