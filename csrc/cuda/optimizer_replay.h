#pragma once

#include <cuda_runtime.h>

#include "math/replay_plan.h"

namespace lmcleaner::cuda {

// Queues the replay on `stream` and returns at once. Vectors are device memory; the tables of `arguments`
// (coefficients, segments, injections) are host memory and may be freed on return. `sum_of_squares` is one double per
// request in device memory, the same to the last bit at every call. Throws std::runtime_error with CUDA's message.
void optimizer_replay_window(const ReplayArguments& arguments, double* sum_of_squares, cudaStream_t stream);

}  // namespace lmcleaner::cuda
