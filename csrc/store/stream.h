// Reading a window that does not fit into memory: one chunk of every step at a time, past the page cache, while the
// chunk before is being used.
//
// The mapping serves windows that fit. Beyond that the page cache only costs: every page is read once, and finding room
// for it takes longer than the disk. Two buffers of a chunk per step; a thread fills one and checks it while the
// consumer works in the other.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "store/ring.h"

namespace lmcleaner::store {

class PanelStream {
  public:
    // Section `k` of these steps. The ring must outlive the stream. Throws overwritten, corrupt, system.
    PanelStream(const RingReader& ring, std::vector<std::uint64_t> slots, std::vector<std::uint64_t> generations,
                std::size_t k, unsigned threads);
    PanelStream(const PanelStream&) = delete;
    PanelStream& operator=(const PanelStream&) = delete;
    ~PanelStream();

    // Where the next chunk of each step lies, its checksum verified; empty after the last one. What the call before
    // returned is no longer valid. Throws what reading it threw.
    std::vector<const unsigned char*> next();
    bool direct() const { return direct_; }  // whether it bypasses the page cache

  private:
    void fill();
    void read(std::uint64_t panel, unsigned char* buffer);

    const RingReader& ring_;
    const std::vector<std::uint64_t> slots_, generations_;
    const Region region_;
    const unsigned threads_;
    std::vector<SlotHeader> headers_;
    std::vector<std::uint64_t> sizes_;  // bytes in use of the section, padded to pages, per step
    std::vector<std::vector<std::uint64_t>> tables_;
    std::uint64_t panels_ = 0;
    int descriptor_ = -1;
    bool direct_ = false;
    unsigned char* buffers_ = nullptr;  // two, each of a chunk per step

    std::mutex mutex_;
    std::condition_variable changed_;
    std::uint64_t filled_ = 0;  // panels that have been read
    std::uint64_t taken_ = 0;   // panels that next() has returned
    bool stop_ = false;
    std::exception_ptr failure_;
    std::thread thread_;
};

}  // namespace lmcleaner::store
