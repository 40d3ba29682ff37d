#include "store/lease.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <string>
#include <thread>

#include "store/error.h"
#include "store/mutant.h"
#include "store/posix.h"

namespace lmcleaner::store {
namespace {

// 0, or the error number.
int set_lock(int descriptor, short type, std::uint64_t offset, std::uint64_t size) {
    struct flock range = {};
    range.l_type = type;
    range.l_whence = SEEK_SET;
    range.l_start = off_t(offset);
    range.l_len = off_t(size);
    return fcntl(descriptor, F_OFD_SETLK, &range) == 0 ? 0 : errno;
}

bool is_held(int error) {
    return error == EAGAIN || error == EACCES;
}

}  // namespace

Leases::~Leases() {
    if (descriptor_ < 0 || owner_ != getpid()) return;  // in a forked child the number may belong to another file
    forget_descriptor(descriptor_);
    ::close(descriptor_);
}

bool Leases::take(std::uint64_t offset, std::uint64_t size) {
    std::lock_guard guard(mutex_);
    if (descriptor_ < 0 || owner_ != getpid()) {
        const std::string path = "/proc/self/fd/" + std::to_string(ring_);
        const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (descriptor < 0) throw Error(ErrorKind::system, path, errno);
        close_in_children(descriptor);
        descriptor_ = descriptor;
        owner_ = getpid();
        count_.clear();
    }
    if (count_[offset] == 0) {
        const int error = set_lock(descriptor_, F_RDLCK, offset, size);
        if (error) count_.erase(offset);
        if (is_held(error)) return false;
        if (error) throw Error(ErrorKind::system, "leasing a slot", error);
    }
    ++count_[offset];
    return true;
}

void Leases::give(std::uint64_t offset, std::uint64_t size) {
    std::lock_guard guard(mutex_);
    const auto found = count_.find(offset);
    if (found == count_.end() || owner_ != getpid() || --found->second > 0) return;
    count_.erase(found);
    set_lock(descriptor_, F_UNLCK, offset, size);
}

LeaseBarrier::LeaseBarrier(int ring, std::uint64_t offset, std::uint64_t size, double seconds)
    : ring_(ring), granted_(true), offset_(offset), size_(size) {
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    auto pause = std::chrono::microseconds(100);
    while (!mutated(Mutant::no_lease_wait) && is_held(set_lock(ring, F_WRLCK, offset, size))) {
        if (Clock::now() >= end) {
            granted_ = false;
            return;
        }
        std::this_thread::sleep_for(pause);
        pause = std::min(2 * pause, std::chrono::microseconds(20000));
    }
}

LeaseBarrier::~LeaseBarrier() {
    set_lock(ring_, F_UNLCK, offset_, size_);
}

}  // namespace lmcleaner::store
