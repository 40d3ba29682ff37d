// A span that lies within one part is used where it is; one that touches several is copied to a buffer in the cache.
// Either way the vector is read once, though a gradient has two uses: it is encoded, and averaged into the diagonal.

#include "cpu/recording.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/dispatch.h"

namespace lmcleaner {
namespace {

class Joined {
  public:
    explicit Joined(const std::vector<Part>& parts) : parts_(parts) {
        for (const Part& part : parts) ends_.push_back(size() + part.size);
    }

    int64_t size() const { return ends_.empty() ? 0 : ends_.back(); }

    // Elements [begin, begin + count): a pointer into a part, or to `buffer` after copying them there.
    const float* at(int64_t begin, int64_t count, float* buffer) const {
        size_t part = size_t(std::upper_bound(ends_.begin(), ends_.end(), begin) - ends_.begin());
        if (parts_[part].data && begin + count <= ends_[part]) return parts_[part].data + offset(part, begin);
        for (int64_t done = 0; done < count; ++part) {
            const int64_t here = std::min(count - done, ends_[part] - begin - done);
            if (parts_[part].data)
                std::memcpy(buffer + done, parts_[part].data + offset(part, begin + done),
                            size_t(here) * sizeof(float));
            else
                std::fill_n(buffer + done, here, 0.0f);
            done += here;
        }
        return buffer;
    }

  private:
    int64_t offset(size_t part, int64_t element) const { return element - (part ? ends_[part - 1] : 0); }

    const std::vector<Part>& parts_;
    std::vector<int64_t> ends_;
};

// encode(begin, count, elements) for every span, on all threads; false from any of them is returned.
template <class Encode>
bool for_each_span(const std::vector<Part>& parts, int threads, const Encode& encode) {
    active_instruction_set();  // throws for an unknown name here, where an exception can leave, not on a thread
    const Joined joined(parts);
    const int64_t n = joined.size(), spans = (n + chunk_size - 1) / chunk_size;
    bool good = true;
#pragma omp parallel num_threads(threads) reduction(&& : good) if (threads > 1 && spans > 1)
    {
        std::vector<float> buffer(static_cast<size_t>(chunk_size));
#pragma omp for schedule(static)
        for (int64_t span = 0; span < spans; ++span) {
            const int64_t begin = span * chunk_size, count = std::min(chunk_size, n - begin);
            good = encode(begin, count, joined.at(begin, count, buffer.data())) && good;
        }
    }
    return good;
}

// From element `begin` on.
EncodedRoom advanced(const EncodedRoom& room, int64_t begin) {
    return {static_cast<char*>(room.payload) + begin * bytes_of(room.format),
            room.scales == nullptr ? nullptr : room.scales + begin / block_size, room.format};
}

}  // namespace

bool encode_parts(const std::vector<Part>& parts, const EncodedRoom& out, int threads) {
    return for_each_span(parts, threads, [&](int64_t begin, int64_t count, const float* x) {
        const EncodedRoom to = advanced(out, begin);
        return LMCLEANER_DISPATCH(encode, x, count, to.format, to.payload, to.scales, 1);
    });
}

bool encode_parts_difference(const std::vector<Part>& parts, float* shadow, const EncodedRoom& out, int threads) {
    return for_each_span(parts, threads, [&](int64_t begin, int64_t count, const float* theta) {
        const EncodedRoom to = advanced(out, begin);
        return LMCLEANER_DISPATCH(encode_difference, theta, shadow + begin, count, to.format, to.payload, to.scales, 1);
    });
}

std::pair<bool, bool> record_gradient(const std::vector<Part>& parts, const DiagonalUpdate& update,
                                      const std::optional<EncodedRoom>& out, int threads) {
    std::atomic<bool> averages_fit = true;
    const auto record = [&](int64_t begin, int64_t count, const float* g) {
        DiagonalUpdate here = update;
        here.payload += begin;
        here.scales += begin / block_size;
        here.a = here.b = g;
        here.first_block = begin / block_size;
        double failures = 0;
        LMCLEANER_DISPATCH(update_diagonal, here, count, 1, &failures);
        if (failures > 0) averages_fit = false;
        if (!out) return true;
        const EncodedRoom to = advanced(*out, begin);
        return LMCLEANER_DISPATCH(encode, g, count, to.format, to.payload, to.scales, 1);
    };
    const bool encoding_fits = for_each_span(parts, threads, record);
    return {encoding_fits, averages_fit};
}

}  // namespace lmcleaner
