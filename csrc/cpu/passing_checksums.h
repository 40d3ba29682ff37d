// XXH3 of what a kernel reads, taken while it is in the cache and with the widest registers of this build.

#pragma once

#include <sys/mman.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <vector>

#include "chunk_check.h"

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {

// One chunk of the log, of several vectors at once.
class PassingChecksums {
  public:
    PassingChecksums(const std::vector<std::vector<ChunkCheck>>& vectors, size_t chunk) : states_(vectors.size()) {
        for (size_t i = 0; i < vectors.size(); ++i) {
            const ChunkCheck& check = chunks_.emplace_back(vectors[i][chunk]);
#if defined(MADV_POPULATE_READ)
            // One call instead of a page fault for every few pages. Only advice: a failure costs nothing but speed.
            madvise(const_cast<unsigned char*>(check.data), check.size, MADV_POPULATE_READ);
#endif
            XXH3_64bits_reset_withSeed(&states_[i], check.seed);
        }
    }

    // The next bytes of every vector; `rest`: all that remain, the padding behind the payload too.
    void pass(uint64_t bytes, bool rest) {
        for (size_t i = 0; i < chunks_.size(); ++i) {
            const uint64_t remaining = chunks_[i].size - passed_;
            XXH3_64bits_update(&states_[i], chunks_[i].data + passed_, rest ? remaining : std::min(bytes, remaining));
        }
        passed_ += bytes;
    }

    bool intact() const {
        for (size_t i = 0; i < chunks_.size(); ++i)
            if (XXH3_64bits_digest(&states_[i]) != chunks_[i].expected) return false;
        return true;
    }

  private:
    std::vector<ChunkCheck> chunks_;
    std::vector<XXH3_state_t> states_;
    uint64_t passed_ = 0;
};

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
