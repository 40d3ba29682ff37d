// The instruction set in use, for a call of one kernel; and what a kernel's partial results become.

#pragma once

#include <vector>

#include "cpu/instruction_set.h"
#include "cpu/kernels.h"

// Call `function` of the instruction set in use.
#if defined(__x86_64__)
#define LMCLEANER_DISPATCH(function, ...)             \
    [&] {                                             \
        switch (active_instruction_set()) {           \
            case InstructionSet::avx512:              \
                return avx512::function(__VA_ARGS__); \
            case InstructionSet::avx2:                \
                return avx2::function(__VA_ARGS__);   \
            case InstructionSet::portable:            \
                break;                                \
        }                                             \
        return portable::function(__VA_ARGS__);       \
    }()
#else
#define LMCLEANER_DISPATCH(function, ...) portable::function(__VA_ARGS__)
#endif

namespace lmcleaner {

inline double sum(const std::vector<double>& parts) {
    double total = 0;
    for (double part : parts) total += part;
    return total;
}

inline std::vector<double> chunk_sums(int64_t n) {
    return std::vector<double>(size_t((n + chunk_size - 1) / chunk_size));
}

}  // namespace lmcleaner
