#include "cpu/instruction_set.h"

#include <cstdlib>
#include <string>

namespace lmcleaner {
namespace {

InstructionSet best_of_this_cpu() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return InstructionSet::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        return InstructionSet::avx2;
#endif
    return InstructionSet::portable;
}

}  // namespace

const char* name_of(InstructionSet set) {
    switch (set) {
        case InstructionSet::avx512:
            return "avx512";
        case InstructionSet::avx2:
            return "avx2";
        case InstructionSet::portable:
            break;
    }
    return "portable";
}

InstructionSet active_instruction_set() {
    static const InstructionSet best = best_of_this_cpu();
    const char* asked = std::getenv("LMCLEANER_ISA");
    if (asked == nullptr || *asked == '\0') return best;
    for (InstructionSet set : {InstructionSet::portable, InstructionSet::avx2, InstructionSet::avx512}) {
        if (name_of(set) != std::string(asked)) continue;
        if (set > best)
            throw UnknownInstructionSet(std::string("LMCLEANER_ISA=") + asked + ": this CPU or build only has up to " +
                                        name_of(best));
        return set;
    }
    throw UnknownInstructionSet(std::string("LMCLEANER_ISA=") + asked + ": expected portable, avx2 or avx512");
}

}  // namespace lmcleaner
