// kill -9 of a real writing process at random moments.

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <random>

#include "store/tests/tests.h"

namespace lmcleaner::store {

std::string killed(const std::string& folder, std::uint64_t times, std::uint64_t seed) {
    const std::string path = folder + "/ring";
    std::mt19937_64 random(seed);
    std::uint64_t steps = 0, unfinished = 0;
    std::int64_t acknowledged = -1;
    for (std::uint64_t kills = 0; kills < times; ++kills) {
        const std::string where = ", kill " + std::to_string(kills);
        if (kills % 20 == 0) {  // a new ring, by turns of each durability
            ::unlink(path.c_str());
            RingOptions options;
            options.section_capacity = {700, 1 + random() % 2 * 400000 + random() % 5000};
            options.capacity = 1 + random() % 4;
            options.durability = Durability(kills / 20 % 3);
            options.group = std::uint32_t(options.spare = 1 + random() % 4);
            options.metadata_capacity = METADATA_CAPACITY;
            RingWriter::create(path, options)->close();
            acknowledged = -1;
        }
        int pipes[2];
        if (pipe(pipes) != 0) return "pipe";
        const pid_t child = fork();
        if (child == 0) {
            close(pipes[0]);
            const auto writer = RingWriter::open(path);
            for (std::int64_t step = writer->last_step() + 1;; ++step) {
                append(*writer, {step, std::uint64_t(step)}, 0);
                if (write(pipes[1], &step, sizeof step) != sizeof step) _exit(1);
            }
        }
        close(pipes[1]);
        std::int64_t step = -1;
        if (read(pipes[0], &step, sizeof step) != sizeof step) return "the writer did not come up" + where;
        const std::int64_t first = step;
        usleep(unsigned(random() % 3000));
        kill(child, SIGKILL);
        waitpid(child, nullptr, 0);
        while (read(pipes[0], &step, sizeof step) == sizeof step) ++steps;
        close(pipes[0]);
        if (first != acknowledged + 1) return "the next writer does not go on where the log ends" + where;

        const auto reader = RingReader::open(path);
        const Scan scan = reader->refresh();
        if (scan.entries.empty() || scan.entries.back().step < step) return "an acknowledged step is lost" + where;
        if (scan.entries.back().step > step + 1) return "a step that nobody wrote" + where;
        unfinished += scan.entries.back().step == step;
        acknowledged = scan.entries.back().step;
        for (std::size_t i = 0; i < scan.entries.size(); ++i) {
            std::uint64_t serial;
            if (read_step(*reader, scan.entries[i], serial) != Outcome::right) return "a torn step" + where;
            if (scan.entries[i].step != acknowledged - std::int64_t(scan.entries.size() - 1 - i))
                return "a hole" + where;
        }
        if (scan.entries.size() <
            std::min<std::uint64_t>(reader->superblock().capacity, std::uint64_t(acknowledged) + 1))
            return "fewer steps than promised" + where;
        if (!scan.damaged.empty()) return "a damaged header" + where;
    }
    std::printf("killed: %llu writers killed with -9, seed %llu: 0 lost, 0 torn; %llu steps acknowledged\n",
                (unsigned long long)times, (unsigned long long)seed, (unsigned long long)steps);
    return "";
}

}  // namespace lmcleaner::store
