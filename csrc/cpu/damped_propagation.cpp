// damped_propagate and damped_propagate_window on the CPU: a part of v takes all steps in registers while the log
// streams past. The formulas are in math/damped_propagation.h.

#include "math/damped_propagation.h"

#include <algorithm>

#include "cpu/block.h"
#include "cpu/kernels.h"

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {
namespace {

// The part of v that stays in registers: 16 of AVX-512's 32, 8 of AVX2's 16.
constexpr int packs_per_part = 4;
constexpr int part_size = packs_per_part * Pack::width;
static_assert(block_size % part_size == 0);

// A window is many streams, each read in pieces of one block: too many and too short for the hardware to foresee. Each
// is asked for this many blocks ahead, into the second-level cache (the first level's own misses would be the limit),
// of which all streams together get a quarter of a mebibyte.
int blocks_ahead(size_t streams) {
    return int(std::clamp<size_t>(512 / std::max<size_t>(streams, 1), 1, 4));
}

// Elements [begin, begin + part_size) of a block through the steps from `entry` on, up to the first that is not a step
// with a diagonal; returns that.
template <Format format>
LMC_REGISTER const PropagationEntry* take_steps(const PropagationEntry* entry, const PropagationEntry* end,
                                                int64_t block, int begin, int ahead, float* v, Pack& largest) {
    const int64_t at = block * block_size + begin;
    Pack part[packs_per_part], most = largest;
    for (int i = 0; i < packs_per_part; ++i) part[i] = load_pack(v + i * Pack::width);
    for (; entry != end && !entry->injection && entry->payload != nullptr; ++entry) {
        const auto* p = static_cast<const Payload<format>*>(entry->payload) + at;
        const auto* next = reinterpret_cast<const char*>(p + ahead * block_size);
        for (int byte = 0; byte < int(part_size * sizeof *p); byte += 64) __builtin_prefetch(next + byte, 0, 2);
        const float scale = entry->scales == nullptr ? 1.0f : scale_of(entry->scales[block]);  // a power of two
        for (int i = 0; i < packs_per_part; ++i) {
            const Pack h = load_payload<format>(p + i * Pack::width);
            const Pack factor = math::propagation_factor(h, entry->keep, entry->lr * scale);
            most = larger_magnitude(factor, most);
            part[i] = part[i] * factor;
        }
    }
    for (int i = 0; i < packs_per_part; ++i) store_pack(v + i * Pack::width, part[i]);
    largest = most;
    return entry;
}

// One entry of any kind, for what needs no speed: injections, steps without a diagonal, the end of the vector. The
// zeros that fill a block are no elements; their factors do not count.
void take(const PropagationEntry& entry, const Block& x, int count, float* v, Pack& largest) {
    for (int i = 0; i < count; i += Pack::width) {
        if (entry.injection) {
            store_pack(v + i, fnma(Pack(entry.lr), load_pack(x.x + i), load_pack(v + i)));
            continue;
        }
        const Pack factor = math::propagation_factor(load_pack(x.x + i), entry.keep, entry.lr);
        store_pack(v + i, factor * load_pack(v + i));
        const Partial<float> factors(factor);
        for (int lane = 0; lane < Pack::width && i + lane < count; ++lane)
            largest = larger_magnitude(Pack(factors.values[lane]), largest);
    }
}

LMC_REGISTER float largest_lane(const Pack& pack) {
    const Partial<float> lane(pack);
    float largest = 0;
    for (float x : lane.values) largest = x > largest ? x : largest;
    return largest;
}

template <Format format>
LMC_REGISTER void propagate_block(const PropagationArguments& a, const std::vector<PropagationEntry>& entries,
                                  int64_t block, int count, int ahead, Block& v, Pack& largest) {
    const PropagationEntry *entry = entries.data(), *const end = entry + entries.size();
    while (entry != end) {
        if (!entry->injection && entry->payload != nullptr && count == block_size) {
            const PropagationEntry* next = end;
            for (int begin = 0; begin < block_size; begin += part_size)
                next = take_steps<format>(entry, end, block, begin, ahead, v.x + begin, largest);
            entry = next;
        } else {
            Block x;
            decode_block(entry->payload, entry->scales, entry->injection ? a.injections.format : format, block, count,
                         x);
            take(*entry, x, count, v.x, largest);
            ++entry;
        }
    }
}

}  // namespace

void propagate(const PropagationArguments& a, const std::vector<PropagationEntry>& entries, int threads,
               double* chunk_squares, float* chunk_factors) {
    const int ahead = blocks_ahead(entries.size());
    with_format(a.diagonals.format, [&](auto format) __attribute__((always_inline)) {
        for_each_chunk(a.n, threads, [&](int64_t chunk, int64_t begin, int64_t end) {
            DoubleSum squares;
            Pack largest(0.0f);
            for_each_block_of(begin, end, [&](int64_t block, int64_t at, int count) __attribute__((always_inline)) {
                Block v;
                load_block(a.v + at, count, v);
                propagate_block<format()>(a, entries, block, count, ahead, v, largest);
                std::memcpy(a.v + at, v.x, size_t(count) * sizeof(float));
                std::memset(v.x + count, 0, size_t(block_size - count) * sizeof(float));  // inf * 0 there would be NaN
                squares.add_squares(v.x);
            });
            chunk_squares[chunk] = squares.value();
            chunk_factors[chunk] = largest_lane(largest);
        });
    });
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
