// Faults other than a power cut: I/O errors, a full disk, forks, leases, a file cut under its reader.

#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <functional>
#include <thread>
#include <utility>

#include "store/tests/simulated_disk.h"
#include "store/tests/tests.h"

namespace lmcleaner::store {
namespace {

RingOptions small(Durability durability = Durability::step) {
    RingOptions options;
    options.manifest = "{}";
    options.section_capacity = {300, 5000};
    options.capacity = 3;
    options.spare = 2;
    options.group = 2;
    options.metadata_capacity = METADATA_CAPACITY;
    options.durability = durability;
    return options;
}

// The steps that a reader finds; -1 in the place of one that does not read right.
std::vector<std::int64_t> steps_of(const std::string& path) {
    std::vector<std::int64_t> steps;
    const auto reader = RingReader::open(path);
    for (const Entry& entry : reader->refresh().entries) {
        std::uint64_t serial;
        steps.push_back(read_step(*reader, entry, serial) == Outcome::right ? entry.step : -1);
    }
    return steps;
}

std::vector<std::int64_t> newest(std::int64_t last, std::int64_t capacity) {
    std::vector<std::int64_t> steps;
    for (std::int64_t step = std::max<std::int64_t>(0, last - capacity + 1); step <= last; ++step)
        steps.push_back(step);
    return steps;
}

// Also of a grandchild: the tests adopt the orphans of those that they kill.
void die(pid_t child) {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
}

}  // namespace

// The n-th I/O fails, for every n: an error of its kind, nothing after it reaches the file, and what was promised
// stands, after a power cut as well (a failed fdatasync has lost pages).
std::string eio(const std::string& folder, std::uint64_t seed) {
    const std::string path = folder + "/ring";
    std::uint64_t failures = 0;
    for (const Durability durability : {Durability::step, Durability::group, Durability::process}) {
        for (std::uint64_t n = 1;; ++n) {
            ::unlink(path.c_str());
            SimulatedDisk disk(path, seed + n);
            const std::string where = ", I/O " + std::to_string(n) + ", durability " + std::to_string(int(durability));
            disk.fail_write_at = n;
            std::unique_ptr<RingWriter> writer;
            std::optional<ErrorKind> error = error_of([&] { writer = RingWriter::create(path, small(durability)); });
            if (error) {
                if (*error != ErrorKind::write && *error != ErrorKind::system) return "creating: another error" + where;
                if (access(path.c_str(), F_OK) == 0) return "a failed creation leaves a file" + where;
                ++failures;
                continue;
            }
            std::int64_t last = -1;
            while (last < 9 && !(error = error_of([&] { append(*writer, {last + 1, std::uint64_t(last + 1)}, 0); })))
                ++last;
            if (!error) error = error_of([&] { writer->sync(); });
            if (!error && disk.writes < n) break;  // all of it has failed once
            if (!error) return "a failure goes unreported" + where;
            ++failures;
            if (*error != ErrorKind::write) return "writing: another error" + where;
            const std::uint64_t writes = disk.writes;
            const std::int64_t durable = writer->durable_step();
            for (const auto& action : std::initializer_list<std::function<void()>>{
                     [&] { append(*writer, {last + 2, 77}, 0); }, [&] { writer->sync(); }, [&] { writer->rewind(0); }})
                if (error_of(action) != ErrorKind::write) return "a failed writer goes on" + where;
            writer.reset();
            if (disk.writes != writes) return "a failed writer still touches the disk" + where;
            std::vector<std::int64_t> found = steps_of(path);
            if (found != newest(last, 3) && found != newest(last + 1, 3)) return "an acknowledged step is lost" + where;
            disk.restart();  // with the power gone
            if (durability == Durability::process) continue;
            error = error_of([&] { RingWriter::open(path); });
            if (error) return "it cannot be resumed" + where;
            found = steps_of(path);
            const std::int64_t newest_found = found.empty() ? -1 : found.back();
            if (newest_found < durable || found != newest(newest_found, 3)) return "a durable step is lost" + where;
        }
    }
    // Reading: an error too, and the next attempt succeeds.
    std::uint64_t reads = 0;
    for (std::uint64_t n = 1;; ++n) {
        SimulatedDisk disk(path, seed);
        disk.fail_read_at = n;
        std::vector<std::int64_t> found;
        const auto reading = error_of([&] { found = steps_of(path); });
        if (!reading && disk.reads < n) break;
        if (reading != ErrorKind::system) return "reading: another error, read " + std::to_string(n);
        if (steps_of(path) != newest(9, 3)) return "a failed read is remembered";
        disk.fail_read_at = disk.reads + n;
        const std::uint64_t before = disk.reads;
        const auto resuming = error_of([&] { RingWriter::open(path); });
        if (disk.reads >= before + n && resuming != ErrorKind::system) return "resuming: another error";
        ++reads;
    }
    std::printf("eio: %llu writes and syncs and %llu reads failed, each once\n", (unsigned long long)failures,
                (unsigned long long)reads);
    return "";
}

// The log is refused when it is created, or else never runs out of space.
std::string no_space(const std::string& folder) {
    const std::string path = folder + "/ring";
    std::uint64_t enough = 0;
    for (std::int64_t free = 0; enough == 0; ++free) {
        ::unlink(path.c_str());
        SimulatedDisk disk(path, 1);
        disk.free_pages = free;
        std::unique_ptr<RingWriter> writer;
        const auto error = error_of([&] { writer = RingWriter::create(path, small()); });
        if (error) {
            if (*error != ErrorKind::no_space) return "creating: another error with " + std::to_string(free) + " pages";
            if (access(path.c_str(), F_OK) == 0) return "a file is left on the full disk";
            continue;
        }
        disk.free_pages = 0;  // others fill the disk
        for (std::int64_t step = 0; step < 20; ++step)
            if (error_of([&] { append(*writer, {step, 1}, 0); }))
                return "no space in mid-training, step " + std::to_string(step);
        enough = std::uint64_t(free);
    }
    std::printf("no_space: refused with 0 to %llu pages free, never full with %llu\n", (unsigned long long)enough - 1,
                (unsigned long long)enough);
    return "";
}

// A forked worker outlives the killed trainer: the log can be written again. The same for a reader's leases.
std::string forked(const std::string& folder) {
    const std::string path = folder + "/ring";
    ::unlink(path.c_str());
    RingWriter::create(path, small())->close();
    int pipes[2];
    if (pipe(pipes) != 0) return "pipe";
    const pid_t trainer = fork();
    if (trainer == 0) {
        const auto writer = RingWriter::open(path);
        const pid_t worker = fork();
        if (worker == 0) {
            const pid_t self = getpid();
            if (write(pipes[1], &self, sizeof self) != sizeof self) _exit(1);
        }
        for (;;) pause();
    }
    pid_t worker = 0;
    if (read(pipes[0], &worker, sizeof worker) != sizeof worker) return "the worker did not start";
    const bool held = error_of([&] { RingWriter::open(path); }) == ErrorKind::locked;
    die(trainer);
    const auto error = error_of([&] { RingWriter::open(path); });
    die(worker);
    close(pipes[0]);
    close(pipes[1]);
    if (!held) return "a second writer is let in";
    if (error) return "the lock outlives the trainer";
    std::printf("forked: a worker does not keep the lock\n");
    return "";
}

// The writer overwrites the step that is being read, between any two of the reader's reads: never a false alarm.
std::string overtaken(const std::string& folder) {
    const std::string path = folder + "/ring";
    struct Interrupted : SystemCalls {
        explicit Interrupted(std::function<void()> then)
            : then(std::move(then)), kernel(std::exchange(current, this)) {}
        ~Interrupted() override { current = kernel; }
        ssize_t pread(int descriptor, void* data, std::size_t size, off_t offset) override {
            if (reads-- == 0) then();
            return SystemCalls::pread(descriptor, data, size, offset);
        }
        std::function<void()> then;
        SystemCalls* kernel;
        std::int64_t reads = -1;  // until then()
    };
    std::int64_t reads = 0;
    for (Outcome outcome = Outcome::overwritten; outcome != Outcome::right; ++reads) {
        ::unlink(path.c_str());
        const auto writer = RingWriter::create(path, small(Durability::process));
        std::int64_t step = 0;
        const auto go_round = [&] {
            for (int k = 0; k < 5; ++k, ++step) append(*writer, {step, std::uint64_t(step)}, 0);
        };
        go_round();
        const auto reader = RingReader::open(path);
        const Entry entry = reader->refresh().entries.front();
        Interrupted calls(go_round);
        calls.reads = reads;
        std::uint64_t serial;
        outcome = read_step(*reader, entry, serial);
        const std::string where = " when the writer overtakes it at read " + std::to_string(reads);
        if (outcome == Outcome::corrupt) return "a false alarm" + where;
        if (outcome == Outcome::wrong) return "a step reads wrong" + where;
        if (outcome == Outcome::right && step > 5) return "a step reads right" + where;
    }
    std::printf("overtaken: at each of %lld reads\n", (long long)reads - 1);
    return reads > 3 ? "" : "hardly anything was read";
}

std::string leases(const std::string& folder) {
    const std::string path = folder + "/ring";
    ::unlink(path.c_str());
    const auto writer = RingWriter::create(path, small(Durability::process));
    std::int64_t step = 0;
    for (; step < 5; ++step) append(*writer, {step, std::uint64_t(step)}, 0);
    auto reader = RingReader::open(path);
    Entry entry = reader->refresh().entries.front();
    const auto fill = [&] {  // up to the step that takes the slot of `entry`
        for (; step < entry.step + 5; ++step) append(*writer, {step, std::uint64_t(step)}, 0);
    };
    fill();

    // A lease holds the writer until it is returned, the last time of two.
    reader->lease({entry.slot}, {entry.generation});
    reader->lease({entry.slot}, {entry.generation});
    std::atomic<bool> done = false;
    std::jthread other([&] {
        append(*writer, {step, std::uint64_t(step)}, 0);
        done = true;
    });
    reader->release({entry.slot});
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    std::uint64_t serial;
    const bool waited = !done && read_step(*reader, entry, serial) == Outcome::right;
    reader->release({entry.slot});
    other.join();
    ++step;
    if (!waited) return "the writer does not wait for a lease";
    if (error_of([&] { reader->lease({entry.slot}, {entry.generation}); }) != ErrorKind::overwritten)
        return "a step that is gone can be leased";

    // The kernel returns the lease of a killed reader, though a worker forked from it lives on; and a stopped reader
    // holds the writer up for `lease_wait` only.
    entry = reader->refresh().entries.front();
    fill();
    int pipes[2];
    if (pipe(pipes) != 0) return "pipe";
    const pid_t child = fork();
    if (child == 0) {
        const auto own = RingReader::open(path);
        own->refresh();
        own->lease({entry.slot}, {entry.generation});
        const pid_t worker = fork();
        const pid_t self = getpid();
        if (worker == 0 && write(pipes[1], &self, sizeof self) != sizeof self) _exit(1);
        for (;;) pause();
    }
    pid_t worker = 0;
    if (read(pipes[0], &worker, sizeof worker) != sizeof worker) return "the worker did not start";
    close(pipes[0]);
    close(pipes[1]);
    std::atomic<bool> killed = false;
    std::jthread killer([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        killed = true;
        die(child);
    });
    append(*writer, {step, std::uint64_t(step)}, 0);
    ++step;
    const bool too_early = !killed;
    killer.join();
    const bool too_late = waitpid(worker, nullptr, WNOHANG) != 0;
    die(worker);
    if (too_early) return "the writer does not wait for another process";
    if (too_late) return "the worker is gone";
    entry = reader->refresh().entries.front();
    fill();
    const Entry next = reader->refresh().entries[1];
    reader->lease({entry.slot, next.slot}, {entry.generation, next.generation});
    writer->lease_wait = 0.5;
    append(*writer, {step, std::uint64_t(step)}, 0);
    ++step;
    writer->lease_wait = 1e6;  // seconds: to be held up at each of its slots would last until the limit of the test
    append(*writer, {step, std::uint64_t(step)}, 0);
    if (error_of([&] { reader->check({entry.slot}, {entry.generation}); }) != ErrorKind::overwritten)
        return "a reader that held the writer up too long is not told";
    std::printf("leases: returned, killed and overdue\n");
    return "";
}

// The file is cut under views in use: an error afterwards, and no signal.
std::string truncated(const std::string& folder) {
    const std::string path = folder + "/ring";
    for (const int keep_percent : {0, 30, 60, 95}) {
        ::unlink(path.c_str());
        RingOptions options = small(Durability::process);
        options.section_capacity = {3 << 20, 1 << 20};
        const auto writer = RingWriter::create(path, options);
        for (std::int64_t step = 0; step < 4; ++step) append(*writer, {step, std::uint64_t(step)}, 0);
        const auto reader = RingReader::open(path), untouched = RingReader::open(path);
        const Entry entry = reader->refresh().entries.back();
        const RingReader::View view = reader->section(entry.slot, entry.generation, 0);
        const std::uint64_t size = reader->superblock().file_size;
        if (truncate(path.c_str(), off_t(size * std::uint64_t(keep_percent) / 100)) != 0) return "truncate";
        std::uint64_t sum = 0;
        for (std::uint64_t i = 0; i < view.size; ++i) sum += view.data[i];
        const auto use = [&] { reader->check({entry.slot}, {entry.generation}); };
        if (error_of(use) != ErrorKind::truncated) return "a cut file is not noticed, " + std::to_string(sum);
        if (truncate(path.c_str(), off_t(size)) != 0)
            return "truncate";  // zeros where the log was: regrown, not healed
        const bool touched = view.data + view.size > reinterpret_cast<const unsigned char*>(0) && keep_percent < 95;
        const auto again = error_of([&] { reader->verify({entry.slot}, {entry.generation}, 0, 0, size, 1); });
        if (touched && again != ErrorKind::truncated && again != ErrorKind::overwritten && again != ErrorKind::corrupt)
            return "a regrown file is taken for whole";
    }
    std::printf("truncated: a view over a cut file ends in an error, not in a signal\n");
    return "";
}

}  // namespace lmcleaner::store
