// Opening a ring: superblock, manifest and slot headers, none of which is believed before it is checked.

#include "store/ring.h"

#include <algorithm>
#include <cstring>

#include "store/error.h"
#include "store/mutant.h"

namespace lmcleaner::store {
namespace {

std::string version_text(unsigned major, unsigned minor) {
    return std::to_string(major) + "." + std::to_string(minor);
}

// All sizes follow from the capacities: whatever the file claims must equal what they give. `real` bounds everything.
void require_consistent(const Superblock& block, std::uint64_t real, const std::string& path) {
    if (block.features & ~KNOWN_FEATURES)
        throw Error(ErrorKind::version, version_text(block.major, block.minor) + " with unknown features", 0, 0,
                    version_text(VERSION_MAJOR, VERSION_MINOR));
    if (block.file_size > real)
        throw Error(ErrorKind::truncated, path + " has " + std::to_string(real) + " bytes, its superblock says " +
                                              std::to_string(block.file_size));
    auto require = [&](bool holds, const char* what) {
        if (!holds) throw bad_format(path + ": the superblock contradicts itself: " + what);
    };
    require(block.chunk_size == CHUNK, "chunk size");
    require(block.section_count >= 1 && block.section_count <= MAX_SECTIONS, "section count");
    require(block.manifest_size <= MAX_MANIFEST, "manifest size");
    require(block.metadata_capacity <= MAX_METADATA, "metadata capacity");
    for (std::uint32_t k = 0; k < block.section_count; ++k)
        require(block.section_capacity[k] <= std::min(real, MAX_SECTION), "section capacity");
    const SlotLayout layout(block.metadata_capacity, std::span(block.section_capacity).first(block.section_count));
    require(block.slot_stride == layout.stride, "slot stride");
    require(block.slots_offset == 2 * PAGE + pages(block.manifest_size), "offset of the slots");
    require(block.capacity >= 1 && (block.slot_count > block.capacity || mutated(Mutant::no_spare_slot)), "slot count");
    std::uint64_t slots_size = 0, file_size = 0;
    require(!__builtin_mul_overflow(block.slot_count, block.slot_stride, &slots_size) &&
                !__builtin_add_overflow(block.slots_offset, slots_size, &file_size) && file_size == block.file_size,
            "file size");
    require(block.durability <= Durability::process && block.group >= 1, "durability");
}

// Fills in the first intact copy of the superblock and returns the number of intact ones.
int find_superblock(const File& file, Superblock& block) {
    int intact = 0;
    bool newer = false, ours = false;
    Superblock copy;
    std::string found_version;
    for (const std::uint64_t offset : {std::uint64_t(0), PAGE}) {
        const std::uint64_t got = file.read(&copy, PAGE, offset);
        if (got < 12 || copy.magic != MAGIC) continue;  // 12: all versions begin with magic, major, minor
        ours = true;
        if (got == PAGE && copy.checksum == own_checksum(copy, offset) && copy.major == VERSION_MAJOR) {
            if (intact++ == 0) block = copy;
        } else if (copy.major > VERSION_MAJOR) {
            newer = true;
            found_version = version_text(copy.major, copy.minor);
        }
    }
    const std::uint64_t real = file.size();
    if (intact > 0) {
        require_consistent(block, real, file.path());
        return intact;
    }
    if (newer) throw Error(ErrorKind::version, found_version, 0, 0, version_text(VERSION_MAJOR, VERSION_MINOR));
    if (ours && real < 2 * PAGE) throw Error(ErrorKind::truncated, file.path() + " ends within its superblocks");
    throw bad_format(file.path() + (ours ? ": both superblocks are damaged" : " is not a log of lmcleaner_ext"));
}

std::string read_manifest(const File& file, const Superblock& block) {
    std::string manifest(pages(block.manifest_size), '\0');
    if (file.read(manifest.data(), manifest.size(), 2 * PAGE) != manifest.size())
        throw Error(ErrorKind::truncated, file.path() + " ends within its manifest");
    if (checksum(manifest.data(), manifest.size(), 2 * PAGE) != block.manifest_checksum)
        throw bad_format(file.path() + ": the manifest does not match its checksum");
    manifest.resize(block.manifest_size);
    return manifest;
}

bool all_zero(std::span<const unsigned char> bytes) {
    static constexpr std::array<unsigned char, PAGE> ZEROS = {};
    return std::memcmp(bytes.data(), ZEROS.data(), bytes.size()) == 0;
}

bool never_used(const SlotHeader& header) {
    return all_zero({reinterpret_cast<const unsigned char*>(&header), sizeof header});
}

bool same_generation(const SlotHeader& header, std::uint64_t generation) {
    return header.state == State::committed && header.generation == generation;
}

}  // namespace

Ring::Ring(File file)
    : file_(std::move(file)),
      intact_superblocks_(find_superblock(file_, superblock_)),
      layout_(superblock_.metadata_capacity, std::span(superblock_.section_capacity).first(superblock_.section_count)),
      manifest_(read_manifest(file_, superblock_)) {}

bool Ring::read_header(std::uint64_t slot, SlotHeader& header) const {
    // A header is one page, but a read beside a write may still see half of each: look again before calling it damaged.
    for (int looks = 1;; ++looks) {
        if (file_.read(&header, PAGE, offset_of(slot)) != PAGE)
            throw Error(ErrorKind::truncated, file_.path() + " ends before slot " + std::to_string(slot));
        if (never_used(header)) return true;
        if (header.checksum == own_checksum(header, slot) && all_zero(header.padding)) break;
        if (!SystemCalls::current->look_again(looks)) return false;
    }
    bool consistent = header.magic == SLOT_MAGIC && header.index == slot && header.state <= State::scrubbed &&
                      header.section_count == layout_.section_count() && header.chunk_count == layout_.chunk_count &&
                      header.metadata_size <= layout_.metadata().capacity;
    for (std::size_t k = 0; consistent && k < layout_.section_count(); ++k)
        consistent = header.section_size[k] <= layout_.section(k).capacity;
    return consistent;
}

SlotHeader Ring::require_generation(std::uint64_t slot, std::uint64_t generation) const {
    if (slot >= superblock_.slot_count) throw std::invalid_argument("no slot " + std::to_string(slot));
    SlotHeader header;
    if (!read_header(slot, header))
        throw corrupt(step_of(generation), -1,
                      "the header of slot " + std::to_string(slot) + " does not match its checksum");
    if (header.state == State::scrubbed && header.generation == generation) throw scrubbed(header.step);
    if (!same_generation(header, generation)) throw overwritten(step_of(generation));
    return header;
}

std::vector<std::uint64_t> Ring::read_table(std::uint64_t slot, const SlotHeader& header) const {
    std::vector<std::uint64_t> table(layout_.table_size / 8);
    const std::uint64_t offset = offset_of(slot) + layout_.table_offset;
    if (file_.read(table.data(), layout_.table_size, offset) != layout_.table_size)
        throw Error(ErrorKind::truncated, file_.path() + " ends within slot " + std::to_string(slot));
    if (checksum(table.data(), layout_.table_size, chunk_seed(slot, header.step, TABLE)) == header.table_checksum)
        return table;
    require_generation(slot, header.generation);  // overwritten rather than corrupt
    throw corrupt(header.step, -1, "step " + std::to_string(header.step) + ": its checksum table is damaged");
}

Scan Ring::scan() const {
    Scan result;
    std::vector<Entry> committed;
    SlotHeader header;
    for (std::uint64_t slot = 0; slot < superblock_.slot_count; ++slot) {
        if (!read_header(slot, header)) {
            result.damaged.push_back(slot);
            continue;
        }
        result.newest_generation = std::max(result.newest_generation, header.generation);
        result.newest_lineage = std::max(result.newest_lineage, header.lineage);
        if (header.state == State::free && header.generation > 0) result.freed.push_back(header.generation);
        if (header.state == State::committed || header.state == State::scrubbed)
            committed.push_back({header.step, slot, header.generation, header.lineage, header.previous,
                                 header.state == State::scrubbed});
    }
    // Steps grow with generations, so from the newest back each step must be smaller than the one after it; one that is
    // not belongs to a branch that a rewind abandoned. The oldest beyond `capacity` may be half overwritten on disk
    // after a power cut.
    std::sort(committed.begin(), committed.end(),
              [](const Entry& a, const Entry& b) { return a.generation > b.generation; });
    for (const Entry& entry : committed) {
        const bool listed = result.entries.size() < superblock_.capacity &&
                            (result.entries.empty() || entry.step < result.entries.back().step);
        (listed ? result.entries : result.others).push_back(entry);
    }
    std::reverse(result.entries.begin(), result.entries.end());
    return result;
}

}  // namespace lmcleaner::store
