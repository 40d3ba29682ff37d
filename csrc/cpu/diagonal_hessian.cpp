// diag_hessian_update on the CPU: decode a block of h, average, choose its scale anew, encode, in one pass. The
// formulas are in math/diagonal_hessian.h and math/encoding.h.

#include "math/diagonal_hessian.h"

#include <algorithm>

#include "cpu/block.h"
#include "math/encoding.h"

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {
namespace {

typedef uint32_t Whole __attribute__((vector_size(sizeof(Register))));  // numbers, a register full

LMC_REGISTER Whole larger(const Whole& a, const Whole& b) {
    return a > b ? a : b;
}

LMC_REGISTER uint32_t largest_lane(const Whole (&found)[registers_per_pack]) {
    Whole all = found[0];
    for_each_register([&](auto r) __attribute__((always_inline)) { all = larger(all, found[r]); });
    typedef uint32_t Four __attribute__((vector_size(16)));
    Four four[lanes / 4], largest = {};
    std::memcpy(four, &all, sizeof all);
    for (const Four& some : four) largest = some > largest ? some : largest;
    return std::max(std::max(largest[0], largest[1]), std::max(largest[2], largest[3]));
}

// Elements at, at + 1, ... of a block.
LMC_REGISTER Pack rounded_by_chance(const Pack& x, uint32_t key, int at) {
    Whole begin;
    for (int i = 0; i < lanes; ++i) begin[i] = uint32_t(i) * math::chance_stride;
    begin += key;
    return LMC_EACH(
        Register(math::round_by_chance(Whole(x.r[i]), begin + uint32_t(at + lanes * i) * math::chance_stride)));
}

// One block of 256 elements: its new codes and exponent, from products a b. False: a value does not fit.
LMC_REGISTER bool update_block(const DiagonalUpdate& u, int64_t block, const float* a, const float* b,
                               uint16_t* codes) {
    Block h;
    Whole found[registers_per_pack] = {};
    const Pack scale(scale_of(u.scales[block]));
    for (int i = 0; i < block_size; i += Pack::width) {
        const Pack old = load_payload<Format::fp16>(codes + i) * scale;
        const Pack x = math::running_average(old, load_pack(a + i), load_pack(b + i), u.beta, u.weight);
        store_pack(h.x + i, x);
        for_each_register([&](auto r) __attribute__((always_inline)) {
            found[r] =
                larger(found[r], Whole(x.r[r]) & 0x7fffffffu);  // ordered like the magnitudes, NaN above infinity
        });
    }
    const uint32_t largest = largest_lane(found);
    const uint8_t exponent = math::block_exponent(Format::fp16, largest);
    const Pack factor(scale_of(uint8_t(254 - exponent)));
    const uint32_t key = math::block_key(u.seed, uint64_t(u.first_block + block));
    for (int i = 0; i < block_size; i += Pack::width) {
        const Pack x = load_pack(h.x + i) * factor;
        store_payload<Format::fp16>(codes + i, u.by_chance ? rounded_by_chance(x, key, i) : x);
    }
    u.scales[block] = exponent;
    return largest < math::overflow_bits(Format::fp16);
}

}  // namespace

void update_diagonal(const DiagonalUpdate& u, int64_t n, int threads, double* chunk_failures) {
    for_each_chunk(n, threads, [&](int64_t chunk, int64_t begin, int64_t end) {
        chunk_failures[chunk] = 0;
        for_each_block_of(begin, end, [&](int64_t block, int64_t at, int count) __attribute__((always_inline)) {
            if (count == block_size) {
                chunk_failures[chunk] += !update_block(u, block, u.a + at, u.b + at, u.payload + at);
                return;
            }
            Block a, b;
            uint16_t codes[block_size] = {};
            load_block(u.a + at, count, a);
            load_block(u.b + at, count, b);
            std::memcpy(codes, u.payload + at, size_t(count) * sizeof *codes);
            chunk_failures[chunk] += !update_block(u, block, a.x, b.x, codes);
            std::memcpy(u.payload + at, codes, size_t(count) * sizeof *codes);
        });
    });
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
