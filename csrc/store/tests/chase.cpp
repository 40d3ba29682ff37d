// A reader that chases the writer: it reads the slot that is about to be overwritten, and the newest, at full speed,
// until it has read `reads` steps.

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <thread>

#include "store/tests/tests.h"

namespace lmcleaner::store {

std::string chase(const std::string& folder, std::uint64_t reads, std::uint64_t seed) {
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
            for (std::uint64_t turn = 0; right < reads && failure.empty(); ++turn) {
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
        while (!stop) {
            ++step;
            append(*writer, {step, seed + std::uint64_t(step)}, 0);
        }
    }
    std::printf("chase: %lld steps written; %llu reads right (%llu leased), %llu overwritten meanwhile%s\n",
                (long long)step, (unsigned long long)right, (unsigned long long)leased, (unsigned long long)overwritten,
                failure.empty() ? ", 0 wrong, 0 false alarms" : "");
    return failure;
}

}  // namespace lmcleaner::store
