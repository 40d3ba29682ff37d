// The bytes of the ring on disk. docs/log-format.md says the same in prose; a change here changes the version.
//
//   superblock, superblock copy, manifest, slot 0, slot 1, ...
//   slot = header | checksum table | metadata | section 0 | section 1 | ...
//
// Little-endian; every part begins at a multiple of PAGE and is padded to one with zeros.

#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "checksum.h"

namespace lmcleaner::store {

static_assert(std::endian::native == std::endian::little, "the ring is written in the machine's order");

constexpr std::uint64_t PAGE = 4096;
constexpr std::uint64_t SECTOR = 512;     // what every disk writes whole or not at all
constexpr std::uint64_t CHUNK = 1 << 20;  // bytes under one checksum
constexpr std::uint32_t MAX_SECTIONS = 8;
constexpr std::uint64_t MAX_MANIFEST = 64 << 20;
constexpr std::uint64_t MAX_METADATA = 64 << 20;
constexpr std::uint64_t MAX_SECTION = std::uint64_t(1) << 50;  // keeps every sum of sizes far from overflow

constexpr std::uint16_t VERSION_MAJOR = 1;   // readers refuse a newer one
constexpr std::uint16_t VERSION_MINOR = 0;   // readers accept a newer one
constexpr std::uint32_t KNOWN_FEATURES = 0;  // readers refuse a flag they do not know

// As in PNG: the high bit reveals a 7-bit transfer, the line ends a text-mode one, \x1a stops DOS `type`.
constexpr std::array<unsigned char, 8> MAGIC = {0x89, 'L', 'M', 'C', '\r', '\n', 0x1a, '\n'};
constexpr std::array<unsigned char, 8> SLOT_MAGIC = {'L', 'M', 'C', 'S', 'L', 'O', 'T', 0};

enum class Durability : std::uint32_t { step = 0, group = 1, process = 2 };
// Scrubbed: was committed, then its contents were overwritten on purpose (scrub.cpp).
enum class State : std::uint32_t { free = 0, writing = 1, committed = 2, scrubbed = 3 };

constexpr std::uint64_t pages(std::uint64_t size) {
    return (size + PAGE - 1) / PAGE * PAGE;
}
constexpr std::uint64_t chunks(std::uint64_t size) {
    return (size + CHUNK - 1) / CHUNK;
}

struct Superblock {
    std::array<unsigned char, 8> magic;
    std::uint16_t major;
    std::uint16_t minor;
    std::uint32_t features;
    std::uint64_t file_size;
    std::uint64_t slots_offset;
    std::uint64_t slot_stride;
    std::uint64_t slot_count;
    std::uint64_t capacity;  // steps promised to readers; slot_count - capacity are spare
    std::uint64_t manifest_size;
    std::uint64_t manifest_checksum;  // of the manifest and its padding
    std::uint64_t metadata_capacity;
    std::uint32_t section_count;
    std::uint32_t chunk_size;
    Durability durability;
    std::uint32_t group;
    std::array<unsigned char, 16> run_uuid;
    std::array<unsigned char, 32> fingerprint;
    std::array<std::uint64_t, MAX_SECTIONS> section_capacity;
    std::array<unsigned char, 3880> reserved;  // zero
    std::uint64_t checksum;                    // of all bytes before it, seeded by the offset of this copy in the file
};
static_assert(sizeof(Superblock) == PAGE);
static_assert(offsetof(Superblock, run_uuid) == 96 && offsetof(Superblock, section_capacity) == 144);
static_assert(offsetof(Superblock, checksum) == PAGE - 8);

// All that it says lies in the first sector, which a disk writes whole or not at all: a power cut damages no header.
struct SlotHeader {
    std::array<unsigned char, 8> magic;
    State state;
    std::uint32_t lineage;
    std::uint64_t index;       // of this slot
    std::uint64_t generation;  // counts the appends of the ring's life: orders the slots, tells an overwritten one
    std::int64_t step;
    std::uint64_t metadata_size;
    std::uint32_t section_count;
    std::uint32_t chunk_count;
    std::array<std::uint64_t, MAX_SECTIONS> section_size;
    std::uint64_t table_checksum;
    std::uint64_t previous;  // generation of the step before this one; 0: none. Reveals a header that a power cut lost
    std::array<unsigned char, 368> reserved;           // zero
    std::uint64_t checksum;                            // of all bytes before it, seeded by index
    std::array<unsigned char, PAGE - SECTOR> padding;  // zero
};
static_assert(sizeof(SlotHeader) == PAGE);
static_assert(offsetof(SlotHeader, section_size) == 56 && offsetof(SlotHeader, previous) == 128);
static_assert(offsetof(SlotHeader, checksum) == SECTOR - 8);

inline std::uint64_t own_checksum(const Superblock& block, std::uint64_t offset) {
    return checksum(&block, offsetof(Superblock, checksum), offset);
}
inline std::uint64_t own_checksum(const SlotHeader& header, std::uint64_t index) {
    return checksum(&header, offsetof(SlotHeader, checksum), index);
}

// Seeded with its place, a chunk that lands in the wrong slot or at the wrong offset does not verify there.
inline std::uint64_t chunk_seed(std::uint64_t slot, std::int64_t step, std::uint64_t chunk) {
    const std::array<std::uint64_t, 3> place = {slot, std::uint64_t(step), chunk};
    return checksum(place.data(), sizeof place, 0);
}
constexpr std::uint64_t TABLE = ~std::uint64_t(0);  // the "chunk" that seeds the checksum of the table itself

// A stretch of the slot that is checksummed in chunks of its own: the metadata or one vector section.
struct Region {
    std::uint64_t offset;       // from the beginning of the slot
    std::uint64_t capacity;     // bytes
    std::uint64_t first_chunk;  // its place in the checksum table
};

// Where everything lies within a slot.
struct SlotLayout {
    SlotLayout(std::uint64_t metadata_capacity, std::span<const std::uint64_t> section_capacity) {
        std::vector<std::uint64_t> capacities = {metadata_capacity};
        capacities.insert(capacities.end(), section_capacity.begin(), section_capacity.end());
        for (std::uint64_t capacity : capacities) {
            regions.push_back({0, capacity, chunk_count});
            chunk_count += chunks(pages(capacity));
        }
        table_size = pages(chunk_count * 8);
        stride = table_offset + table_size;
        for (Region& region : regions) {
            region.offset = stride;
            stride += pages(region.capacity);
        }
    }

    const Region& metadata() const { return regions[0]; }
    const Region& section(std::size_t k) const { return regions[1 + k]; }
    std::size_t section_count() const { return regions.size() - 1; }

    std::uint64_t table_offset = PAGE;
    std::uint64_t table_size = 0;
    std::uint64_t stride = 0;
    std::uint64_t chunk_count = 0;
    std::vector<Region> regions;
};

}  // namespace lmcleaner::store
