// Writing a ring.
//
// One append, Durability::step:    header WRITING, contents, fdatasync, header COMMITTED, fdatasync
//             Durability::group:   the same without the barriers, one fdatasync every `group` appends
//             Durability::process: no fdatasync at all
// Without barriers the disk may keep a COMMITTED header and lose its contents; the checksums tell, and only the spare
// slots and the newest `group` steps can be concerned.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "store/error.h"
#include "store/mutant.h"
#include "store/ring.h"

namespace lmcleaner::store {
namespace {

constexpr std::array<unsigned char, PAGE> ZEROS = {};

void require_valid(const RingOptions& options) {
    auto require = [](bool holds, const char* what) {
        if (!holds) throw std::invalid_argument(what);
    };
    require(options.capacity >= 1, "capacity must be at least 1");
    require(options.group >= 1, "group must be at least 1");
    require(options.spare >= 1 || mutated(Mutant::no_spare_slot),
            "at least one spare slot is needed: a step is never written over one that is promised");
    require(options.durability != Durability::group || options.spare >= options.group,
            "durability 'group' needs as many spare slots as a group has steps");
    require(options.manifest.size() <= MAX_MANIFEST, "the manifest is too long");
    require(options.metadata_capacity <= MAX_METADATA, "metadata_bytes is too large");
    const std::size_t sections = options.section_capacity.size();
    require(sections >= 1 && sections <= MAX_SECTIONS, "1 to 8 vector sections are possible");
    for (std::uint64_t size : options.section_capacity) require(size <= MAX_SECTION, "a vector section is too long");
}

Superblock make_superblock(const RingOptions& options) {
    const SlotLayout layout(options.metadata_capacity, options.section_capacity);
    std::string manifest = options.manifest;
    manifest.resize(pages(manifest.size()));
    Superblock block = {};
    block.magic = MAGIC;
    block.major = VERSION_MAJOR;
    block.minor = VERSION_MINOR;
    block.slots_offset = 2 * PAGE + manifest.size();
    block.slot_stride = layout.stride;
    block.capacity = options.capacity;
    const std::uint64_t spare = mutated(Mutant::no_spare_slot) ? 0 : options.spare;
    if (__builtin_add_overflow(options.capacity, spare, &block.slot_count) ||
        __builtin_mul_overflow(block.slot_count, layout.stride, &block.file_size) ||
        __builtin_add_overflow(block.file_size, block.slots_offset, &block.file_size) || block.file_size >> 62)
        throw std::invalid_argument("a log of this capacity is larger than any file can be");
    block.manifest_size = options.manifest.size();
    block.manifest_checksum = checksum(manifest.data(), manifest.size(), 2 * PAGE);
    block.metadata_capacity = options.metadata_capacity;
    block.section_count = std::uint32_t(options.section_capacity.size());
    block.chunk_size = CHUNK;
    block.durability = options.durability;
    block.group = options.group;
    block.run_uuid = options.run_uuid;
    block.fingerprint = options.fingerprint;
    std::copy(options.section_capacity.begin(), options.section_capacity.end(), block.section_capacity.begin());
    return block;
}

}  // namespace

std::unique_ptr<RingWriter> RingWriter::create(const std::string& path, const RingOptions& options) {
    require_valid(options);
    Superblock block = make_superblock(options);
    auto lock = std::make_unique<WriterLock>(path);
    File file = File::create(path, block.file_size);
    const std::string& manifest = options.manifest;
    try {
        file.write(manifest.data(), manifest.size(), 2 * PAGE, ZEROS.data(), pages(manifest.size()) - manifest.size());
        for (const std::uint64_t offset : {std::uint64_t(0), PAGE}) {
            block.checksum = own_checksum(block, offset);
            file.write(&block, PAGE, offset);
        }
        file.sync();
        sync_directory_of(path);
    } catch (...) {
        remove_file(path);
        throw;
    }
    return std::unique_ptr<RingWriter>(new RingWriter(std::move(file), std::move(lock)));
}

std::unique_ptr<RingWriter> RingWriter::open(const std::string& path) {
    auto lock = std::make_unique<WriterLock>(path);
    auto ring = std::unique_ptr<RingWriter>(new RingWriter(File::open(path, true), std::move(lock)));
    ring->drop_torn_tail();
    return ring;
}

RingWriter::RingWriter(File file, std::unique_ptr<WriterLock> lock)
    : Ring(std::move(file)), owner_(getpid()), lock_(std::move(lock)) {
    direct_ = file_.write_directly();
    const Scan found = scan();
    generation_ = found.newest_generation;
    lineage_ = found.newest_lineage;
    continue_after(found.entries);
}

RingWriter::~RingWriter() {
    try {
        close();
    } catch (const Error&) {  // a destructor cannot report; close() called by hand does
    }
}

// After any failure the state on disk is unknown, so this writer stops for good. In particular fdatasync is never
// repeated: the kernel reports lost pages once and then calls them clean.
template <typename Action>
void RingWriter::poison_on_failure(Action action) {
    try {
        action();
    } catch (...) {
        poisoned_ = !mutated(Mutant::no_poison);
        throw;
    }
}

void RingWriter::require_owner() const {
    if (owner_ != getpid()) throw Error(ErrorKind::write, path() + ": this writer belongs to the parent process");
}

void RingWriter::require_usable() const {
    if (closed_) throw Error(ErrorKind::write, path() + ": this writer is closed");
    if (poisoned_)
        throw Error(ErrorKind::write, path() +
                                          ": an earlier write failed; this writer takes no further steps, the "
                                          "committed ones stand. Repair the disk, then resume the log");
}

void RingWriter::write_header(std::uint64_t slot, SlotHeader header) {
    header.checksum = own_checksum(header, slot);
    file_.write(&header, PAGE, offset_of(slot));
}

// Writes one chunk of a region and returns its checksum. Checksum and copy share one pass through the cache.
std::uint64_t RingWriter::write_chunk(std::uint64_t slot, std::int64_t step, const Region& region, std::uint64_t chunk,
                                      Bytes data) {
    const Bytes part = data.subspan(chunk * CHUNK, std::min<std::uint64_t>(CHUNK, data.size() - chunk * CHUNK));
    const std::uint64_t padding = pages(part.size()) - part.size();
    const std::uint64_t seed = chunk_seed(slot, step, region.first_chunk + chunk);
    const std::uint64_t sum = checksum(part.data(), part.size(), ZEROS.data(), padding, seed);
    file_.write(part.data(), part.size(), offset_of(slot) + region.offset + chunk * CHUNK, ZEROS.data(), padding);
    return sum;
}

std::uint64_t RingWriter::append(std::int64_t step, std::uint32_t lineage, Bytes metadata,
                                 const std::vector<Bytes>& sections, unsigned threads) {
    require_owner();
    std::lock_guard guard(mutex_);
    require_usable();
    if (step <= last_step_)
        throw std::invalid_argument("step " + std::to_string(step) + " does not come after step " +
                                    std::to_string(last_step_) + ": rewind first");
    if (lineage < lineage_) throw std::invalid_argument("lineage " + std::to_string(lineage) + " was abandoned");
    if (sections.size() != layout_.section_count()) throw std::invalid_argument("wrong number of vector sections");
    std::vector<Bytes> contents = {metadata};
    contents.insert(contents.end(), sections.begin(), sections.end());

    SlotHeader header = {};
    header.magic = SLOT_MAGIC;
    header.state = State::writing;
    header.lineage = lineage;
    header.index = next_slot_;
    header.generation = generation_ + 1;
    header.step = step;
    header.metadata_size = metadata.size();
    header.previous = last_generation_;
    header.section_count = std::uint32_t(sections.size());
    header.chunk_count = std::uint32_t(layout_.chunk_count);
    struct Task {
        std::size_t region;
        std::uint64_t chunk;
    };
    std::vector<Task> tasks;
    for (std::size_t r = 0; r < contents.size(); ++r) {
        if (contents[r].size() > layout_.regions[r].capacity)
            throw std::invalid_argument((r ? "section " + std::to_string(r - 1) : std::string("the metadata")) +
                                        " has " + std::to_string(contents[r].size()) +
                                        " bytes, the log was created for " +
                                        std::to_string(layout_.regions[r].capacity));
        if (r) header.section_size[r - 1] = contents[r].size();
        for (std::uint64_t chunk = 0; chunk < chunks(contents[r].size()); ++chunk) tasks.push_back({r, chunk});
    }

    poison_on_failure([&] {
        const std::uint64_t slot = next_slot_;
        if (!mutated(Mutant::no_writing_mark)) {
            // Once for a stopped reader, not once for each of its slots.
            const double wait = lease_overdue_ ? 0 : lease_wait.load();
            const LeaseBarrier barrier(file_.descriptor(), offset_of(slot), layout_.stride, wait);
            lease_overdue_ = !barrier.granted();
            if (mutated(Mutant::header_first)) header.state = State::committed;
            write_header(slot, header);
        }
        std::vector<std::uint64_t> table(layout_.table_size / 8);
        parallel(tasks.size(), threads, [&](std::uint64_t t) {
            const Region& region = layout_.regions[tasks[t].region];
            table[region.first_chunk + tasks[t].chunk] =
                write_chunk(slot, step, region, tasks[t].chunk, contents[tasks[t].region]);
        });
        file_.write(table.data(), layout_.table_size, offset_of(slot) + layout_.table_offset);
        header.table_checksum = checksum(table.data(), layout_.table_size, chunk_seed(slot, step, TABLE));
        header.state = State::committed;
        if (superblock_.durability == Durability::step && !mutated(Mutant::no_barrier)) file_.sync();
        write_header(slot, header);
        next_slot_ = (slot + 1) % superblock_.slot_count;
        generation_ = last_generation_ = header.generation;
        lineage_ = lineage;
        last_step_ = step;
        ++unsynced_;
        if (superblock_.durability == Durability::step ||
            (superblock_.durability == Durability::group && unsynced_ >= superblock_.group &&
             !mutated(Mutant::no_group_sync)))
            sync_locked();
    });
    return header.index;
}

void RingWriter::sync_locked() {
    file_.sync();
    unsynced_ = 0;
    durable_step_ = last_step_.load();
}

void RingWriter::sync() {
    require_owner();
    std::lock_guard guard(mutex_);
    require_usable();
    poison_on_failure([&] { sync_locked(); });
}

void RingWriter::close() {
    if (owner_ != getpid())
        return;  // a forked child: nothing of the ring is its own, not even a mutex in a known state
    std::lock_guard guard(mutex_);
    if (closed_) return;
    closed_ = true;
    const std::unique_ptr<WriterLock> lock =
        std::move(lock_);  // released at the end of this scope, also by an exception
    if (!poisoned_ && unsynced_ > 0) sync_locked();
}

void RingWriter::free_slots(const std::vector<Entry>& entries, std::uint32_t lineage) {
    for (const Entry& entry : entries) {
        SlotHeader header = {};
        header.magic = SLOT_MAGIC;
        header.state = State::free;
        header.lineage = lineage;
        header.index = entry.slot;
        header.generation = entry.generation;
        header.step = entry.step;
        header.section_count = std::uint32_t(layout_.section_count());
        header.chunk_count = std::uint32_t(layout_.chunk_count);
        write_header(entry.slot, header);
    }
}

// The next append goes to the slot after the newest of these steps.
void RingWriter::continue_after(const std::vector<Entry>& entries) {
    if (!entries.empty()) next_slot_ = (entries.back().slot + 1) % superblock_.slot_count;
    last_step_ = entries.empty() ? -1 : entries.back().step;
    last_generation_ = entries.empty() ? 0 : entries.back().generation;
}

std::uint32_t RingWriter::rewind(std::int64_t step) {
    require_owner();
    std::lock_guard guard(mutex_);
    require_usable();
    poison_on_failure([&] {
        // First, because a lost header of an unsynced step would let the old one back, over contents half new.
        if (!mutated(Mutant::no_rewind_sync)) sync_locked();
        const Scan found = scan();
        // Newest first: a kill leaves a run of steps without a hole; what a power cut leaves, resuming puts right.
        std::vector<Entry> abandoned;
        for (auto entry = found.entries.rbegin(); entry != found.entries.rend() && entry->step >= step; ++entry)
            abandoned.push_back(*entry);
        for (const Entry& entry : found.others)
            if (entry.step >= step) abandoned.push_back(entry);
        free_slots(abandoned, lineage_ + 1);
        continue_after(scan().entries);  // older steps are listed in their place
        if (!mutated(Mutant::no_rewind_sync)) sync_locked();
    });
    return ++lineage_;
}

bool RingWriter::is_intact(const Entry& entry) const {
    if (entry.scrubbed) return true;
    SlotHeader header;
    if (!read_header(entry.slot, header)) return false;
    try {
        const std::vector<std::uint64_t> table = read_table(entry.slot, header);
        std::vector<unsigned char> buffer(std::min(CHUNK, layout_.stride));
        for (std::size_t r = 0; r < layout_.regions.size(); ++r) {
            const Region& region = layout_.regions[r];
            const std::uint64_t size = pages(r ? header.section_size[r - 1] : header.metadata_size);
            for (std::uint64_t i = 0; i < chunks(size); ++i) {
                const std::uint64_t length = std::min(CHUNK, size - i * CHUNK), chunk = region.first_chunk + i;
                file_.read(buffer.data(), length, offset_of(entry.slot) + region.offset + i * CHUNK);
                if (checksum(buffer.data(), length, chunk_seed(entry.slot, header.step, chunk)) != table[chunk])
                    return false;
            }
        }
    } catch (const Error& error) {
        if (error.kind != ErrorKind::corrupt) throw;
        return false;
    }
    return true;
}

// How many of the listed steps, from the oldest on, can be believed after a power cut.
std::size_t RingWriter::whole_steps(const Scan& found) const {
    if (mutated(Mutant::no_resume_check)) return found.entries.size();
    const std::vector<Entry>& entries = found.entries;
    const bool grouped = superblock_.durability == Durability::group;
    const std::size_t suspects = std::min<std::size_t>(entries.size(), grouped ? superblock_.group : 1);
    for (std::size_t i = 0; i < entries.size(); ++i) {
        // Of the last group any part may be lost: contents without header, header without contents.
        const bool suspect = i + suspects >= entries.size();
        const bool linked = i == 0 || entries[i].previous == entries[i - 1].generation;
        // Further back a gap is a damaged header, and what comes after it is good; unless the step in the gap was
        // freed: then a rewind was interrupted, and these were to go too.
        if (!linked &&
            ((suspect && grouped) || std::ranges::find(found.freed, entries[i].previous) != found.freed.end()))
            return i;
        if (suspect && !is_intact(entries[i])) return i;
    }
    return entries.size();
}

void RingWriter::drop_torn_tail() {
    poison_on_failure([&] {
        // First: what a killed writer left in the page cache becomes durable before it is a reason to free anything.
        if (!mutated(Mutant::no_resume_sync)) file_.sync();
        Scan found = scan();
        for (std::size_t kept; (kept = whole_steps(found)) < found.entries.size(); found = scan()) {
            const std::vector<Entry> torn(found.entries.rbegin(), found.entries.rend() - std::ptrdiff_t(kept));
            for (const Entry& entry : torn) dropped_.insert(dropped_.begin(), entry.step);
            free_slots(torn, lineage_);  // the next scan lists older steps in their place
        }
        // Before older slots are freed: a gap among them must not be seen beside a torn step that came back.
        if (!dropped_.empty()) file_.sync();
        free_slots(found.others, lineage_);  // the oldest may be half overwritten; none is promised to anyone
        continue_after(found.entries);
        sync_locked();
    });
}

}  // namespace lmcleaner::store
