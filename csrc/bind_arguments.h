// What the modules _native and _cuda share: pointers arrive from Python as integers, checked in
// lmcleaner_ext/ops/checks.py.

#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "math/propagation_plan.h"
#include "math/replay_plan.h"

namespace lmcleaner {

using Address = uintptr_t;

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

template <class T>
std::vector<T*> pointers(const std::vector<Address>& addresses) {
    std::vector<T*> found;
    found.reserve(addresses.size());
    for (Address address : addresses) found.push_back(pointer<T>(address));
    return found;
}

// The arguments of optimizer_replay_window in the order in which Python gives them.
inline ReplayArguments replay_arguments(
    int rule, int64_t n, const std::vector<Address>& delta, Address theta, const std::vector<Address>& state,
    const std::vector<Address>& counterfactual, Address coefficients, int64_t classes, int64_t steps, Address segments,
    int64_t segment_count, const std::vector<Address>& gradients, const std::vector<Address>& gradient_scales,
    int gradient_format, const std::vector<Address>& injections, const std::vector<Address>& injection_scales,
    int injection_format, Address injection_table, int64_t injection_columns, Address diagonal, int64_t lead) {
    return {
        .rule = math::Rule(rule),
        .n = n,
        .delta = pointers<float>(delta),
        .theta = pointer<float>(theta),
        .state = pointers<float>(state),
        .counterfactual = pointers<float>(counterfactual),
        .coefficients = pointer<const double>(coefficients),
        .classes = classes,
        .steps = steps,
        .segments = pointer<const Segment>(segments),
        .segment_count = segment_count,
        .gradients = {pointers<const void>(gradients), pointers<const uint8_t>(gradient_scales),
                      Format(gradient_format)},
        .injections = {pointers<const void>(injections), pointers<const uint8_t>(injection_scales),
                       Format(injection_format)},
        .injection_table = pointer<const double>(injection_table),
        .injection_columns = injection_columns,
        .diagonal = pointer<const float>(diagonal),
        .lead = lead,
    };
}

inline std::vector<EncodedVector> encoded_vectors(const std::vector<Address>& payloads,
                                                  const std::vector<Address>& scales, const std::vector<int>& formats) {
    std::vector<EncodedVector> found;
    for (size_t i = 0; i < payloads.size(); ++i)
        found.push_back({pointer<const void>(payloads[i]), pointer<const uint8_t>(scales[i]), Format(formats[i])});
    return found;
}

inline DiagonalUpdate diagonal_update(Address payload, Address scales, Address a, Address b, double beta, double weight,
                                      uint64_t seed, bool by_chance) {
    return {pointer<uint16_t>(payload),
            pointer<uint8_t>(scales),
            pointer<const float>(a),
            pointer<const float>(b),
            float(beta),
            float(weight),
            seed,
            by_chance};
}

// The arguments of damped_propagate_window in the order in which Python gives them.
inline PropagationArguments propagation_arguments(Address v, int64_t n, const std::vector<Address>& diagonals,
                                                  const std::vector<Address>& diagonal_scales, int diagonal_format,
                                                  Address coefficients, const std::vector<Address>& injections,
                                                  const std::vector<Address>& injection_scales, int injection_format,
                                                  Address injection_table) {
    return {
        .v = pointer<float>(v),
        .n = n,
        .diagonals = {pointers<const void>(diagonals), pointers<const uint8_t>(diagonal_scales),
                      Format(diagonal_format)},
        .injections = {pointers<const void>(injections), pointers<const uint8_t>(injection_scales),
                       Format(injection_format)},
        .coefficients = pointer<const double>(coefficients),
        .injection_table = pointer<const double>(injection_table),
    };
}

}  // namespace lmcleaner
