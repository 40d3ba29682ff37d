// The ring: one file that keeps the last `capacity` steps of a training run.
//
// RingWriter appends, RingReader reads beside it without taking a lock. What holds after a kill, a power cut, a full
// disk or a flipped bit is written in docs/log-format.md. Every failure is a store::Error; wrong arguments are
// std::invalid_argument.

#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "chunk_check.h"
#include "store/format.h"
#include "store/lease.h"
#include "store/mapping.h"
#include "store/posix.h"

namespace lmcleaner::store {

struct RingOptions {
    std::string manifest;                         // opaque bytes, at most MAX_MANIFEST
    std::vector<std::uint64_t> section_capacity;  // bytes of each vector section (may be 0), 1 to MAX_SECTIONS of them
    std::uint64_t capacity;                       // steps that readers can count on
    std::uint64_t spare = 1;                      // slots beyond them; at least `group` with Durability::group
    std::uint64_t metadata_capacity = 65536;
    Durability durability = Durability::group;
    std::uint32_t group = 16;  // appends per fdatasync
    std::array<unsigned char, 16> run_uuid = {};
    std::array<unsigned char, 32> fingerprint = {};
};

// A committed step.
struct Entry {
    std::int64_t step;
    std::uint64_t slot;
    std::uint64_t generation;
    std::uint32_t lineage;
    std::uint64_t previous;  // generation of the step before
    bool scrubbed = false;   // it has no contents any more
};

// The state of all slots, as their headers tell it.
struct Scan {
    std::vector<Entry> entries;  // by ascending step, at most `capacity`: the steps that can be read, or were scrubbed
    std::vector<Entry> others;   // committed too, but beyond the capacity or of an abandoned branch
    std::vector<std::uint64_t> damaged;   // slots whose header fails its checksum
    std::vector<std::uint64_t> freed;     // generations that a rewind or a resume gave up
    std::uint64_t newest_generation = 0;  // over all slots, free ones too
    std::uint32_t newest_lineage = 0;
};

// What writer and reader have in common: the file and what its superblock says.
class Ring {
  public:
    virtual ~Ring() = default;

    const Superblock& superblock() const { return superblock_; }
    const SlotLayout& layout() const { return layout_; }
    const std::string& manifest() const { return manifest_; }
    const std::string& path() const { return file_.path(); }
    int intact_superblocks() const { return intact_superblocks_; }  // 2, or 1 when one copy is damaged

  protected:
    friend class PanelStream;  // stream.h
    explicit Ring(File file);  // reads and checks superblock and manifest

    Scan scan() const;
    std::uint64_t offset_of(std::uint64_t slot) const { return superblock_.slots_offset + slot * layout_.stride; }

    // The header of a slot; state `free` with generation 0 when it was never used. False when its checksum fails.
    bool read_header(std::uint64_t slot, SlotHeader& header) const;
    // The header of a slot that must still hold this generation. Throws overwritten or corrupt.
    SlotHeader require_generation(std::uint64_t slot, std::uint64_t generation) const;
    std::vector<std::uint64_t> read_table(std::uint64_t slot, const SlotHeader& header) const;

    // The step that a generation held, for messages; -1 when it is not known.
    virtual std::int64_t step_of(std::uint64_t) const { return -1; }

    File file_;
    Superblock superblock_;
    int intact_superblocks_;
    SlotLayout layout_;
    std::string manifest_;
};

class RingWriter : public Ring {
  public:
    static std::unique_ptr<RingWriter> create(const std::string& path, const RingOptions& options);

    // Resumes. The newest steps, as many as a power cut may have torn, are read and checked; from the first damaged one
    // on they are dropped (`dropped()`).
    static std::unique_ptr<RingWriter> open(const std::string& path);

    ~RingWriter() override;

    using Bytes = std::span<const unsigned char>;
    // Writes one step and returns its slot. `sections` are at most as long as the capacities given at creation.
    std::uint64_t append(std::int64_t step, std::uint32_t lineage, Bytes metadata, const std::vector<Bytes>& sections,
                         unsigned threads);
    // Frees all steps >= `step`, durably, and begins a new lineage, which it returns.
    std::uint32_t rewind(std::int64_t step);
    void sync();   // everything appended is durable when it returns
    void close();  // sync, then release the lock
    // Overwrites the contents of these steps with zeros, durably, and those of every slot that holds no readable step.
    // Returns the bytes overwritten. May be repeated. (scrub.cpp)
    std::uint64_t scrub(const std::vector<std::int64_t>& steps);

    // These do not wait for an append under way.
    std::int64_t last_step() const { return last_step_; }        // -1: none
    std::int64_t durable_step() const { return durable_step_; }  // the newest step that survives a power cut; -1: none
    std::uint32_t lineage() const { return lineage_; }
    std::vector<std::int64_t> dropped() const { return dropped_; }
    bool direct() const { return direct_; }  // whether large writes bypass the page cache

    // Seconds that an append waits for readers to return their leases on the slot it is about to overwrite.
    std::atomic<double> lease_wait = 60.0;

  private:
    RingWriter(File file, std::unique_ptr<WriterLock> lock);

    void require_owner() const;
    void require_usable() const;
    void write_header(std::uint64_t slot, SlotHeader header);
    std::uint64_t write_chunk(std::uint64_t slot, std::int64_t step, const Region& region, std::uint64_t chunk,
                              Bytes data);
    void sync_locked();
    void free_slots(const std::vector<Entry>& entries, std::uint32_t lineage);
    void continue_after(const std::vector<Entry>& entries);
    bool is_intact(const Entry& entry) const;
    std::uint64_t wipe(std::uint64_t slot);
    std::size_t whole_steps(const Scan& found) const;
    void drop_torn_tail();
    template <typename Action>
    void poison_on_failure(Action action);

    const pid_t owner_;  // a fork copies this object, but not the right to write
    std::unique_ptr<WriterLock> lock_;
    std::mutex mutex_;
    bool direct_ = false;
    bool closed_ = false;
    bool poisoned_ = false;
    bool lease_overdue_ = false;  // the last append waited for a lease in vain
    std::uint64_t next_slot_ = 0;
    std::uint64_t generation_ = 0;
    std::uint64_t last_generation_ = 0;  // of last_step_; 0: none
    std::uint32_t unsynced_ = 0;
    std::atomic<std::uint32_t> lineage_ = 0;
    std::atomic<std::int64_t> last_step_ = -1;
    std::atomic<std::int64_t> durable_step_ = -1;
    std::vector<std::int64_t> dropped_;
};

class RingReader : public Ring {
  public:
    static std::unique_ptr<RingReader> open(const std::string& path);

    Scan refresh();
    std::vector<std::int64_t> scrubbed_steps() const;  // as the last refresh saw them

    struct View {
        const unsigned char* data;
        std::uint64_t size;
    };
    // Where section `k` of a step lies in memory. Not verified: see verify().
    View section(std::uint64_t slot, std::uint64_t generation, std::size_t k) const;
    // Where section `k` of a slot lies in the file, for whoever reads it by himself.
    struct Place {
        int descriptor;
        std::uint64_t offset;  // a multiple of a page
    };
    Place place(std::uint64_t slot, std::size_t k) const;
    // The metadata, verified.
    std::string metadata(std::uint64_t slot, std::uint64_t generation) const;
    // Checks the chunks of section `k` that overlap bytes [begin, end) in each of the slots. `copies`: to be checked in
    // the place of the mapped bytes, one per slot, each of [begin, end) up to the end of its page; `begin` begins a
    // chunk.
    void verify(const std::vector<std::uint64_t>& slots, const std::vector<std::uint64_t>& generations, std::size_t k,
                std::uint64_t begin, std::uint64_t end, unsigned threads,
                const std::vector<const unsigned char*>& copies = {}) const;
    // The same for a caller that hashes what it reads anyway: section `k` of each of the slots.
    VectorChecks chunk_checks(const std::vector<std::uint64_t>& slots, const std::vector<std::uint64_t>& generations,
                              std::size_t k) const;
    // Throws overwritten if any of the slots no longer holds its generation: call it after using views.
    void check(const std::vector<std::uint64_t>& slots, const std::vector<std::uint64_t>& generations) const;
    // Tells the kernel to read these bytes of section `k` ahead.
    void advise(std::uint64_t slot, std::size_t k, std::uint64_t begin, std::uint64_t end) const;

    // Keeps the writer from these slots until release(): it waits, RingWriter::lease_wait at most. Leases end with the
    // reader or its process, and are not inherited by a fork. Throws overwritten.
    void lease(const std::vector<std::uint64_t>& slots, const std::vector<std::uint64_t>& generations);
    void release(const std::vector<std::uint64_t>& slots);

  private:
    friend class PanelStream;
    explicit RingReader(File file);

    void require_mapped() const;
    const Region& region_of(std::size_t k) const;
    std::int64_t step_of(std::uint64_t generation) const override;

    mutable std::mutex seen_mutex_;
    std::vector<std::int64_t> scrubbed_;
    std::map<std::uint64_t, std::int64_t> seen_;  // generation -> step, as recent refreshes listed them
    Mapping mapping_;
    Leases leases_;
};

}  // namespace lmcleaner::store
