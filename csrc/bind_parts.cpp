// Recording a vector that lies in parts, one per parameter, without joining it first: what the training thread pays
// for.
//
// A span that lies within one part is used where it is; one that touches several is copied to a buffer in the cache.
// Either way the vector is read once, though a gradient has two uses: it is encoded, and averaged into the diagonal.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

#include "bind_arguments.h"
#include "cpu/dispatch.h"
#include "cpu/vector_kernels.h"

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

// The gradient's square into the running average h of the curvature's diagonal; with a payload, encoded in the same
// pass. (encoded, averaged): whether all values fit.
std::pair<bool, bool> record_gradient(const std::vector<Address>& data, const std::vector<int64_t>& sizes, Address h,
                                      Address h_scales, double beta, double weight, uint64_t seed, bool encoded,
                                      int format, int64_t item_bytes, Address payload, Address scales, int threads) {
    py::gil_scoped_release release;
    std::atomic<bool> averages_fit = true;
    const auto record = [&](int64_t begin, int64_t count, const float* g) {
        DiagonalUpdate update{pointer<uint16_t>(h) + begin,
                              pointer<uint8_t>(h_scales) + begin / block_size,
                              g,
                              g,
                              float(beta),
                              float(weight),
                              seed,
                              true,
                              begin / block_size};
        double failures = 0;
        LMCLEANER_DISPATCH(update_diagonal, update, count, 1, &failures);
        if (failures > 0) averages_fit = false;
        if (!encoded) return true;
        auto* scale = reinterpret_cast<uint8_t*>(advanced(scales, begin / block_size));
        return LMCLEANER_DISPATCH(encode, g, count, Format(format), advanced(payload, begin * item_bytes), scale, 1);
    };
    const bool encoding_fits = for_each_span(Parts(data, sizes), threads, record);
    return {encoding_fits, averages_fit};
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
    module.def("record_gradient", &record_gradient, arg("data"), arg("sizes"), arg("h"), arg("h_scales"), arg("beta"),
               arg("weight"), arg("seed"), arg("encoded"), arg("format"), arg("item_bytes"), arg("payload"),
               arg("scales"), arg("threads"),
               "h = beta h + weight g^2, rounded by chance, and if `encoded` encode() of g, for a float32 g in parts. "
               "Whether all values fit: (encoded, averaged).");
}
