#include "store/posix.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "store/error.h"
#include "store/mutant.h"

namespace lmcleaner::store {

ssize_t SystemCalls::pread(int descriptor, void* data, std::size_t size, off_t offset) {
    return ::pread(descriptor, data, size, offset);
}
ssize_t SystemCalls::pwritev(int descriptor, const iovec* parts, int count, off_t offset) {
    return ::pwritev(descriptor, parts, count, offset);
}
int SystemCalls::fdatasync(int descriptor) {
    return ::fdatasync(descriptor);
}
int SystemCalls::fallocate(int descriptor, off_t size) {
    return posix_fallocate(descriptor, 0, size);
}
int SystemCalls::unlink(const char* path) {
    return ::unlink(path);
}
int SystemCalls::sync_directory(int descriptor) {
    return ::fsync(descriptor);
}
bool SystemCalls::look_again(int looks) {
    if (looks >= 100) return false;
    sched_yield();
    return true;
}

namespace {
SystemCalls kernel;
}
SystemCalls* SystemCalls::current = &kernel;

namespace {

Error system_error(const std::string& path) {
    return Error(ErrorKind::system, path, errno);
}

Error write_error(const std::string& what, const std::string& path) {
    return Error(ErrorKind::write, what + " of " + path + " failed: " + std::strerror(errno));
}

// Descriptors that a forked child must close. Atomics, because only async-signal-safe code may run between fork and
// exec.
std::array<std::atomic<int>, 256> lock_descriptors;

void close_locks_in_child() {
    for (auto& entry : lock_descriptors)
        if (int descriptor = entry.exchange(0)) ::close(descriptor - 1);  // 0 means empty, so descriptors are kept + 1
}

}  // namespace

void close_in_children(int descriptor) {
    [[maybe_unused]] static const int once = pthread_atfork(nullptr, nullptr, close_locks_in_child);
    if (mutated(Mutant::no_atfork_close)) return;
    for (auto& entry : lock_descriptors) {
        int empty = 0;
        if (entry.compare_exchange_strong(empty, descriptor + 1)) return;
    }
    ::close(descriptor);
    throw Error(ErrorKind::write, "this process already holds locks on 256 logs");
}

void forget_descriptor(int descriptor) {
    for (auto& entry : lock_descriptors) {
        int expected = descriptor + 1;
        if (entry.compare_exchange_strong(expected, 0)) return;
    }
}

namespace {

// A regular file that only its owner can read. Closes `descriptor` when it is not.
void require_private_file(int descriptor, const std::string& path) {
    struct stat status;
    if (fstat(descriptor, &status) != 0) {
        Error error = system_error(path);
        ::close(descriptor);
        throw error;
    }
    if (!S_ISREG(status.st_mode)) {
        ::close(descriptor);
        throw bad_format(path + " is not a regular file");
    }
    if (status.st_mode & 077) {
        ::close(descriptor);
        throw Error(ErrorKind::insecure_permissions, path, status.st_mode & 07777);
    }
}

// Opens without following a link and without waiting for the other end of a pipe.
int open_private(const std::string& path, int flags) {
    const int descriptor = ::open(path.c_str(), flags | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
    if (descriptor < 0 && errno == ELOOP) throw bad_format(path + " is a symbolic link: give the log's own path");
    if (descriptor < 0) throw system_error(path);
    return descriptor;
}

std::uint64_t free_bytes(int descriptor) {
    struct statvfs disk;
    std::uint64_t free = fstatvfs(descriptor, &disk) == 0 ? std::uint64_t(disk.f_bavail) * disk.f_frsize : 0;
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        free = std::min<std::uint64_t>(free, limit.rlim_cur);
    return free;
}

}  // namespace

File File::create(const std::string& path, std::uint64_t size) {
    File file(path, open_private(path, O_RDWR | O_CREAT | O_EXCL));
    const std::uint64_t free = free_bytes(file.descriptor_);
    // Asking first spares the disk being filled to the brim only to learn that it is too small.
    int failure = size > free ? ENOSPC : fchmod(file.descriptor_, 0600) != 0 ? errno : 0;
    if (failure == 0)
        failure = mutated(Mutant::no_fallocate) ? ftruncate(file.descriptor_, off_t(size))
                                                : SystemCalls::current->fallocate(file.descriptor_, off_t(size));
    if (failure == 0) return file;
    remove_file(path);
    if (failure == ENOSPC || failure == EFBIG || failure == EDQUOT)
        throw Error(ErrorKind::no_space, path, std::int64_t(size), std::int64_t(free));
    errno = failure;
    throw system_error(path);
}

File File::open(const std::string& path, bool writable) {
    const int descriptor = open_private(path, writable ? O_RDWR : O_RDONLY);
    require_private_file(descriptor, path);
    return File(path, descriptor);
}

File& File::operator=(File&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(descriptor_, other.descriptor_);
    std::swap(direct_, other.direct_);
    return *this;
}

std::uint64_t File::read(void* data, std::uint64_t size, std::uint64_t offset) const {
    std::uint64_t done = 0;
    while (done < size) {
        const ssize_t got = SystemCalls::current->pread(descriptor_, static_cast<char*>(data) + done, size - done,
                                                        off_t(offset + done));
        if (got == 0) break;
        if (got < 0 && errno != EINTR) throw system_error(path_);
        if (got > 0) done += std::uint64_t(got);
    }
    return done;
}

bool File::write_directly() {
    if (direct_ >= 0) return true;
    direct_ = ::open(path_.c_str(), O_WRONLY | O_DIRECT | O_NOFOLLOW | O_CLOEXEC);
    struct stat ours, found;
    if (direct_ >= 0 && (fstat(descriptor_, &ours) != 0 || fstat(direct_, &found) != 0 || ours.st_dev != found.st_dev ||
                         ours.st_ino != found.st_ino))
        ::close(std::exchange(direct_, -1));  // the path names another file by now
    return direct_ >= 0;
}

// Writes whole pages past the page cache and returns how many bytes that were: 0 where it is not worth it or not
// possible. A small write is over sooner in the cache.
std::uint64_t File::write_direct_part(const void* data, std::uint64_t size, std::uint64_t offset) {
    constexpr std::uint64_t page = 4096, worth_it = 128 << 10;
    if (direct_ < 0 || size < worth_it || offset % page || reinterpret_cast<std::uintptr_t>(data) % page) return 0;
    const std::uint64_t whole = size / page * page;
    for (std::uint64_t done = 0; done < whole;) {
        const iovec rest = {const_cast<char*>(static_cast<const char*>(data)) + done, whole - done};
        const ssize_t put = SystemCalls::current->pwritev(direct_, &rest, 1, off_t(offset + done));
        if (put < 0 && errno == EINTR) continue;
        if (put < 0 && errno == EINVAL && done == 0) return 0;  // this disk wants another alignment
        if (put <= 0) throw write_error("writing", path_);
        done += std::uint64_t(put);
    }
    return whole;
}

void File::write(const void* data, std::uint64_t size, std::uint64_t offset, const void* tail,
                 std::uint64_t tail_size) {
    const std::uint64_t direct = write_direct_part(data, size, offset);
    data = static_cast<const char*>(data) + direct;
    size -= direct;
    offset += direct;
    std::array<iovec, 2> parts = {iovec{const_cast<void*>(data), size}, iovec{const_cast<void*>(tail), tail_size}};
    while (parts[0].iov_len + parts[1].iov_len > 0) {
        const ssize_t put = SystemCalls::current->pwritev(descriptor_, parts.data(), 2, off_t(offset));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) throw write_error("writing", path_);
        offset += std::uint64_t(put);
        std::size_t left = std::size_t(put);
        for (iovec& part : parts) {
            const std::size_t taken = std::min(left, part.iov_len);
            part.iov_base = static_cast<char*>(part.iov_base) + taken;
            part.iov_len -= taken;
            left -= taken;
        }
    }
}

void File::sync() {
    if (SystemCalls::current->fdatasync(descriptor_) == 0) return;
    if (mutated(Mutant::sync_again) && SystemCalls::current->fdatasync(descriptor_) == 0) return;
    throw write_error("fdatasync", path_);
}

void remove_file(const std::string& path) {
    SystemCalls::current->unlink(path.c_str());
}

std::uint64_t File::size() const {
    struct stat status;
    if (fstat(descriptor_, &status) != 0) throw system_error(path_);
    return std::uint64_t(status.st_size);
}

void File::close() {
    for (int* descriptor : {&descriptor_, &direct_})
        if (const int open = std::exchange(*descriptor, -1); open >= 0) ::close(open);
}

namespace {

std::string directory_of(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

void sync_directory_of(const std::string& path) {
    const std::string directory = directory_of(path);
    const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) throw system_error(directory);
    const bool failed = SystemCalls::current->sync_directory(descriptor) != 0;
    const Error error = write_error("fsync", directory);
    ::close(descriptor);
    if (failed) throw error;
}

WriterLock::WriterLock(const std::string& ring_path) : owner_(getpid()) {
    const std::string path = ring_path + ".lock";
    const int descriptor = open_private(path, O_RDWR | O_CREAT);
    require_private_file(descriptor, path);
    struct flock whole = {};
    whole.l_type = F_WRLCK;
    whole.l_whence = SEEK_SET;
    std::array<char, 32> text = {};
    if (fcntl(descriptor, F_OFD_SETLK, &whole) != 0) {
        const int reason = errno;
        const ssize_t got = pread(descriptor, text.data(), text.size() - 1, 0);
        ::close(descriptor);
        if (reason == EAGAIN || reason == EACCES)
            throw Error(ErrorKind::locked, path, got > 0 ? std::strtol(text.data(), nullptr, 10) : 0);
        errno = reason;
        throw system_error(path);
    }
    const std::string pid = std::to_string(owner_) + "\n";
    if (ftruncate(descriptor, 0) != 0 || pwrite(descriptor, pid.data(), pid.size(), 0) != ssize_t(pid.size())) {
        const Error error = write_error("writing", path);
        ::close(descriptor);
        throw error;
    }
    close_in_children(descriptor);
    descriptor_ = descriptor;
}

WriterLock::~WriterLock() {
    if (owner_ != getpid()) return;  // in a forked child the number may already belong to another file
    forget_descriptor(descriptor_);
    ::close(descriptor_);
}

void parallel(std::uint64_t count, unsigned threads, const std::function<void(std::uint64_t)>& task) {
    if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency());
    threads = unsigned(std::min<std::uint64_t>(threads, count));
    std::atomic<std::uint64_t> next = 0;
    std::exception_ptr failure;
    std::mutex failure_mutex;
    auto work = [&] {
        try {
            for (std::uint64_t i; (i = next.fetch_add(1)) < count;) task(i);
        } catch (...) {
            next = count;  // the others stop after the task in hand
            std::lock_guard guard(failure_mutex);
            if (!failure) failure = std::current_exception();
        }
    };
    {
        std::vector<std::jthread> helpers;
        for (unsigned i = 1; i < threads; ++i) helpers.emplace_back(work);
        work();
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace lmcleaner::store
