// Leases: a reader asks the writer not to overwrite the slots that it is using.
//
// A lease is an open-file-description read lock on the bytes of the slot; the kernel drops it when the reader dies, by
// kill -9 too. The writer takes the write lock of a slot for the moment in which it marks it WRITING, and waits for it,
// but not for ever: a stopped reader must not stop a training run. A lease therefore delays the writer; that a slot was
// not overwritten is still proved by its generation.

#pragma once

#include <cstdint>
#include <map>
#include <mutex>

namespace lmcleaner::store {

// The leases of one reader; slots may be leased several times over. All functions may be called from several threads.
class Leases {
  public:
    explicit Leases(int ring) : ring_(ring) {}  // a descriptor of the ring, which stays open longer than this object
    Leases(const Leases&) = delete;
    Leases& operator=(const Leases&) = delete;
    ~Leases();

    bool take(std::uint64_t offset, std::uint64_t size);  // false: the writer is about to overwrite it. Throws system
    void give(std::uint64_t offset, std::uint64_t size);

  private:
    int ring_;
    int descriptor_ = -1;  // a description of its own: closed in forked children, which may go on reading through ring_
    int owner_ = -1;
    std::mutex mutex_;
    std::map<std::uint64_t, unsigned> count_;  // by offset
};

// The writer's side: holds the bytes against new leases while it lives. Waits at most `seconds` for those that there
// are, and then goes on without.
class LeaseBarrier {
  public:
    LeaseBarrier(int ring, std::uint64_t offset, std::uint64_t size, double seconds);
    LeaseBarrier(const LeaseBarrier&) = delete;
    LeaseBarrier& operator=(const LeaseBarrier&) = delete;
    ~LeaseBarrier();

    bool granted() const { return granted_; }  // false: readers still hold it

  private:
    int ring_;
    bool granted_;
    std::uint64_t offset_, size_;
};

}  // namespace lmcleaner::store
