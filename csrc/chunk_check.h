// What the ring says of one chunk of a vector, in a form that a kernel can check while it reads the chunk anyway.

#pragma once

#include <cstdint>
#include <vector>

namespace lmcleaner {

struct ChunkCheck {
    const unsigned char* data;  // begins at a page
    std::uint64_t size;         // bytes, padding included
    std::uint64_t seed;         // of XXH3-64
    std::uint64_t expected;
};

struct VectorChecks {
    std::vector<std::vector<ChunkCheck>> vectors;  // [vector][chunk]
};

}  // namespace lmcleaner
