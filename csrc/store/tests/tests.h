// What the native tests of the ring share. Each test returns "" or what it found wrong.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "store/error.h"
#include "store/ring.h"

namespace lmcleaner::store {

std::string power_cut(const std::string& folder, std::uint64_t cuts, std::uint64_t seed);  // power_cut.cpp
std::string killed(const std::string& folder, std::uint64_t times, std::uint64_t seed);    // killed.cpp
std::string chase(const std::string& folder, std::uint64_t reads, std::uint64_t seed);     // chase.cpp
std::string bit_flips(const std::string& folder);                                          // bit_flips.cpp
std::string fuzz(const std::string& folder, std::uint64_t inputs, std::uint64_t seed);     // fuzz.cpp
std::string eio(const std::string& folder, std::uint64_t seed);                            // faults.cpp
std::string no_space(const std::string& folder);                                           // faults.cpp
std::string forked(const std::string& folder);                                             // faults.cpp
std::string overtaken(const std::string& folder);                                          // faults.cpp
std::string leases(const std::string& folder);                                             // faults.cpp
std::string truncated(const std::string& folder);                                          // faults.cpp

// A step whose every byte follows from its serial number, which is its metadata.
struct Step {
    std::int64_t step;
    std::uint64_t serial;

    std::string metadata() const {
        std::string bytes(16 + serial % 500, char(serial));
        std::memcpy(bytes.data(), this, sizeof *this);
        return bytes;
    }
    std::vector<unsigned char> section(std::size_t k, std::uint64_t capacity) const {
        std::uint64_t word = (serial * 8 + k) * 0x9e3779b97f4a7c15;
        std::vector<unsigned char> bytes((capacity - (serial + k) % (capacity / 2 + 1)));
        for (std::size_t i = 0; i < bytes.size(); i += 8) {
            word ^= word >> 29;
            word *= 0xbf58476d1ce4e5b9;
            word ^= word >> 32;
            std::memcpy(bytes.data() + i, &word, std::min<std::size_t>(8, bytes.size() - i));
        }
        return bytes;
    }
};
static_assert(sizeof(Step) == 16);
constexpr std::uint64_t METADATA_CAPACITY = 515;

inline void append(RingWriter& ring, const Step& step, std::uint32_t lineage) {
    const std::string metadata = step.metadata();
    std::vector<std::vector<unsigned char>> sections;
    for (std::size_t k = 0; k < ring.layout().section_count(); ++k)
        sections.push_back(step.section(k, ring.superblock().section_capacity[k]));
    ring.append(step.step, lineage, {reinterpret_cast<const unsigned char*>(metadata.data()), metadata.size()},
                {sections.begin(), sections.end()}, 1);
}

enum class Outcome { right, corrupt, overwritten, wrong };

// Reads all of a step through every check that there is. `serial` is what it turned out to be.
inline Outcome read_step(const RingReader& ring, const Entry& entry, std::uint64_t& serial) {
    try {
        const std::string metadata = ring.metadata(entry.slot, entry.generation);
        Step step;
        if (metadata.size() < sizeof step) return Outcome::wrong;
        std::memcpy(&step, metadata.data(), sizeof step);
        serial = step.serial;
        bool equal = step.step == entry.step && metadata == step.metadata();
        for (std::size_t k = 0; k < ring.layout().section_count(); ++k) {
            const std::uint64_t capacity = ring.superblock().section_capacity[k];
            const RingReader::View view = ring.section(entry.slot, entry.generation, k);
            ring.verify({entry.slot}, {entry.generation}, k, 0, capacity, 1);
            const std::vector<unsigned char> expected = step.section(k, capacity);
            equal &= std::equal(expected.begin(), expected.end(), view.data, view.data + view.size);
        }
        ring.check({entry.slot},
                   {entry.generation});  // views may have changed under the comparison: then it does not count
        return equal ? Outcome::right : Outcome::wrong;
    } catch (const Error& error) {
        if (error.kind == ErrorKind::corrupt) return Outcome::corrupt;
        if (error.kind == ErrorKind::overwritten || error.kind == ErrorKind::scrubbed) return Outcome::overwritten;
        throw;
    }
}

// The kind of store::Error that the action ends in; nothing when it succeeds.
template <typename Action>
std::optional<ErrorKind> error_of(Action action) {
    try {
        action();
    } catch (const Error& error) {
        return error.kind;
    }
    return std::nullopt;
}

}  // namespace lmcleaner::store
