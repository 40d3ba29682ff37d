// Which of the compiled CPU kernels this machine runs.

#pragma once

#include <stdexcept>

namespace lmcleaner {

enum class InstructionSet { portable, avx2, avx512 };

struct UnknownInstructionSet : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// The best compiled set this CPU supports. The environment variable LMCLEANER_ISA (portable | avx2 | avx512) asks for a
// lower one; it is read at every call, so that tests can compare sets in one process.
// Throws UnknownInstructionSet for an unknown name or a set this CPU or this build lacks.
InstructionSet active_instruction_set();

const char* name_of(InstructionSet set);

}  // namespace lmcleaner
