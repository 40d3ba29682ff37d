// Every single flipped bit of a small log is noticed, padding included. Bytes that no claim covers (docs/log-format.md:
// capacity beyond what a step uses, checksum table and contents of slots never used) do not exist here: all is in use.

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

#include "store/tests/tests.h"

namespace lmcleaner::store {
namespace {

bool looks_whole(const std::string& path, std::size_t steps) {
    try {
        const auto reader = RingReader::open(path);
        const Scan scan = reader->refresh();
        if (reader->intact_superblocks() != 2 || !scan.damaged.empty() || scan.entries.size() != steps) return false;
        for (const Entry& entry : scan.entries) {
            std::uint64_t serial;
            if (read_step(*reader, entry, serial) != Outcome::right) return false;
        }
        return true;
    } catch (const Error&) {
        return false;
    }
}

}  // namespace

std::string bit_flips(const std::string& folder) {
    const std::string path = folder + "/ring";
    ::unlink(path.c_str());
    RingOptions options;
    options.manifest = "{}";
    options.section_capacity = {100, 5000};
    options.capacity = 2;
    options.metadata_capacity = METADATA_CAPACITY;
    options.durability = Durability::process;
    {
        const auto writer = RingWriter::create(path, options);
        for (const std::int64_t step : {1, 2}) append(*writer, {step, std::uint64_t(step)}, 0);
    }
    const auto ring = RingReader::open(path);
    const std::uint64_t stride = ring->layout().stride, end = ring->superblock().slots_offset + 2 * stride + PAGE;
    if (!looks_whole(path, 2)) return "the log is not whole to begin with";
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    std::uint64_t unnoticed = 0;
    for (std::uint64_t offset = 0; offset < end; ++offset) {
        unsigned char byte = 0;
        if (::pread(descriptor, &byte, 1, off_t(offset)) != 1) return "pread";
        for (int bit = 0; bit < 8; ++bit) {
            const unsigned char flipped = byte ^ static_cast<unsigned char>(1 << bit);
            if (::pwrite(descriptor, &flipped, 1, off_t(offset)) != 1) return "pwrite";
            unnoticed += looks_whole(path, 2);
        }
        if (::pwrite(descriptor, &byte, 1, off_t(offset)) != 1) return "pwrite";
    }
    ::close(descriptor);
    std::printf("bit_flips: %llu of %llu flipped bits noticed\n", (unsigned long long)(8 * end - unnoticed),
                (unsigned long long)(8 * end));
    if (!looks_whole(path, 2)) return "the log is not whole in the end";
    return unnoticed ? "flipped bits go unnoticed" : "";
}

}  // namespace lmcleaner::store
