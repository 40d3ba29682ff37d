// Overwriting what a ring holds of certain steps: the vectors of a deleted sample reveal it as long as they exist.
//
// First the header says SCRUBBED, durably; then zeros go over everything behind it, durably. A crash in between leaves
// a step that nobody reads and contents that are not all gone: scrubbing again finishes it.

#include <algorithm>

#include "store/error.h"
#include "store/mutant.h"
#include "store/ring.h"

namespace lmcleaner::store {
namespace {

alignas(PAGE) unsigned char zeros[CHUNK];  // never written; not const, or it would take a mebibyte of the binary

}  // namespace

// Everything of a slot but its header.
std::uint64_t RingWriter::wipe(std::uint64_t slot) {
    for (std::uint64_t at = PAGE; at < layout_.stride; at += CHUNK)
        file_.write(zeros, std::min(CHUNK, layout_.stride - at), offset_of(slot) + at);
    return layout_.stride - PAGE;
}

std::uint64_t RingWriter::scrub(const std::vector<std::int64_t>& steps) {
    require_owner();
    std::lock_guard guard(mutex_);
    require_usable();
    std::uint64_t wiped = 0;
    try {
        // First: a slot may be wiped because newer steps have taken its place, and those must not be lost then.
        if (unsynced_ > 0 && !mutated(Mutant::no_scrub_sync)) sync_locked();
        const Scan found = scan();
        std::vector<bool> keep(superblock_.slot_count, false);
        for (const Entry& entry : found.entries)
            keep[entry.slot] = std::find(steps.begin(), steps.end(), entry.step) == steps.end();
        for (const std::uint64_t slot : found.damaged) keep[slot] = true;  // evidence, and not ours to judge
        std::vector<std::uint64_t> slots;
        for (std::uint64_t slot = 0; slot < superblock_.slot_count; ++slot) {
            SlotHeader header;
            if (keep[slot] || !read_header(slot, header) || header.generation == 0) continue;
            const bool listed = std::any_of(found.entries.begin(), found.entries.end(),
                                            [&](const Entry& entry) { return entry.slot == slot; });
            header.state = listed ? State::scrubbed : State::free;
            header.metadata_size = header.table_checksum = 0;
            header.section_size = {};
            write_header(slot, header);
            slots.push_back(slot);
        }
        if (!slots.empty()) sync_locked();
        for (const std::uint64_t slot : slots) wiped += wipe(slot);
        if (!slots.empty()) sync_locked();
    } catch (...) {
        poisoned_ = true;
        throw;
    }
    return wiped;
}

}  // namespace lmcleaner::store
