// Encoding a vector that lies in parts, one per parameter, without joining it first: what the training thread pays for.
//
// A span that lies within one part is encoded where it is; one that touches several is copied to a buffer in the cache.
// Either way the vector is read once, and only its payload is written.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "bind_arguments.h"
#include "cpu/dispatch.h"

namespace py = pybind11;

namespace lmcleaner {
namespace {

class Parts {
  public:
    Parts(const std::vector<Address>& data, const std::vector<int64_t>& sizes) : data_(data) {
        if (data.size() != sizes.size()) throw std::invalid_argument("as many sizes as parts are needed");
        for (const int64_t size : sizes) ends_.push_back(this->size() + size);
    }

    int64_t size() const { return ends_.empty() ? 0 : ends_.back(); }

    // Elements [begin, begin + count): a pointer into a part, or to `buffer` after copying them there.
    const float* at(int64_t begin, int64_t count, float* buffer) const {
        size_t part = size_t(std::upper_bound(ends_.begin(), ends_.end(), begin) - ends_.begin());
        if (data_[part] && begin + count <= ends_[part]) return pointer<const float>(data_[part]) + offset(part, begin);
        for (int64_t done = 0; done < count; ++part) {
            const int64_t here = std::min(count - done, ends_[part] - begin - done);
            if (data_[part])
                std::memcpy(buffer + done, pointer<const float>(data_[part]) + offset(part, begin + done),
                            size_t(here) * sizeof(float));
            else
                std::fill_n(buffer + done, here, 0.0f);
            done += here;
        }
        return buffer;
    }

  private:
    int64_t offset(size_t part, int64_t element) const { return element - (part ? ends_[part - 1] : 0); }

    std::vector<Address> data_;  // null: zeros
    std::vector<int64_t> ends_;
};

// encode(begin, count, elements) for every span, on all threads; false from any of them is returned.
template <class Encode>
bool for_each_span(const Parts& parts, int threads, const Encode& encode) {
    active_instruction_set();  // throws for an unknown name here, where an exception can leave, not on a thread
    const int64_t n = parts.size(), spans = (n + chunk_size - 1) / chunk_size;
    bool good = true;
#pragma omp parallel num_threads(threads) reduction(&& : good) if (threads > 1 && spans > 1)
    {
        std::vector<float> buffer(static_cast<size_t>(chunk_size));
#pragma omp for schedule(static)
        for (int64_t span = 0; span < spans; ++span) {
            const int64_t begin = span * chunk_size, count = std::min(chunk_size, n - begin);
            good = encode(begin, count, parts.at(begin, count, buffer.data())) && good;
        }
    }
    return good;
}

// Where a span of the payload begins. A null address is that of no scales.
char* advanced(Address address, int64_t bytes) {
    return address ? pointer<char>(address) + bytes : nullptr;
}

bool encode_parts(const std::vector<Address>& data, const std::vector<int64_t>& sizes, int format, int64_t item_bytes,
                  Address payload, Address scales, int threads) {
    py::gil_scoped_release release;
    return for_each_span(Parts(data, sizes), threads, [=](int64_t begin, int64_t count, const float* x) {
        auto* scale = reinterpret_cast<uint8_t*>(advanced(scales, begin / block_size));
        return LMCLEANER_DISPATCH(encode, x, count, Format(format), advanced(payload, begin * item_bytes), scale, 1);
    });
}

bool encode_parts_difference(const std::vector<Address>& data, const std::vector<int64_t>& sizes, Address shadow,
                             int format, int64_t item_bytes, Address payload, Address scales, int threads) {
    py::gil_scoped_release release;
    return for_each_span(Parts(data, sizes), threads, [=](int64_t begin, int64_t count, const float* theta) {
        auto* scale = reinterpret_cast<uint8_t*>(advanced(scales, begin / block_size));
        return LMCLEANER_DISPATCH(encode_difference, theta, pointer<float>(shadow) + begin, count, Format(format),
                                  advanced(payload, begin * item_bytes), scale, 1);
    });
}

}  // namespace
}  // namespace lmcleaner

void bind_parts(py::module_& module) {
    using namespace lmcleaner;
    using py::arg;
    module.def("encode_parts", &encode_parts, arg("data"), arg("sizes"), arg("format"), arg("item_bytes"),
               arg("payload"), arg("scales"), arg("threads"),
               "encode() of a float32 vector in parts (address, or 0 for zeros). False: not all values fit.");
    module.def("encode_parts_difference", &encode_parts_difference, arg("data"), arg("sizes"), arg("shadow"),
               arg("format"), arg("item_bytes"), arg("payload"), arg("scales"), arg("threads"),
               "encode_difference() of a float32 theta in parts. False: not all differences fit.");
}
