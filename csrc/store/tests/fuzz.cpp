// Arbitrary bytes in the place of a ring: the reader and the resuming writer end in a store::Error or succeed.
//
// LLVMFuzzerTestOneInput and LLVMFuzzerCustomMutator are libFuzzer's entry points (target ring_fuzzer, where the
// compiler is clang). fuzz() is a driver of our own around the same two functions, seeded and without coverage, for g++
// -fsanitize=address,undefined. The mutator knows the format: it changes fields as well as bytes and, most of the time,
// repairs the checksums on the way to them, or nothing behind the first one would ever be reached. How far the inputs
// got is printed at the end of the process.
//
// An input is the bytes of a ring and one more byte, which says what is done with them (Choice).

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "store/stream.h"
#include "store/tests/tests.h"

namespace lmcleaner::store {
namespace {

constexpr std::size_t LARGEST_INPUT = 1 << 17;

// splitmix64: seeded in no time, unlike the engines of <random>. Each input has one of its own.
struct Random {
    std::uint64_t state;
    std::uint64_t operator()() {
        std::uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
};

struct Choice {
    explicit Choice(unsigned char byte)
        : resume(byte % 4 == 0),
          rewind(byte % 16 == 4),
          scrub(byte % 16 == 8),
          all_looks(byte % 64 == 1),
          stream(byte % 64 == 2) {}
    bool resume;  // what a reader accepts, a writer resumes; it appends and then may rewind or scrub that step
    bool rewind;
    bool scrub;
    bool all_looks;  // at a header that a writer might be in the middle of; else one look, or this would be all
    bool stream;     // read past the page cache, with a thread
};

// How often each part of the work on an input succeeded or ended in each kind of error.
class Outcomes {
  public:
    enum Part { OPEN, HEADER, LEASE, METADATA, SECTION, STREAM, RESUME, APPEND, REWIND, SCRUB, REOPEN, PARTS };

    template <typename Action>
    bool count(Part part, Action action) {
        const auto error = error_of(action);
        add(part, error, 1);
        return !error;
    }
    void add(Part part, std::optional<ErrorKind> error, std::uint64_t times) {
        counts_[part][error ? 1 + std::size_t(*error) : 0] += times;
    }

    ~Outcomes() {
        constexpr const char* parts[PARTS] = {"open",   "header", "lease",  "metadata", "section", "stream",
                                              "resume", "append", "rewind", "scrub",    "reopen"};
        constexpr const char* outcomes[] = {"succeeded",   "corrupt",  "no space",    "write",
                                            "truncated",   "locked",   "overwritten", "scrubbed",
                                            "new version", "insecure", "bad format",  "system"};
        for (std::size_t part = 0; part < PARTS; ++part) {
            std::printf("fuzz outcomes: %-8s", parts[part]);
            for (std::size_t i = 0; i < counts_[part].size(); ++i)
                if (counts_[part][i]) std::printf("  %s %llu", outcomes[i], (unsigned long long)counts_[part][i]);
            std::printf("\n");
        }
    }

  private:
    std::array<std::array<std::uint64_t, 12>, PARTS> counts_ = {};
};

std::string fuzz_path = "/dev/shm/lmcleaner-fuzz-" + std::to_string(getpid());

RingOptions seed_options() {
    RingOptions options;
    options.manifest = "{}";
    options.section_capacity = {0, 600};
    options.capacity = 2;
    options.metadata_capacity = 600;
    options.durability = Durability::process;
    return options;
}

void remove_ring(const std::string& path) {
    ::unlink(path.c_str());
    ::unlink((path + ".lock").c_str());
}

// A small good ring.
std::vector<unsigned char> good_ring() {
    const std::string path = fuzz_path + "-good";
    {
        const auto writer = RingWriter::create(path, seed_options());
        for (const std::int64_t step : {1, 2, 3, 4}) append(*writer, {step, std::uint64_t(step)}, 0);
        writer->rewind(4);  // of the three slots one is free
    }
    const File file = File::open(path, false);
    std::vector<unsigned char> bytes(file.size());
    file.read(bytes.data(), bytes.size(), 0);
    remove_ring(path);
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

void use(RingReader& reader, bool stream, Outcomes& outcomes) {
    const Scan scan = reader.refresh();
    outcomes.add(Outcomes::HEADER, ErrorKind::corrupt, scan.damaged.size());
    outcomes.add(Outcomes::HEADER, std::nullopt, reader.superblock().slot_count - scan.damaged.size());
    for (const std::vector<Entry>* list : {&scan.entries, &scan.others})
        for (const Entry& entry : *list) {
            outcomes.count(Outcomes::LEASE, [&] { reader.lease({entry.slot}, {entry.generation}); });
            outcomes.count(Outcomes::METADATA, [&] { reader.metadata(entry.slot, entry.generation); });
            for (std::size_t k = 0; k < reader.layout().section_count(); ++k)
                outcomes.count(Outcomes::SECTION, [&] {
                    const RingReader::View view = reader.section(entry.slot, entry.generation, k);
                    reader.verify({entry.slot}, {entry.generation}, k, 0, ~std::uint64_t(0), 1);
                    std::uint64_t sum = 0;
                    for (std::uint64_t i = 0; i < view.size; i += 512) sum += view.data[i];
                    if (view.size) sum += view.data[view.size - 1];
                    [[maybe_unused]] volatile std::uint64_t used = sum;
                });
            reader.release({entry.slot});
        }
    for (std::size_t k = 0; stream && k < reader.layout().section_count(); ++k)
        outcomes.count(Outcomes::STREAM, [&] {
            std::vector<std::uint64_t> slots, generations;
            for (const Entry& entry : scan.entries) {
                slots.push_back(entry.slot);
                generations.push_back(entry.generation);
            }
            PanelStream panels(reader, slots, generations, k, 1);
            while (!panels.next().empty()) {
            }
        });
}

// The file that inputs are laid in, mapped: to lay one there and to read from it costs no system call.
struct InputFile : SystemCalls {
    InputFile() : descriptor(::open(fuzz_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
        void* address = mmap(nullptr, LARGEST_INPUT, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
        if (address == MAP_FAILED) std::abort();
        bytes = static_cast<unsigned char*>(address);
    }
    ~InputFile() override { remove_ring(fuzz_path); }
    void set(const unsigned char* data, std::size_t new_size) {
        if (new_size > LARGEST_INPUT || (size != new_size && ftruncate(descriptor, off_t(new_size)) != 0)) std::abort();
        size = new_size;
        std::memcpy(bytes, data, size);
    }
    ssize_t pread(int, void* data, std::size_t wanted, off_t offset) override {
        if (offset < 0) return errno = EINVAL, -1;
        const std::size_t got = std::min(wanted, size - std::min(size, std::size_t(offset)));
        if (got) std::memcpy(data, bytes + offset, got);
        return ssize_t(got);
    }
    int fdatasync(int) override { return 0; }
    bool look_again(int so_far) override { return so_far < looks; }

    int descriptor;
    unsigned char* bytes;
    std::size_t size = 0;
    int looks = 1;
};

}  // namespace
}  // namespace lmcleaner::store

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
    using namespace lmcleaner::store;
    static Outcomes outcomes;
    static InputFile file;
    if (size == 0) return 0;
    SystemCalls* const kernel = std::exchange(SystemCalls::current, &file);
    const Choice choice(data[--size]);
    file.set(data, size);
    file.looks = choice.all_looks ? 100 : 1;
    const bool good =
        outcomes.count(Outcomes::OPEN, [&] { use(*RingReader::open(fuzz_path), choice.stream, outcomes); });
    if (good && choice.resume) {
        std::unique_ptr<RingWriter> writer;
        outcomes.count(Outcomes::RESUME, [&] { writer = RingWriter::open(fuzz_path); });
        if (writer && writer->last_step() < INT64_MAX) {
            std::vector<std::vector<unsigned char>> sections(writer->layout().section_count());
            outcomes.count(Outcomes::APPEND, [&] {
                writer->append(writer->last_step() + 1, writer->lineage(), {}, {sections.begin(), sections.end()}, 1);
            });
        }
        if (writer && choice.rewind) outcomes.count(Outcomes::REWIND, [&] { writer->rewind(writer->last_step()); });
        if (writer && choice.scrub) outcomes.count(Outcomes::SCRUB, [&] { writer->scrub({writer->last_step()}); });
        outcomes.count(Outcomes::REOPEN, [&] { use(*RingReader::open(fuzz_path), choice.stream, outcomes); });
    }
    SystemCalls::current = kernel;
    return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(unsigned char* data, std::size_t size, std::size_t capacity,
                                               unsigned seed) {
    using namespace lmcleaner::store;
    Random random{seed};
    static const std::vector<unsigned char> good = good_ring();
    if (--capacity < good.size()) return size;
    if (size > 0) --size;  // without the choice
    if (size < good.size() / 2 || random() % 64 == 0) {
        size = good.size();
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
    data[size] = static_cast<unsigned char>(random());
    return size + 1;
}

namespace lmcleaner::store {

std::string fuzz(const std::string& folder, std::uint64_t inputs, std::uint64_t seed) {
    fuzz_path = folder + "/fuzz";
    Random random{seed};
    std::vector<unsigned char> bytes(LARGEST_INPUT);
    std::size_t size = 0;
    for (std::uint64_t i = 0; i < inputs; ++i) {
        if (i % 8 == 0) size = 0;  // back to the good ring
        size = LLVMFuzzerCustomMutator(bytes.data(), size, bytes.size(), unsigned(random()));
        LLVMFuzzerTestOneInput(bytes.data(), size);
        if ((i + 1) % 1000000 == 0) std::printf("fuzz: %llu inputs so far\n", (unsigned long long)(i + 1));
    }
    std::printf("fuzz: %llu inputs, seed %llu: 0 crashes\n", (unsigned long long)inputs, (unsigned long long)seed);
    return "";
}

}  // namespace lmcleaner::store
