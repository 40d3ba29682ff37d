// Ways in which the ring can be wrong, to prove that the tests notice. Only the tests' own build (LMCLEANER_TESTS) has
// the switch; in the module `mutated` is constant and leaves nothing behind.

#pragma once

namespace lmcleaner::store {

enum class Mutant {
    none,
    no_barrier,       // COMMITTED is written without waiting for the contents
    header_first,     // COMMITTED is written before the contents
    no_spare_slot,    // a step goes over one that readers still count on
    no_writing_mark,  // the old header stands while the contents change
    no_fallocate,     // the log's blocks are allocated when they are written
    no_atfork_close,  // forked workers keep the writer's lock
    sync_again,       // a failed fdatasync is repeated
    no_poison,        // a failed writer goes on
    no_resume_check,  // resuming believes the newest steps unread
    no_group_sync,    // durability group never syncs
    no_second_look,   // a reader does not look at the header again after a mismatch
    no_lease_wait,    // the writer ignores leases
    no_rewind_sync,   // rewinding does not wait for the disk
    no_scrub_sync,    // scrubbing wipes slots whose place only unsynced steps have taken
    no_resume_sync,   // resuming frees slots on the word of what only the page cache holds
};

#if LMCLEANER_TESTS
inline Mutant mutant = Mutant::none;
inline bool mutated(Mutant which) {
    return mutant == which;
}
#else
constexpr bool mutated(Mutant) {
    return false;
}
#endif

}  // namespace lmcleaner::store
