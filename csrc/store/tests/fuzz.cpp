// Arbitrary bytes in the place of a ring: the reader and the resuming writer end in a store::Error or succeed.
//
// LLVMFuzzerTestOneInput and LLVMFuzzerCustomMutator are libFuzzer's entry points: where clang is, link them with
// -fsanitize=fuzzer (and leave main.cpp out). fuzz() is a driver of our own around the same two functions, seeded and
// without coverage, for g++ -fsanitize=address,undefined. The mutator knows the format: it changes fields as well as
// bytes and, most of the time, repairs the checksums on the way to them, or nothing behind the first one would ever be
// reached.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>

#include "store/tests/tests.h"

namespace lmcleaner::store {
namespace {

using Random = std::mt19937_64;

// No waiting for the disk, nor for a writer that might be in the middle of a header.
struct QuickCalls : SystemCalls {
    int fdatasync(int) override { return 0; }
    void yield() override {}
};

std::string fuzz_path = "/dev/shm/lmcleaner-fuzz-" + std::to_string(getpid());

RingOptions seed_options() {
    RingOptions options;
    options.manifest = "{}";
    options.section_capacity = {0, 600};
    options.capacity = 1;
    options.metadata_capacity = 600;
    options.durability = Durability::process;
    return options;
}

// A small good ring.
std::vector<unsigned char> good_ring() {
    ::unlink(fuzz_path.c_str());
    {
        const auto writer = RingWriter::create(fuzz_path, seed_options());
        for (const std::int64_t step : {1, 2}) append(*writer, {step, std::uint64_t(step)}, 0);
        writer->rewind(2);
    }
    const int descriptor = ::open(fuzz_path.c_str(), O_RDONLY | O_CLOEXEC);
    std::vector<unsigned char> bytes(std::size_t(lseek(descriptor, 0, SEEK_END)));
    if (::pread(descriptor, bytes.data(), bytes.size(), 0) != ssize_t(bytes.size())) std::abort();
    ::close(descriptor);
    return bytes;
}

// Makes the checksums agree with what the bytes now say, as far as that lies within them.
void repair(unsigned char* data, std::size_t size, Random& random) {
    const auto keep = [&] { return random() % 16 == 0; };  // now and then leave one wrong
    Superblock block;
    if (size < 2 * PAGE) return;
    for (const std::uint64_t offset : {std::uint64_t(0), PAGE}) {
        std::memcpy(&block, data + offset, PAGE);
        const std::uint64_t manifest = block.manifest_size <= size ? pages(block.manifest_size) : size;
        if (2 * PAGE + manifest <= size) block.manifest_checksum = checksum(data + 2 * PAGE, manifest, 2 * PAGE);
        block.checksum = own_checksum(block, offset);
        if (!keep()) std::memcpy(data + offset, &block, PAGE);
    }
    std::memcpy(&block, data, PAGE);
    const std::uint64_t sections = std::min(block.section_count, MAX_SECTIONS);
    if (block.metadata_capacity > size || block.slots_offset > size) return;
    for (std::uint64_t k = 0; k < sections; ++k)
        if (block.section_capacity[k] > size) return;
    const SlotLayout layout(block.metadata_capacity, std::span(block.section_capacity).first(sections));
    for (std::uint64_t slot = 0; slot < 8; ++slot) {
        const std::uint64_t start = block.slots_offset + slot * layout.stride;
        if (start > size || layout.stride > size - start) return;
        SlotHeader header;
        std::memcpy(&header, data + start, PAGE);
        if (header.magic != SLOT_MAGIC) continue;
        std::vector<std::uint64_t> table(layout.table_size / 8);
        for (std::size_t r = 0; r < layout.regions.size(); ++r) {
            const Region& region = layout.regions[r];
            const std::uint64_t used =
                std::min(pages(r ? header.section_size[r - 1] : header.metadata_size), pages(region.capacity));
            for (std::uint64_t c = 0; c < chunks(used); ++c)
                table[region.first_chunk + c] =
                    checksum(data + start + region.offset + c * CHUNK, std::min(CHUNK, used - c * CHUNK),
                             chunk_seed(slot, header.step, region.first_chunk + c));
        }
        if (!table.empty() && !keep()) std::memcpy(data + start + layout.table_offset, table.data(), layout.table_size);
        header.table_checksum = checksum(table.data(), layout.table_size, chunk_seed(slot, header.step, TABLE));
        header.checksum = own_checksum(header, slot);
        if (!keep()) std::memcpy(data + start, &header, PAGE);
    }
}

void use(RingReader& reader) {
    const Scan scan = reader.refresh();
    for (const std::vector<Entry>& list : {scan.entries, scan.others})
        for (const Entry& entry : list) {
            error_of([&] { reader.lease({entry.slot}, {entry.generation}); });
            error_of([&] { reader.metadata(entry.slot, entry.generation); });
            for (std::size_t k = 0; k < reader.layout().section_count(); ++k)
                error_of([&] {
                    const RingReader::View view = reader.section(entry.slot, entry.generation, k);
                    reader.verify({entry.slot}, {entry.generation}, k, 0, ~std::uint64_t(0), 1);
                    std::uint64_t sum = 0;
                    for (std::uint64_t i = 0; i < view.size; i += 512) sum += view.data[i];
                    if (view.size) sum += view.data[view.size - 1];
                    [[maybe_unused]] volatile std::uint64_t used = sum;
                });
            reader.release({entry.slot});
        }
}

}  // namespace
}  // namespace lmcleaner::store

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
    using namespace lmcleaner::store;
    static const int descriptor = ::open(fuzz_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    static std::size_t file_size = 0;
    if ((file_size != size && ftruncate(descriptor, off_t(file_size = size)) != 0) ||
        ::pwrite(descriptor, data, size, 0) != ssize_t(size))
        std::abort();
    const auto error = error_of([&] { use(*RingReader::open(fuzz_path)); });
    if (!error && data[size - 1] % 4 == 0)  // what a reader accepts, a writer resumes
        error_of([&] {
            const auto writer = RingWriter::open(fuzz_path);
            std::vector<std::vector<unsigned char>> sections(writer->layout().section_count());
            if (writer->last_step() < INT64_MAX)
                writer->append(writer->last_step() + 1, writer->lineage(), {}, {sections.begin(), sections.end()}, 1);
            use(*RingReader::open(fuzz_path));
        });
    return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(unsigned char* data, std::size_t size, std::size_t capacity,
                                               unsigned seed) {
    using namespace lmcleaner::store;
    Random random(seed);
    static const std::vector<unsigned char> good = good_ring();
    if (size < good.size() / 2 || random() % 64 == 0) {
        size = std::min(capacity, good.size());
        std::copy_n(good.begin(), size, data);
    }
    const std::uint64_t header =
        random() % 3 ? (size / 4 / PAGE + random() % (size / PAGE)) * PAGE % size : random() % 2 * PAGE;
    for (std::uint64_t changes = 1 + random() % 4; changes > 0; --changes) {
        const std::uint64_t interesting[] = {0,          1,          2,          3,        255,     4095,
                                             4096,       4097,       size,       size - 1, 1 << 20, 1ull << 32,
                                             1ull << 50, 1ull << 62, 1ull << 63, ~0ull};
        std::uint64_t value = random() % 3 ? interesting[random() % std::size(interesting)] : random();
        const std::uint64_t width = std::uint64_t(1) << random() % 4;
        // Most often a field of a superblock or header, which lie in the first 208 bytes of their pages.
        std::uint64_t at = random() % 4 ? header + random() % 208 / width * width : random() % size;
        at = std::min(at, size - 8);
        if (random() % 3 == 0) {  // near the old value
            std::memcpy(&value, data + at, 8);
            value += random() % 2 ? random() % 5 - 2 : std::uint64_t(1) << random() % 64;
        }
        std::memcpy(data + at, &value, width);
        if (at + PAGE < size && at < PAGE && random() % 8)
            std::memcpy(data + PAGE + at, &value, width);  // both superblocks
    }
    if (random() % 16 == 0) size = std::max<std::size_t>(16, random() % (size + 1));
    if (random() % 8) repair(data, size, random);
    return size;
}

namespace lmcleaner::store {

std::string fuzz(const std::string& folder, std::uint64_t inputs, std::uint64_t seed) {
    fuzz_path = folder + "/fuzz";
    static QuickCalls quick;
    SystemCalls* const before = std::exchange(SystemCalls::current, &quick);
    Random random(seed);
    std::vector<unsigned char> bytes(1 << 17);
    std::size_t size = 0;
    for (std::uint64_t i = 0; i < inputs; ++i) {
        if (i % 8 == 0) size = 0;  // back to the good ring
        size = LLVMFuzzerCustomMutator(bytes.data(), size, bytes.size(), unsigned(random()));
        LLVMFuzzerTestOneInput(bytes.data(), size);
        if ((i + 1) % 1000000 == 0) std::printf("fuzz: %llu inputs so far\n", (unsigned long long)(i + 1));
    }
    ::unlink(fuzz_path.c_str());
    SystemCalls::current = before;
    std::printf("fuzz: %llu inputs, seed %llu: 0 crashes\n", (unsigned long long)inputs, (unsigned long long)seed);
    return "";
}

}  // namespace lmcleaner::store
