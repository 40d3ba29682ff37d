#include "store/stream.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "store/error.h"

namespace lmcleaner::store {

PanelStream::PanelStream(const RingReader& ring, std::vector<std::uint64_t> slots,
                         std::vector<std::uint64_t> generations, std::size_t k, unsigned threads)
    : ring_(ring),
      slots_(std::move(slots)),
      generations_(std::move(generations)),
      region_(ring.region_of(k)),
      threads_(threads) {
    if (slots_.size() != generations_.size()) throw std::invalid_argument("as many slots as generations are needed");
    for (std::size_t i = 0; i < slots_.size(); ++i) {
        headers_.push_back(ring.require_generation(slots_[i], generations_[i]));
        tables_.push_back(ring.read_table(slots_[i], headers_[i]));
        sizes_.push_back(pages(headers_[i].section_size[k]));
        panels_ = std::max(panels_, chunks(sizes_[i]));
    }
    const std::string own = "/proc/self/fd/" + std::to_string(ring.file_.descriptor());  // the path may lead elsewhere
    descriptor_ = ::open(own.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
    direct_ = descriptor_ >= 0;
    if (!direct_) descriptor_ = ::open(own.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) throw Error(ErrorKind::system, ring.path(), errno);
    void* memory = mmap(nullptr, 2 * std::max<std::size_t>(1, slots_.size()) * CHUNK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        const int reason = errno;
        ::close(descriptor_);
        throw Error(ErrorKind::system, ring.path(), reason);
    }
    buffers_ = static_cast<unsigned char*>(memory);
    thread_ = std::thread([this] { fill(); });
}

PanelStream::~PanelStream() {
    {
        std::lock_guard guard(mutex_);
        stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
    munmap(buffers_, 2 * std::max<std::size_t>(1, slots_.size()) * CHUNK);
    ::close(descriptor_);
}

// The thread: one panel ahead of the consumer.
void PanelStream::fill() {
    try {
        for (std::uint64_t panel = 0; panel < panels_; ++panel) {
            {
                std::unique_lock lock(mutex_);
                changed_.wait(lock, [&] { return stop_ || panel <= taken_; });
                if (stop_) return;
            }
            read(panel, buffers_ + panel % 2 * slots_.size() * CHUNK);
            std::lock_guard guard(mutex_);
            ++filled_;
            changed_.notify_all();
        }
    } catch (...) {
        std::lock_guard guard(mutex_);
        failure_ = std::current_exception();
        changed_.notify_all();
    }
}

void PanelStream::read(std::uint64_t panel, unsigned char* buffer) {
    parallel(slots_.size(), threads_, [&](std::uint64_t i) {
        if (panel * CHUNK >= sizes_[i]) return;
        const std::uint64_t size = std::min(CHUNK, sizes_[i] - panel * CHUNK);
        const std::uint64_t offset = ring_.offset_of(slots_[i]) + region_.offset + panel * CHUNK;
        unsigned char* target = buffer + i * CHUNK;
        for (std::uint64_t done = 0; done < size;) {
            const ssize_t got =
                SystemCalls::current->pread(descriptor_, target + done, size - done, off_t(offset + done));
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) throw Error(ErrorKind::system, ring_.path(), errno);
            if (got == 0)
                throw Error(ErrorKind::truncated, ring_.path() + " ends within slot " + std::to_string(slots_[i]));
            done += std::uint64_t(got);
        }
        const std::uint64_t number = region_.first_chunk + panel;
        if (checksum(target, size, chunk_seed(slots_[i], headers_[i].step, number)) == tables_[i][number]) return;
        ring_.require_generation(slots_[i], generations_[i]);  // overwritten rather than corrupt
        throw corrupt(headers_[i].step, std::int64_t(number),
                      "step " + std::to_string(headers_[i].step) + ", chunk " + std::to_string(number) +
                          ": the checksum does not match; this step cannot be used, others can");
    });
}

std::vector<const unsigned char*> PanelStream::next() {
    std::unique_lock lock(mutex_);
    if (taken_ == panels_) return {};
    changed_.wait(lock, [&] { return failure_ || filled_ > taken_; });
    if (filled_ <= taken_) std::rethrow_exception(failure_);
    const unsigned char* buffer = buffers_ + taken_ % 2 * slots_.size() * CHUNK;
    ++taken_;
    changed_.notify_all();
    std::vector<const unsigned char*> places;
    for (std::size_t i = 0; i < slots_.size(); ++i) places.push_back(buffer + i * CHUNK);
    return places;
}

}  // namespace lmcleaner::store
