// Recording a vector that lies in parts, one per parameter, without joining it first: what the training thread pays
// for.

#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "math/propagation_plan.h"

namespace lmcleaner {

struct Part {
    const float* data;  // null: zeros
    int64_t size;
};

// Where an encoded vector goes.
struct EncodedRoom {
    void* payload;
    uint8_t* scales;  // or null
    Format format;
};

// False: not all values fit.
bool encode_parts(const std::vector<Part>& parts, const EncodedRoom& out, int threads);
bool encode_parts_difference(const std::vector<Part>& parts, float* shadow, const EncodedRoom& out, int threads);

// The gradient's square into the running average h of the curvature's diagonal, by `update`, whose operands it is; with
// room for it, encoded in the same pass. (encoded, averaged): whether all values fit.
std::pair<bool, bool> record_gradient(const std::vector<Part>& parts, const DiagonalUpdate& update,
                                      const std::optional<EncodedRoom>& out, int threads);

}  // namespace lmcleaner
