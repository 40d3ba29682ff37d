// Reading a ring that may be written at the same time.
//
// The file is mapped once and views point into the mapping (mapping.h: also when the file is cut meanwhile). No lock is
// taken: the writer marks a slot WRITING before it touches the rest of it, so bytes read between two looks at an
// unchanged header belong to that header's step.

#include <sys/mman.h>

#include <algorithm>

#include "store/error.h"
#include "store/mutant.h"
#include "store/ring.h"

namespace lmcleaner::store {
namespace {

bool is_linked(const std::vector<Entry>& entries) {
    for (std::size_t i = 1; i < entries.size(); ++i)
        if (entries[i].previous != entries[i - 1].generation) return false;
    return true;
}

}  // namespace

std::unique_ptr<RingReader> RingReader::open(const std::string& path) {
    return std::unique_ptr<RingReader>(new RingReader(File::open(path, false)));
}

RingReader::RingReader(File file)
    : Ring(std::move(file)), mapping_(file_.descriptor(), superblock_.file_size), leases_(file_.descriptor()) {}

Scan RingReader::refresh() {
    Scan found = scan();
    // Steps that were committed while the scan went over the slots may have left a gap: look again while there is news.
    for (int attempt = 0; attempt < 10 && !is_linked(found.entries); ++attempt) {
        const std::uint64_t before = found.newest_generation;
        found = scan();
        if (found.newest_generation == before) break;
    }
    std::lock_guard guard(seen_mutex_);
    const std::uint64_t keep = 2 * superblock_.slot_count;
    if (found.newest_generation > keep) seen_.erase(seen_.begin(), seen_.lower_bound(found.newest_generation - keep));
    for (const Entry& entry : found.entries) seen_[entry.generation] = entry.step;
    scrubbed_.clear();
    for (const Entry& entry : found.entries)
        if (entry.scrubbed) scrubbed_.push_back(entry.step);
    return found;
}

std::vector<std::int64_t> RingReader::scrubbed_steps() const {
    std::lock_guard guard(seen_mutex_);
    return scrubbed_;
}

std::int64_t RingReader::step_of(std::uint64_t generation) const {
    std::lock_guard guard(seen_mutex_);
    const auto found = seen_.find(generation);
    return found == seen_.end() ? -1 : found->second;
}

void RingReader::require_mapped() const {
    if (const std::uint64_t real = file_.size(); real < mapping_.size())
        throw Error(ErrorKind::truncated, path() + " was cut to " + std::to_string(real) + " of " +
                                              std::to_string(mapping_.size()) + " bytes");
    if (mapping_.broken())
        throw Error(
            ErrorKind::truncated,
            path() + ": a page could not be read: the file was cut for a while, or the disk failed. Open it again");
}

const Region& RingReader::region_of(std::size_t k) const {
    if (k >= layout_.section_count()) throw std::invalid_argument("no section " + std::to_string(k));
    return layout_.section(k);
}

RingReader::View RingReader::section(std::uint64_t slot, std::uint64_t generation, std::size_t k) const {
    const Region& region = region_of(k);
    require_mapped();
    const SlotHeader header = require_generation(slot, generation);
    return {mapping_.data() + offset_of(slot) + region.offset, header.section_size[k]};
}

RingReader::Place RingReader::place(std::uint64_t slot, std::size_t k) const {
    if (slot >= superblock_.slot_count) throw std::invalid_argument("no slot " + std::to_string(slot));
    return {file_.descriptor(), offset_of(slot) + region_of(k).offset};
}

void RingReader::check(const std::vector<std::uint64_t>& slots, const std::vector<std::uint64_t>& generations) const {
    if (slots.size() != generations.size()) throw std::invalid_argument("as many slots as generations are needed");
    for (std::size_t i = 0; i < slots.size(); ++i) require_generation(slots[i], generations[i]);
    require_mapped();
}

std::string RingReader::metadata(std::uint64_t slot, std::uint64_t generation) const {
    const SlotHeader header = require_generation(slot, generation);
    const std::vector<std::uint64_t> table = read_table(slot, header);
    const Region& region = layout_.metadata();
    std::string bytes(pages(header.metadata_size), '\0');
    if (file_.read(bytes.data(), bytes.size(), offset_of(slot) + region.offset) != bytes.size())
        throw Error(ErrorKind::truncated, path() + " ends within slot " + std::to_string(slot));
    for (std::uint64_t i = 0; i < chunks(bytes.size()); ++i) {
        const std::uint64_t size = std::min(CHUNK, bytes.size() - i * CHUNK), chunk = region.first_chunk + i;
        if (checksum(bytes.data() + i * CHUNK, size, chunk_seed(slot, header.step, chunk)) == table[chunk]) continue;
        if (!mutated(Mutant::no_second_look)) require_generation(slot, generation);
        throw corrupt(header.step, std::int64_t(chunk),
                      "step " + std::to_string(header.step) + ": its metadata is damaged");
    }
    require_generation(slot, generation);
    bytes.resize(header.metadata_size);
    return bytes;
}

void RingReader::verify(const std::vector<std::uint64_t>& slots, const std::vector<std::uint64_t>& generations,
                        std::size_t k, std::uint64_t begin, std::uint64_t end, unsigned threads,
                        const std::vector<const unsigned char*>& copies) const {
    if (begin > end) throw std::invalid_argument("the byte range ends before it begins");
    if (!copies.empty() && (copies.size() != slots.size() || begin % CHUNK != 0))
        throw std::invalid_argument("copies are one per slot and begin where a chunk does");
    const std::vector<std::vector<ChunkCheck>> vectors = chunk_checks(slots, generations, k).vectors;
    struct Task {
        std::size_t i;      // which of the slots
        std::size_t chunk;  // within the section
    };
    std::vector<Task> tasks;
    for (std::size_t i = 0; i < slots.size(); ++i)
        for (std::size_t chunk = begin / CHUNK; chunk < vectors[i].size() && chunk * CHUNK < end; ++chunk) {
            if (!copies.empty() && chunk * CHUNK + vectors[i][chunk].size > pages(end))
                throw std::invalid_argument("copies end where a chunk does");
            tasks.push_back({i, chunk});
        }
    parallel(tasks.size(), threads, [&](std::uint64_t t) {
        const auto [i, chunk] = tasks[t];
        const ChunkCheck& check = vectors[i][chunk];
        const unsigned char* data = copies.empty() ? check.data : copies[i] + (chunk * CHUNK - begin);
        if (checksum(data, check.size, check.seed) == check.expected) return;
        require_mapped();
        const std::int64_t step = mutated(Mutant::no_second_look) ? step_of(generations[i])
                                                                  : require_generation(slots[i], generations[i]).step;
        const std::uint64_t offset = chunk * CHUNK;
        throw corrupt(step, std::int64_t(region_of(k).first_chunk + chunk),
                      "step " + std::to_string(step) + ", section " + std::to_string(k) + ", bytes " +
                          std::to_string(offset) + " to " + std::to_string(offset + check.size) +
                          ": the checksum does not match; this step cannot be used, others can");
    });
    check(slots, generations);
}

VectorChecks RingReader::chunk_checks(const std::vector<std::uint64_t>& slots,
                                      const std::vector<std::uint64_t>& generations, std::size_t k) const {
    const Region& region = region_of(k);
    if (slots.size() != generations.size()) throw std::invalid_argument("as many slots as generations are needed");
    require_mapped();
    VectorChecks checks;
    for (std::size_t i = 0; i < slots.size(); ++i) {
        const SlotHeader header = require_generation(slots[i], generations[i]);
        const std::vector<std::uint64_t> table = read_table(slots[i], header);
        const std::uint64_t size = pages(header.section_size[k]);
        const unsigned char* data = mapping_.data() + offset_of(slots[i]) + region.offset;
        std::vector<ChunkCheck>& chunks_of_vector = checks.vectors.emplace_back();
        for (std::uint64_t chunk = 0; chunk < chunks(size); ++chunk) {
            const std::uint64_t number = region.first_chunk + chunk;
            chunks_of_vector.push_back({data + chunk * CHUNK, std::min(CHUNK, size - chunk * CHUNK),
                                        chunk_seed(slots[i], header.step, number), table[number]});
        }
    }
    return checks;
}

void RingReader::advise(std::uint64_t slot, std::size_t k, std::uint64_t begin, std::uint64_t end) const {
    const Region& region = region_of(k);
    if (slot >= superblock_.slot_count) throw std::invalid_argument("no slot " + std::to_string(slot));
    end = std::min(end, pages(region.capacity));
    begin = std::min(begin, end) / PAGE * PAGE;
    // Only advice: a failure costs nothing but speed.
    madvise(mapping_.data() + offset_of(slot) + region.offset + begin, end - begin, MADV_WILLNEED);
}

void RingReader::lease(const std::vector<std::uint64_t>& slots, const std::vector<std::uint64_t>& generations) {
    if (slots.size() != generations.size()) throw std::invalid_argument("as many slots as generations are needed");
    std::vector<std::uint64_t> taken;
    try {
        for (std::size_t i = 0; i < slots.size(); ++i) {
            require_generation(slots[i],
                               generations[i]);  // before: no lock beyond the file. After: nobody came between
            if (!leases_.take(offset_of(slots[i]), layout_.stride)) throw overwritten(step_of(generations[i]));
            taken.push_back(slots[i]);
            require_generation(slots[i], generations[i]);
        }
    } catch (...) {
        release(taken);
        throw;
    }
}

void RingReader::release(const std::vector<std::uint64_t>& slots) {
    for (const std::uint64_t slot : slots)
        if (slot < superblock_.slot_count) leases_.give(offset_of(slot), layout_.stride);
}

}  // namespace lmcleaner::store
