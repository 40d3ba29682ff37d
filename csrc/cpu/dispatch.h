// LMCLEANER_DISPATCH(function, arguments...): the kernel of the instruction set in use.

#pragma once

#include "cpu/instruction_set.h"
#include "cpu/kernels.h"

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
