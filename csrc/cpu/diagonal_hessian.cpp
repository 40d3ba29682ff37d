// diag_hessian_update on the CPU: decode a block of h, average, choose its scale anew, encode, in one pass. The
// formulas are in math/diagonal_hessian.h and math/quantize.h.

#include "math/diagonal_hessian.h"

#include "cpu/block.h"
#include "math/quantize.h"

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {
namespace {

LMC_REGISTER uint32_t largest_bits(const Block& block) {
    uint32_t largest = 0;
    for (float x : block.x) {
        uint32_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

LMC_REGISTER void round_block(Block& block, uint32_t key) {
    for (uint32_t i = 0; i < block_size; ++i) {
        uint32_t bits;
        std::memcpy(&bits, block.x + i, sizeof bits);
        bits = math::round_by_chance(bits, key, i);
        std::memcpy(block.x + i, &bits, sizeof bits);
    }
}

}  // namespace

void update_diagonal(const DiagonalUpdate& u, int64_t n, int threads, double* chunk_failures) {
    for_each_chunk(n, threads, [&](int64_t chunk, int64_t begin, int64_t end) {
        chunk_failures[chunk] = 0;
        for_each_block_of(begin, end, [&](int64_t block, int64_t at, int count) __attribute__((always_inline)) {
            Block h, a, b;
            decode_block(u.payload, u.scales, Format::fp16, block, count, h);
            load_block(u.a + at, count, a);
            if (u.b != u.a) load_block(u.b + at, count, b);
            const Block& other = u.b == u.a ? a : b;
            for (int i = 0; i < block_size; i += Pack::width)
                store_pack(h.x + i, math::running_average(load_pack(h.x + i), load_pack(a.x + i),
                                                          load_pack(other.x + i), u.beta, u.weight));
            const uint32_t largest = largest_bits(h);
            chunk_failures[chunk] += largest >= math::overflow_bits(Format::fp16);
            const uint8_t exponent = math::block_exponent(Format::fp16, largest);
            const Pack factor(scale_of(uint8_t(254 - exponent)));
            for (int i = 0; i < block_size; i += Pack::width) store_pack(h.x + i, load_pack(h.x + i) * factor);
            if (u.by_chance) round_block(h, math::block_key(u.seed, uint64_t(block)));
            alignas(64) uint16_t encoded[block_size];
            for (int i = 0; i < block_size; i += Pack::width)
                store_payload<Format::fp16>(encoded + i, load_pack(h.x + i));
            std::memcpy(u.payload + at, encoded, size_t(count) * sizeof(uint16_t));
            u.scales[block] = exponent;
        });
    });
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
