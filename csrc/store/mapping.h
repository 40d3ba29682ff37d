// A file mapped for reading that survives the file being cut or its disk failing.
//
// Touching a page that the file no longer has raises SIGBUS, and no check of the size beforehand can exclude it. A
// signal handler puts a page of zeros there instead and marks the mapping `broken`; whoever used it asks afterwards.
// The handler acts on addresses in these mappings only and hands everything else to the handler that was there before.
// It cannot help where other code has replaced it since (the workers of torch's DataLoader do).

#pragma once

#include <atomic>
#include <cstdint>

namespace lmcleaner::store {

class Mapping {
  public:
    Mapping(int descriptor, std::uint64_t size);  // throws system
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping();

    unsigned char* data() const { return data_; }
    std::uint64_t size() const { return size_; }
    bool broken() const;  // zeros have taken the place of something that could not be read

  private:
    unsigned char* data_;
    std::uint64_t size_;
    struct Guard* guard_;
};

}  // namespace lmcleaner::store
