// A correction and the weights change places in one pass over memory: theta <- theta - v, v <- what theta was.

#include "cpu/block.h"

namespace lmcleaner::LMCLEANER_INSTRUCTION_SET {
namespace {

constexpr int width = 16;  // sums side by side, in a fixed order

LMC_REGISTER void exchange_some(float* theta, float* v, int count, double* before, double* after) {
    float old[width] = {}, corrected[width] = {};
    std::memcpy(old, theta, size_t(count) * sizeof(float));
    std::memcpy(corrected, v, size_t(count) * sizeof(float));
    for (int i = 0; i < width; ++i) corrected[i] = old[i] - corrected[i];
    for (int i = 0; i < width; ++i) before[i] += double(old[i]) * double(old[i]);
    for (int i = 0; i < width; ++i) after[i] += double(corrected[i]) * double(corrected[i]);
    std::memcpy(v, old, size_t(count) * sizeof(float));
    std::memcpy(theta, corrected, size_t(count) * sizeof(float));
}

}  // namespace

void exchange(float* theta, float* v, int64_t n, int threads, double* before, double* after) {
    for_each_chunk(n, threads, [=](int64_t chunk, int64_t begin, int64_t end) {
        double squares_before[width] = {}, squares_after[width] = {};
        int64_t at = begin;
        for (; at + width <= end; at += width) exchange_some(theta + at, v + at, width, squares_before, squares_after);
        exchange_some(theta + at, v + at, int(end - at), squares_before, squares_after);
        before[chunk] = after[chunk] = 0;
        for (double part : squares_before) before[chunk] += part;
        for (double part : squares_after) after[chunk] += part;
    });
}

}  // namespace lmcleaner::LMCLEANER_INSTRUCTION_SET
