// A reader that chases the writer: it reads the slot that is about to be overwritten, and the newest, at full speed.

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

#include "store/tests/tests.h"

namespace lmcleaner::store {

std::string chase(const std::string& folder, double seconds, std::uint64_t seed) {
    using Clock = std::chrono::steady_clock;
    const std::string path = folder + "/ring";
    ::unlink(path.c_str());
    RingOptions options;
    options.section_capacity = {300, 20000};
    options.capacity = 3;
    options.metadata_capacity = METADATA_CAPACITY;
    options.durability = Durability::process;
    const auto writer = RingWriter::create(path, options);
    std::atomic<bool> stop = false;
    std::uint64_t right = 0, overwritten = 0, leased = 0;
    std::string failure;
    std::int64_t step = 0;
    append(*writer, {step, seed}, 0);
    {
        std::jthread chaser([&] {
            const auto reader = RingReader::open(path);
            for (std::uint64_t turn = 0; !stop && failure.empty(); ++turn) {
                const Scan scan = reader->refresh();
                if (!scan.damaged.empty()) failure = "a header is taken for damaged";
                if (scan.entries.empty()) continue;
                const Entry entry = turn % 2 ? scan.entries.back() : scan.entries.front();
                const bool lease = turn % 8 == 0 && !error_of([&] { reader->lease({entry.slot}, {entry.generation}); });
                std::uint64_t serial = 0;
                switch (read_step(*reader, entry, serial)) {
                    case Outcome::right:
                        ++right;
                        leased += lease;
                        if (serial != seed + std::uint64_t(entry.step)) failure = "another step's contents";
                        break;
                    case Outcome::overwritten:
                        ++overwritten;
                        if (lease) failure = "a leased step was overwritten";
                        break;
                    case Outcome::corrupt:
                        failure = "a false alarm: step " + std::to_string(entry.step) + " is called corrupt";
                        break;
                    case Outcome::wrong:
                        failure = "step " + std::to_string(entry.step) + " reads wrong";
                }
                if (lease) reader->release({entry.slot});
            }
            stop = true;
        });
        const auto end = Clock::now() + std::chrono::duration<double>(seconds);
        while (!stop && Clock::now() < end) {
            ++step;
            append(*writer, {step, seed + std::uint64_t(step)}, 0);
        }
        stop = true;
    }
    std::printf("chase: %.0f s, %lld steps written; %llu reads right (%llu leased), %llu overwritten meanwhile%s\n",
                seconds, (long long)step, (unsigned long long)right, (unsigned long long)leased,
                (unsigned long long)overwritten, failure.empty() ? ", 0 wrong, 0 false alarms" : "");
    return failure.empty() && right == 0 ? "nothing could be read" : failure;
}

}  // namespace lmcleaner::store
