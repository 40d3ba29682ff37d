// A disk whose power can fail. The ring's file is a real one, on a memory file system, and plays the page cache; what
// the platters hold is kept here, in sectors of 512 bytes.
//
// Until fdatasync returns, each sector that was written may hold, after a power cut, what it held at the last fdatasync
// or any version written since, each independently of all others: writes are dropped, torn and reordered. A failed
// fdatasync leaves an arbitrary part of the sectors unwritten for ever, and the next one says nothing of it, as Linux
// does.

#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "store/posix.h"

namespace lmcleaner::store {

using Random = std::mt19937_64;

struct PowerCut {};  // thrown by the call during which the power fails or the process dies

class SimulatedDisk : public SystemCalls {
  public:
    // Takes the place of the kernel's calls, for the one ring at `path`, while it lives.
    SimulatedDisk(std::string path, std::uint64_t seed);
    ~SimulatedDisk() override;

    ssize_t pread(int descriptor, void* data, std::size_t size, off_t offset) override;
    ssize_t pwritev(int descriptor, const iovec* parts, int count, off_t offset) override;
    int fdatasync(int descriptor) override;
    int fallocate(int descriptor, off_t size) override;
    int unlink(const char* path) override;
    int sync_directory(int descriptor) override;
    bool look_again(int looks) override { return looks < 100; }

    // After PowerCut: makes the file what the platters hold (or, after a kill, leaves it), and the machine starts
    // again.
    void restart();

    std::uint64_t writes = 0;         // calls so far that change something or wait for the disk
    std::uint64_t reads = 0;          // calls so far that read
    std::uint64_t cut_at = 0;         // the write (counted so) at which PowerCut is thrown; 0: never
    bool kill = false;                // it is the process that dies then, not the power: what was written stays
    std::uint64_t fail_write_at = 0;  // the write that fails with EIO
    std::uint64_t fail_read_at = 0;   // the read that fails with EIO
    std::int64_t free_pages = -1;     // -1: an endless disk

  private:
    struct Write {
        std::uint64_t sector;
        std::vector<unsigned char> bytes;
    };
    enum class Fate { goes_on, fails, stops };

    Fate next_write();
    bool allocate(std::uint64_t begin, std::uint64_t end);
    void keep(bool everything);  // moves what was written since the last fdatasync to the platters: all of it, or some

    std::string path_;
    Random random_;
    bool off_ = false;
    bool named_ = false;  // the file's name has reached the disk
    std::vector<unsigned char> platters_;
    std::vector<bool> allocated_;  // by page
    std::vector<Write> pending_;
};

}  // namespace lmcleaner::store
