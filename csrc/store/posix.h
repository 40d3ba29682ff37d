// The few system calls of the ring, with whole transfers, typed errors and owned descriptors.

#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

namespace lmcleaner::store {

// The calls that move a ring's bytes and make them durable. Tests put a disk of their own in the place of the kernel's
// (tests/simulated_disk.h), before any file is opened.
struct SystemCalls {
    virtual ~SystemCalls() = default;
    virtual ssize_t pread(int descriptor, void* data, std::size_t size, off_t offset);
    virtual ssize_t pwritev(int descriptor, const iovec* parts, int count, off_t offset);
    virtual int fdatasync(int descriptor);
    virtual int fallocate(int descriptor, off_t size);  // as posix_fallocate: returns the error number
    virtual int unlink(const char* path);
    virtual int sync_directory(int descriptor);
    // Whether a damaged header, which a writer may be in the middle of writing, is read again after `looks` looks at
    // it.
    virtual bool look_again(int looks);

    static SystemCalls* current;
};

// An open file that belongs to this object. Not copied: one descriptor, one owner.
class File {
  public:
    // A new file of exactly `size` allocated bytes, mode 0600 whatever the umask. Throws no_space (and leaves no file)
    // when the disk or the file size limit of the process is too small, system when the path exists or cannot be made.
    static File create(const std::string& path, std::uint64_t size);

    // An existing regular file. Throws system, format (a symbolic link, a device, a directory) or insecure_permissions.
    static File open(const std::string& path, bool writable);

    File(File&& other) noexcept
        : path_(std::move(other.path_)),
          descriptor_(std::exchange(other.descriptor_, -1)),
          direct_(std::exchange(other.direct_, -1)) {}
    File& operator=(File&& other) noexcept;
    ~File() { close(); }

    // Reads up to `size` bytes, fewer at the end of the file. Throws system.
    std::uint64_t read(void* data, std::uint64_t size, std::uint64_t offset) const;
    // Writes all of `data` and then all of `tail`. Throws write.
    void write(const void* data, std::uint64_t size, std::uint64_t offset, const void* tail = nullptr,
               std::uint64_t tail_size = 0);
    // From here on large aligned writes go to the disk without passing through the page cache: on a machine that is
    // busy training, filling the cache costs more processor time than everything else a step needs. False where the
    // file system cannot do that; writing then works as before.
    bool write_directly();
    // fdatasync. Throws write; the caller must not try again: the kernel has marked the lost pages clean.
    void sync();
    std::uint64_t size() const;
    void close();

    int descriptor() const { return descriptor_; }
    const std::string& path() const { return path_; }

  private:
    File(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

    std::uint64_t write_direct_part(const void* data, std::uint64_t size, std::uint64_t offset);

    std::string path_;
    int descriptor_;
    int direct_ = -1;  // the same file, opened with O_DIRECT
};

// Closes the descriptor in every child that this process forks, until forget_descriptor(): locks belong to an open file
// description, which a fork shares, so a worker would keep them alive after the death of the process that took them.
void close_in_children(int descriptor);  // throws write (after closing it) when 256 are registered already
void forget_descriptor(int descriptor);

// Takes back a file that could not be finished.
void remove_file(const std::string& path);

// fsync of the directory that holds `path`: makes the new name itself durable. Throws write.
void sync_directory_of(const std::string& path);

// The single writer's lock: an open-file-description lock on the file RING.lock beside the ring, which holds the
// writer's pid. POSIX locks would admit two writers in one process and would drop at any close(). A forked child closes
// its copy of the descriptor at once (pthread_atfork), so that the lock dies with the writer and not with its
// data-loading workers.
class WriterLock {
  public:
    explicit WriterLock(const std::string& ring_path);  // throws locked, or what File::open throws
    WriterLock(const WriterLock&) = delete;
    WriterLock& operator=(const WriterLock&) = delete;
    ~WriterLock();

  private:
    int descriptor_ = -1;
    pid_t owner_;
};

// Calls task(0) ... task(count - 1) on up to `threads` threads (0: one per core) and rethrows the first exception.
void parallel(std::uint64_t count, unsigned threads, const std::function<void(std::uint64_t)>& task);

}  // namespace lmcleaner::store
