// store_tests: the native tests of the ring, each from the command line with its size and seed.
//
//   store_tests FOLDER TEST [AMOUNT [SEED]]     FOLDER: an empty one, on a memory file system for speed
//   store_tests FOLDER mutants [0 [SEED]]       breaks the ring in every way of mutant.h and says which test notices

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>

#include "store/mutant.h"
#include "store/tests/tests.h"

using namespace lmcleaner::store;

namespace {

using Test = std::function<std::string(const std::string& folder, double amount, std::uint64_t seed)>;

const std::map<std::string, std::pair<Test, double>> TESTS = {
    {"bit_flips", {[](auto& folder, double, auto) { return bit_flips(folder); }, 0}},
    {"chase", {[](auto& folder, double reads, auto seed) { return chase(folder, std::uint64_t(reads), seed); }, 5e3}},
    {"eio", {[](auto& folder, double, auto seed) { return eio(folder, seed); }, 0}},
    {"forked", {[](auto& folder, double, auto) { return forked(folder); }, 0}},
    {"fuzz", {[](auto& folder, double inputs, auto seed) { return fuzz(folder, std::uint64_t(inputs), seed); }, 1e4}},
    {"killed", {[](auto& folder, double times, auto seed) { return killed(folder, std::uint64_t(times), seed); }, 20}},
    {"leases", {[](auto& folder, double, auto) { return leases(folder); }, 0}},
    {"no_space", {[](auto& folder, double, auto) { return no_space(folder); }, 0}},
    {"overtaken", {[](auto& folder, double, auto) { return overtaken(folder); }, 0}},
    {"power_cut",
     {[](auto& folder, double cuts, auto seed) { return power_cut(folder, std::uint64_t(cuts), seed); }, 1e4}},
    {"truncated", {[](auto& folder, double, auto) { return truncated(folder); }, 0}},
};

int run_mutants(const std::string& folder, std::uint64_t seed) {
    struct Row {
        Mutant mutant;
        const char *name, *test;  // the test that is there to notice it
        double amount;
    };
    const Row rows[] = {
        {Mutant::no_barrier, "no_barrier", "power_cut", 1e4},
        {Mutant::header_first, "header_first", "power_cut", 1e4},
        {Mutant::no_spare_slot, "no_spare_slot", "power_cut", 1e4},
        {Mutant::no_writing_mark, "no_writing_mark", "power_cut", 1e4},
        {Mutant::no_fallocate, "no_fallocate", "no_space", 0},
        {Mutant::no_atfork_close, "no_atfork_close", "forked", 0},
        {Mutant::no_group_sync, "no_group_sync", "power_cut", 1e4},
        {Mutant::no_rewind_sync, "no_rewind_sync", "power_cut", 1e4},
        {Mutant::no_scrub_sync, "no_scrub_sync", "power_cut", 1e5},
        {Mutant::no_resume_check, "no_resume_check", "power_cut", 1e4},
        {Mutant::no_resume_sync, "no_resume_sync", "power_cut", 1e5},
        {Mutant::no_poison, "no_poison", "eio", 0},
        {Mutant::sync_again, "sync_again", "eio", 0},
        {Mutant::no_lease_wait, "no_lease_wait", "leases", 0},
        {Mutant::no_second_look, "no_second_look", "overtaken", 0},
    };
    int survivors = 0;
    for (const Row& row : rows) {
        mutant = row.mutant;
        std::string why;
        try {
            why = TESTS.at(row.test).first(folder, row.amount, seed);
        } catch (const std::exception& error) {
            why = error.what();
        }
        std::printf("mutant %s: %s\n", row.name,
                    why.empty() ? "SURVIVED" : ("killed by " + std::string(row.test) + ": " + why).c_str());
        survivors += why.empty();
    }
    return survivors;
}

}  // namespace

int main(int count, char** arguments) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    if (count >= 3) {
        const std::string folder = arguments[1], name = arguments[2];
        const std::uint64_t seed = count > 4 ? std::strtoull(arguments[4], nullptr, 10) : 1;
        if (name == "mutants") return run_mutants(folder, seed);
        if (const auto found = TESTS.find(name); found != TESTS.end()) {
            const auto& [test, amount] = found->second;
            const std::string failure = test(folder, count > 3 ? std::atof(arguments[3]) : amount, seed);
            if (!failure.empty()) std::printf("%s: FAILED: %s\n", name.c_str(), failure.c_str());
            return failure.empty() ? 0 : 1;
        }
    }
    std::fprintf(stderr, "store_tests FOLDER TEST [AMOUNT [SEED]], TEST one of: mutants");
    for (const auto& [name, test] : TESTS) std::fprintf(stderr, " %s", name.c_str());
    std::fprintf(stderr, "\n");
    return 2;
}
