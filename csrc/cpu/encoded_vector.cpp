// Vectors of the log: encode, encode_difference, decode and dot at memory speed (lmcleaner_ext/ops/encoding.py has the
// format, math/encoding.h the rule of the block exponent).

#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "math/encoding.h"

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {
namespace {

LMC_REGISTER uint32_t magnitude_bits(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffffu;
}

// The largest magnitude of a block as the bits of a float; their order is that of the magnitudes, NaN above infinity.
LMC_REGISTER uint32_t largest_magnitude(const float* x, int count) {
    uint32_t largest = 0;
    for (int i = 0; i < count; ++i) {
        const uint32_t bits = magnitude_bits(x[i]);
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

template <Format format>
LMC_REGISTER void multiply_and_store(const float* x, float factor, int count, Payload<format>* payload) {
    int i = 0;
    for (; i + Pack::width <= count; i += Pack::width)
        store_payload<format>(payload + i, load_pack(x + i) * Pack(factor));
    if (i == count) return;
    alignas(64) Payload<format> buffer[Pack::width];
    store_payload<format>(buffer, load_pack(Partial<float>(x + i, count - i).values) * Pack(factor));
    for (int j = 0; i + j < count; ++j) payload[i + j] = buffer[j];
}

template <Format format>
LMC_REGISTER void load_and_multiply(const Payload<format>* payload, float factor, int count, float* out) {
    int i = 0;
    for (; i + Pack::width <= count; i += Pack::width)
        store_pack(out + i, load_payload<format>(payload + i) * Pack(factor));
    if (i == count) return;
    const Partial<Payload<format>> rest(payload + i, count - i);
    Partial<float>(load_payload<format>(rest.values) * Pack(factor)).copy_to(out + i, count - i);
}

template <Format format>
float factor_of(const uint8_t* scales, int64_t block) {
    return scales == nullptr ? 1.0f : scale_of(scales[block]);
}

// body(block, begin, count) for every block of 256; false from any of them is returned.
template <class Body>
bool for_each_block(int64_t n, int threads, const Body& body) {
    const int64_t blocks = (n + block_size - 1) / block_size;
    bool good = true;
#pragma omp parallel reduction(&& : good) num_threads(threads) if (threads > 1 && n > chunk_size)
    {
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t begin = block * block_size;
            good = body(block, begin, int(n - begin < block_size ? n - begin : block_size)) && good;
        }
        finish_copies();
    }
    return good;
}

// One encoded block in the cache. From there it is copied past the cache: the next to read it is the writer of the log.
template <Format format>
struct EncodedBlock {
    alignas(64) Payload<format> payload[block_size];
    uint8_t scale = 127;
    bool representable;

    inline __attribute__((always_inline)) EncodedBlock(const float* x, int count) {
        const uint32_t largest = largest_magnitude(x, count);
        representable = largest < math::overflow_bits(format);
        if constexpr (math::is_scaled(format)) scale = math::block_exponent(format, largest);
        multiply_and_store<format>(x, scale_of(uint8_t(254 - scale)), count, payload);
    }
    inline __attribute__((always_inline)) void write(Payload<format>* out, uint8_t* scale_out, int count) const {
        if constexpr (math::is_scaled(format)) *scale_out = scale;
        if (count == block_size && reinterpret_cast<uintptr_t>(out) % 64 == 0)
            copy_past_cache(out, payload, int(sizeof payload));
        else
            __builtin_memcpy(out, payload, size_t(count) * sizeof *out);
    }
};

template <Format format>
bool encode_as(const float* x, int64_t n, void* payload, uint8_t* scales, int threads) {
    auto* out = static_cast<Payload<format>*>(payload);
    return for_each_block(n, threads, [=](int64_t block, int64_t begin, int count) {
        const EncodedBlock<format> encoded(x + begin, count);
        encoded.write(out + begin, scales + block, count);
        return encoded.representable;
    });
}

template <Format format>
bool encode_difference_as(const float* theta, float* shadow, int64_t n, void* payload, uint8_t* scales, int threads) {
    auto* out = static_cast<Payload<format>*>(payload);
    return for_each_block(n, threads, [=](int64_t block, int64_t begin, int count) {
        alignas(64) float difference[block_size], decoded[block_size];
        for (int i = 0; i < count; ++i) difference[i] = theta[begin + i] - shadow[begin + i];
        const EncodedBlock<format> encoded(difference, count);
        encoded.write(out + begin, scales + block, count);
        if (!encoded.representable) return false;
        load_and_multiply<format>(encoded.payload, scale_of(encoded.scale), count, decoded);
        for (int i = 0; i < count; ++i) shadow[begin + i] += decoded[i];
        return true;
    });
}

template <Format format>
void decode_as(const EncodedVector& x, int64_t n, float* out, int threads) {
    const auto* payload = static_cast<const Payload<format>*>(x.payload);
    const uint8_t* scales = x.scales;
    for_each_block(n, threads, [=](int64_t block, int64_t begin, int count) {
        load_and_multiply<format>(payload + begin, factor_of<format>(scales, block), count, out + begin);
        return true;
    });
}

void decode_block(const EncodedVector& x, int64_t block, int count, float* out) {
    with_format(x.format, [&](auto format) {
        const auto* payload = static_cast<const Payload<format()>*>(x.payload) + block * block_size;
        load_and_multiply<format()>(payload, factor_of<format()>(x.scales, block), count, out);
    });
}

double dot_chunk(const EncodedVector& a, const EncodedVector& b, int64_t begin, int64_t end) {
    alignas(64) float x[block_size], y[block_size];
    double sums[16] = {};
    for (int64_t at = begin; at < end; at += block_size) {
        const int count = int(end - at < block_size ? end - at : block_size);
        if (count < block_size)
            for (int i = 0; i < block_size; ++i) x[i] = y[i] = 0;
        decode_block(a, at / block_size, count, x);
        decode_block(b, at / block_size, count, y);
        for (int i = 0; i < block_size; i += 16)
            for (int j = 0; j < 16; ++j) sums[j] += double(x[i + j]) * double(y[i + j]);
    }
    double sum = 0;
    for (double part : sums) sum += part;
    return sum;
}

}  // namespace

bool encode(const float* x, int64_t n, Format format, void* payload, uint8_t* scales, int threads) {
    return with_format(format, [&](auto format) { return encode_as<format()>(x, n, payload, scales, threads); });
}

bool encode_difference(const float* theta, float* shadow, int64_t n, Format format, void* payload, uint8_t* scales,
                       int threads) {
    return with_format(format, [&](auto format) {
        return encode_difference_as<format()>(theta, shadow, n, payload, scales, threads);
    });
}

void decode(const EncodedVector& x, int64_t n, float* out, int threads) {
    with_format(x.format, [&](auto format) { decode_as<format()>(x, n, out, threads); });
}

void dot(const EncodedVector& a, const EncodedVector& b, int64_t n, int threads, double* chunk_sums) {
    const int64_t chunks = (n + chunk_size - 1) / chunk_size;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && chunks > 1)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t begin = chunk * chunk_size, end = begin + chunk_size;
        chunk_sums[chunk] = dot_chunk(a, b, begin, end < n ? end : n);
    }
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
