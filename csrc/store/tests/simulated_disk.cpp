#include "store/tests/simulated_disk.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <unordered_map>

#include "store/format.h"

namespace lmcleaner::store {

SimulatedDisk::SimulatedDisk(std::string path, std::uint64_t seed) : path_(std::move(path)), random_(seed) {
    current = this;
}

SimulatedDisk::~SimulatedDisk() {
    static SystemCalls kernel;
    current = &kernel;
}

SimulatedDisk::Fate SimulatedDisk::next_write() {
    if (off_) return Fate::fails;
    ++writes;
    return writes == cut_at ? Fate::stops : writes == fail_write_at ? Fate::fails : Fate::goes_on;
}

ssize_t SimulatedDisk::pread(int descriptor, void* data, std::size_t size, off_t offset) {
    if (++reads == fail_read_at) {
        errno = EIO;
        return -1;
    }
    return SystemCalls::pread(descriptor, data, size, offset);
}

bool SimulatedDisk::allocate(std::uint64_t begin, std::uint64_t end) {
    if (free_pages < 0) return true;
    allocated_.resize(std::max<std::size_t>(allocated_.size(), pages(end) / PAGE));
    for (std::uint64_t page = begin / PAGE; page < pages(end) / PAGE; ++page) {
        if (allocated_[page]) continue;
        if (free_pages == 0) return false;
        --free_pages;
        allocated_[page] = true;
    }
    return true;
}

ssize_t SimulatedDisk::pwritev(int descriptor, const iovec* parts, int count, off_t offset) {
    const Fate fate = next_write();
    if (fate == Fate::fails) {
        errno = EIO;
        return -1;
    }
    std::vector<unsigned char> bytes;
    for (int i = 0; i < count; ++i) {
        const auto* data = static_cast<const unsigned char*>(parts[i].iov_base);
        if (parts[i].iov_len) bytes.insert(bytes.end(), data, data + parts[i].iov_len);
    }
    if (!allocate(std::uint64_t(offset), std::uint64_t(offset) + bytes.size())) {
        errno = ENOSPC;
        return -1;
    }
    if (fate == Fate::stops && kill)
        bytes.resize(random_() % (bytes.size() / PAGE + 1) * PAGE);  // killed between two pages
    const ssize_t put = ::pwrite(descriptor, bytes.data(), bytes.size(), offset);
    pending_.push_back({std::uint64_t(offset) / SECTOR, std::move(bytes)});
    if (fate == Fate::stops) {
        off_ = true;
        throw PowerCut();
    }
    return put;
}

void SimulatedDisk::keep(bool everything) {
    for (const Write& write : pending_)
        if (const std::size_t end = write.sector * SECTOR + write.bytes.size(); end > platters_.size())
            platters_.resize(end);
    if (everything) {
        for (const Write& write : pending_)
            std::copy(write.bytes.begin(), write.bytes.end(),
                      platters_.begin() + std::ptrdiff_t(write.sector * SECTOR));
    } else {
        std::unordered_map<std::uint64_t, std::vector<const unsigned char*>> versions;
        for (const Write& write : pending_)
            for (std::size_t i = 0; i * SECTOR < write.bytes.size(); ++i)
                versions[write.sector + i].push_back(write.bytes.data() + i * SECTOR);
        // How much survives: nearly nothing, nearly all, about half; or a single sector differs from all others.
        const unsigned percent = std::array{2u, 98u, 50u, unsigned(random_() % 101), 0u, 100u}[random_() % 6];
        std::uint64_t odd_one = percent == 0 || percent == 100 ? random_() % (versions.size() + 1) : ~std::uint64_t(0);
        for (const auto& [sector, list] : versions) {
            const bool survives = (random_() % 100 < percent) != (odd_one-- == 0);
            if (!survives) continue;
            const bool newest = random_() % 2;
            std::memcpy(platters_.data() + sector * SECTOR, newest ? list.back() : list[random_() % list.size()],
                        SECTOR);
        }
    }
    pending_.clear();
}

int SimulatedDisk::fdatasync(int) {
    const Fate fate = next_write();
    if (fate == Fate::stops) {
        off_ = true;
        if (random_() % 2) keep(true);  // done, but nobody heard of it
        throw PowerCut();
    }
    if (fate == Fate::fails) {
        if (!off_) keep(false);
        errno = EIO;
        return -1;
    }
    keep(true);
    return 0;
}

int SimulatedDisk::fallocate(int descriptor, off_t size) {
    const Fate fate = next_write();
    if (fate == Fate::fails) return EIO;
    named_ = false;
    platters_.clear();
    allocated_.clear();
    pending_.clear();
    if (!allocate(0, std::uint64_t(size))) return ENOSPC;
    if (ftruncate(descriptor, size) != 0) return errno;  // on the memory file system itself, space is no question
    platters_.resize(std::size_t(size));
    if (fate == Fate::stops) {
        off_ = true;
        throw PowerCut();
    }
    return 0;
}

int SimulatedDisk::unlink(const char* path) {
    return off_ ? 0 : SystemCalls::unlink(path);
}

int SimulatedDisk::sync_directory(int) {
    const Fate fate = next_write();
    if (fate == Fate::goes_on) named_ = true;
    if (fate == Fate::stops) {
        off_ = true;
        throw PowerCut();
    }
    return fate == Fate::fails ? (errno = EIO, -1) : 0;
}

void SimulatedDisk::restart() {
    off_ = false;
    cut_at = 0;
    if (kill) return;
    keep(false);
    if (!named_ && random_() % 2) {
        ::unlink(path_.c_str());
        return;
    }
    const int descriptor = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
    if (descriptor < 0) return;
    if (!named_ && random_() % 2) platters_.clear();
    if (ftruncate(descriptor, off_t(platters_.size())) != 0 ||
        ::pwrite(descriptor, platters_.data(), platters_.size(), 0) != ssize_t(platters_.size()))
        std::abort();
    ::close(descriptor);
    named_ = true;
}

}  // namespace lmcleaner::store
