// Power cuts and kills at every and at random I/O of a writer that appends, syncs, rewinds and resumes; a model says
// what may be read afterwards.
//
//   lost     a step that was promised (Durability) is not listed, or the log has a hole after resuming
//   torn     a listed step fails its checksums where none may; damaged headers
//   wrong    a step that verifies is not what was written, was rewound or scrubbed, or never was

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>

#include "store/tests/simulated_disk.h"
#include "store/tests/tests.h"

namespace lmcleaner::store {
namespace {

struct Item {
    enum class Scrubbed { no, maybe, yes };  // maybe: by a call that was cut short

    Step step;
    bool acknowledged = false;
    Scrubbed scrubbed = Scrubbed::no;
    bool left = false;  // it was beyond the capacity at some time and may have been overwritten
};

class Trial {
  public:
    Trial(std::string folder, std::uint64_t seed)
        : path_(std::move(folder) + "/ring"), random_(seed), disk_(path_, seed + 1) {}

    std::uint64_t power_cuts = 0, kills = 0, lost = 0, torn = 0, wrong = 0, read = 0;
    std::string first_failure;

    // A new ring, and then as many sessions that end in a cut.
    void live(int sessions) {
        ::unlink(path_.c_str());
        options_ = {};
        options_.manifest = std::string(random_() % 2 * 5000, 'm');
        options_.section_capacity = {random_() % 2 * 300, 1 + random_() % (random_() % 4 ? 900 : 9000)};
        options_.metadata_capacity = METADATA_CAPACITY;
        options_.durability = Durability(random_() % 3);
        options_.group = 1 + random_() % 4;
        options_.capacity = 1 + random_() % 4;
        options_.spare = (options_.durability == Durability::group ? options_.group : 1) + random_() % 2;
        history_.clear();
        forget();
        exists_ = unchecked_ = false;
        for (int session = 0; session < sessions; ++session) run(session);
    }

  private:
    void forget() {
        rewound_.clear();
        durable_ = 0;
    }

    void fail(std::uint64_t& counter, const std::string& what) {
        ++counter;
        if (first_failure.empty())
            first_failure = what + " (power cut " + std::to_string(power_cuts) + ", kill " + std::to_string(kills) +
                            ", durability " + std::to_string(int(options_.durability)) + ")";
    }

    // Until the cut.
    void run(int session) {
        disk_.kill = exists_ && random_() % 5 == 0;
        disk_.cut_at =
            disk_.writes + 1 + (random_() % 2 ? std::uint64_t(session) : random_() % (random_() % 2 ? 40 : 6));
        std::vector<Entry> watched;
        std::unique_ptr<RingReader> watcher;  // a reader that lives on when the writer is killed
        if (disk_.kill && random_() % 2) {
            watcher = RingReader::open(path_);
            watched = watcher->refresh().entries;
            std::uint64_t serial;
            std::erase_if(watched,
                          [&](const Entry& entry) { return read_step(*watcher, entry, serial) != Outcome::right; });
        }
        try {
            std::unique_ptr<RingWriter> writer =
                exists_ ? RingWriter::open(path_) : RingWriter::create(path_, options_);
            if (exists_) check_resumed();
            exists_ = true;
            for (;;) act(writer);
        } catch (const PowerCut&) {
            ++(disk_.kill ? kills : power_cuts);
        }
        for (const Entry& entry : watched) {
            std::uint64_t serial = 0;
            const Outcome outcome = read_step(*watcher, entry, serial);
            if (outcome == Outcome::corrupt) fail(torn, "a reader beside the writer sees a step torn");
            if (outcome == Outcome::wrong) fail(wrong, "a reader beside the writer sees a wrong step");
        }
        watcher.reset();
        disk_.restart();
        check_interrupted();
    }

    void act(std::unique_ptr<RingWriter>& writer) {
        const std::uint64_t choice = random_() % 100;
        if (choice < 3 && !history_.empty()) {
            scrub(*writer);
        } else if (choice < 84) {
            history_.push_back({{writer->last_step() + 1 + std::int64_t(random_() % 2), ++serial_}});
            append(*writer, history_.back().step, writer->lineage());
            history_.back().acknowledged = true;
        } else if (choice < 89) {
            writer->sync();
        } else if (choice < 97) {
            const std::int64_t step = std::max<std::int64_t>(0, writer->last_step() + 1 - std::int64_t(random_() % 6));
            auto first = std::ranges::find_if(history_, [&](const Item& item) { return item.step.step >= step; });
            for (std::size_t i = 0; i + options_.capacity < history_.size(); ++i) history_[i].left = true;
            // While the rewind runs, each of these steps may be there or not; afterwards none may ever come back.
            rewound_.assign(first, history_.end());
            history_.erase(first, history_.end());
            durable_ = std::min(durable_, history_.size());
            writer->rewind(step);
            rewound_.clear();
            while (!history_.empty() && history_.back().step.step > writer->last_step()) {
                if (!history_.back().left && !(unchecked_ && options_.durability == Durability::process))
                    fail(lost, "rewinding lost step " + std::to_string(history_.back().step.step));
                history_.pop_back();  // it had been overwritten
            }
            durable_ = history_.size();
        } else {
            writer->close();
            durable_ = history_.size();
            writer = RingWriter::open(path_);
            check_resumed();
        }
        while (durable_ < history_.size() && history_[durable_].step.step <= writer->durable_step()) ++durable_;
    }

    void scrub(RingWriter& writer) {
        std::vector<std::int64_t> steps;
        for (std::size_t i = 0; i < history_.size(); ++i) {
            if (i + options_.capacity < history_.size())
                history_[i].left = true;  // it overwrites these as well
            else if (random_() % 3 == 0)
                steps.push_back(history_[i].step.step);
        }
        const auto mark = [&](Item::Scrubbed how) {
            for (Item& item : history_)
                if (std::ranges::find(steps, item.step.step) != steps.end() && item.scrubbed != Item::Scrubbed::yes)
                    item.scrubbed = how;
        };
        mark(Item::Scrubbed::maybe);
        writer.scrub(steps);
        mark(Item::Scrubbed::yes);
        durable_ = history_.size();
    }

    // Where a scrubbed step is in history + rewound; its contents must be gone.
    std::size_t find_scrubbed(const RingReader& reader, const Entry& entry) {
        std::size_t i = 0, count = history_.size() + rewound_.size();
        while (i < count && item(i).step.step != entry.step) ++i;
        if (i == count || item(i).scrubbed == Item::Scrubbed::no)
            fail(lost, "step " + std::to_string(entry.step) + " was scrubbed by nobody");
        const bool half_overwritten = options_.durability == Durability::process && unchecked_;
        if (i == count || item(i).scrubbed != Item::Scrubbed::yes || half_overwritten) return i;
        std::vector<unsigned char> bytes(reader.layout().stride - PAGE);
        const std::uint64_t offset = reader.superblock().slots_offset + entry.slot * reader.layout().stride + PAGE;
        File::open(path_, false).read(bytes.data(), bytes.size(), offset);
        if (std::ranges::any_of(bytes, [](unsigned char byte) { return byte != 0; }))
            fail(wrong, "a scrubbed step still has contents");
        return i;
    }

    // How many of the oldest steps of the history are promised.
    std::size_t promised() const {
        const bool process = options_.durability == Durability::process;
        if (process && (unchecked_ || !disk_.kill)) return 0;
        if (disk_.kill)
            return std::size_t(std::ranges::count_if(history_, [](const Item& item) { return item.acknowledged; }));
        return durable_;
    }

    // Reads all that a reader lists; returns the positions in history + rewound of the steps that read well.
    std::vector<std::size_t> read_all(const std::vector<Entry>& entries, bool may_be_torn) {
        std::vector<std::size_t> found;
        const auto reader = RingReader::open(path_);
        for (const Entry& entry : entries) {
            std::uint64_t serial = 0;
            if (entry.scrubbed) {
                if (const std::size_t i = find_scrubbed(*reader, entry); i < history_.size() + rewound_.size())
                    found.push_back(i);
                continue;
            }
            switch (read_step(*reader, entry, serial)) {
                case Outcome::right: {
                    ++read;
                    std::size_t i = 0;
                    while (i < history_.size() + rewound_.size() && item(i).step.serial != serial) ++i;
                    if (i == history_.size() + rewound_.size() || item(i).step.step != entry.step)
                        fail(wrong, "step " + std::to_string(entry.step) + " is not of this history");
                    else if (item(i).scrubbed == Item::Scrubbed::yes)
                        fail(wrong, "step " + std::to_string(entry.step) + " was scrubbed");
                    else
                        found.push_back(i);
                    break;
                }
                case Outcome::corrupt: {
                    const std::size_t p = promised();
                    const bool newest =
                        options_.durability == Durability::process || p == 0 || entry.step > history_[p - 1].step.step;
                    if (!may_be_torn || !newest) fail(torn, "step " + std::to_string(entry.step) + " is torn");
                    break;
                }
                default:
                    fail(wrong, "step " + std::to_string(entry.step) + " reads wrong");
            }
        }
        return found;
    }

    const Item& item(std::size_t i) const { return i < history_.size() ? history_[i] : rewound_[i - history_.size()]; }

    // Of all steps listed or promised, the newest `capacity` that are promised must be listed and right.
    void require_promised(const std::vector<Entry>& entries, const std::vector<std::size_t>& found) {
        std::map<std::int64_t, bool> steps;  // step -> whether it is listed and right
        for (std::size_t i = 0; i < promised(); ++i)
            if (!history_[i].left) steps[history_[i].step.step] = false;
        for (const Entry& entry : entries) steps[entry.step] = true;  // right or not: it takes its place in the window
        std::map<std::int64_t, bool> right;
        for (const std::size_t i : found) right[item(i).step.step] = true;
        std::size_t count = 0;
        for (auto step = steps.rbegin(); step != steps.rend() && count < options_.capacity; ++step, ++count) {
            const bool must =
                std::any_of(history_.begin(), history_.begin() + std::ptrdiff_t(promised()),
                            [&](const Item& item) { return item.step.step == step->first && !item.left; });
            if (must && !right.contains(step->first)) fail(lost, "step " + std::to_string(step->first) + " is lost");
        }
    }

    // The machine is up again, nobody has resumed the log yet.
    void check_interrupted() {
        if (!exists_) {  // it was being created: whatever is there is refused or is a log
            const auto error = error_of([&] { RingReader::open(path_); });
            if (error && *error != ErrorKind::format && *error != ErrorKind::truncated && *error != ErrorKind::system)
                fail(wrong, "an unfinished log is not refused as such");
            ::unlink(path_.c_str());
            return;
        }
        const auto reader = RingReader::open(path_);
        const Scan scan = reader->refresh();
        if (!scan.damaged.empty()) fail(torn, "a header is damaged");
        if (!disk_.kill) unchecked_ = options_.durability != Durability::step;
        require_promised(scan.entries, read_all(scan.entries, unchecked_));
        if (disk_.kill) return;
        std::uint64_t unsure = 0;  // acknowledged steps that this power cut may have taken
        for (std::size_t i = promised(); i < history_.size(); ++i)
            unsure += std::exchange(history_[i].acknowledged, false);
        if (options_.durability == Durability::group && unsure > options_.group)
            fail(lost, "more than a group is at stake");
    }

    // The log has been resumed: it is whole and without holes, and what it lists now is durable.
    void check_resumed() {
        const std::uint64_t writes = disk_.writes, cut_at = std::exchange(disk_.cut_at, 0);
        const auto reader = RingReader::open(path_);
        const Scan scan = reader->refresh();
        const bool unpromised = options_.durability == Durability::process;
        unchecked_ &= unpromised;
        const std::vector<std::size_t> found = read_all(scan.entries, unchecked_);
        if (!scan.damaged.empty() || !scan.others.empty()) fail(torn, "resuming leaves damaged or doubtful slots");
        require_promised(scan.entries, found);
        for (std::size_t i = 1; i < found.size() && !unpromised; ++i)
            if (found[i] != found[i - 1] + 1)
                fail(lost, "a hole before step " + std::to_string(item(found[i]).step.step));
        std::vector<Item> kept;
        for (const std::size_t i : found) kept.push_back({item(i).step, true, item(i).scrubbed});
        history_ = std::move(kept);
        forget();
        durable_ = history_.size();
        disk_.writes = writes;
        disk_.cut_at = cut_at;
    }

    std::string path_;
    Random random_;
    SimulatedDisk disk_;
    RingOptions options_;
    bool exists_ = false;
    bool unchecked_ =
        false;  // the power failed since the log was last resumed: steps that are not promised may be torn
    std::uint64_t serial_ = 0;
    std::vector<Item> history_;  // ascending; the steps of the abandoned branches are gone
    std::vector<Item> rewound_;  // by the rewind that was cut short
    std::size_t durable_ = 0;    // how many of the history survive a power cut
};

}  // namespace

std::string power_cut(const std::string& folder, std::uint64_t cuts, std::uint64_t seed) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    Trial trial(folder, seed);
    while (trial.power_cuts < cuts && trial.first_failure.empty()) trial.live(40);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    std::printf(
        "power_cut: %llu power cuts and %llu kills, seed %llu: %llu lost, %llu torn, %llu wrong; %llu steps read; %.0f "
        "cuts/s\n",
        (unsigned long long)trial.power_cuts, (unsigned long long)trial.kills, (unsigned long long)seed,
        (unsigned long long)trial.lost, (unsigned long long)trial.torn, (unsigned long long)trial.wrong,
        (unsigned long long)trial.read, double(trial.power_cuts + trial.kills) / seconds);
    return trial.first_failure;
}

}  // namespace lmcleaner::store
