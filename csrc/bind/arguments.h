// What the modules _native and _cuda share: Python's arguments, tensors and the dataclasses of lmcleaner_ext/ops, read
// by the names of their attributes. They were checked there; no torch header is needed here.

#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "math/propagation_plan.h"
#include "math/rules/rules.h"

namespace lmcleaner {

namespace py = pybind11;

// The formats' names, in the order of Format, and the names of their types in torch.
struct FormatName {
    const char *name, *dtype;
};
inline constexpr FormatName format_names[] = {{"fp32", "torch.float32"},
                                              {"fp16", "torch.float16"},
                                              {"bf16", "torch.bfloat16"},
                                              {"int8", "torch.int8"},
                                              {"fp8", "torch.float8_e4m3fn"}};

// Null for None and for an empty tensor. A call has hundreds of them: the name is made once.
template <class T>
T* data(py::handle tensor) {
    static PyObject* const name = PyUnicode_InternFromString("data_ptr");
    if (tensor.is_none()) return nullptr;
    const auto address = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor.ptr(), name));
    if (!address) throw py::error_already_set();
    return reinterpret_cast<T*>(address.cast<uintptr_t>());
}

inline int64_t numel(py::handle tensor) {
    return tensor.attr("numel")().cast<int64_t>();
}

// From the end: size(tensor, 1) is the length of the last dimension.
inline int64_t size(py::handle tensor, int64_t from_the_end) {
    return tensor.attr("size")(-from_the_end).cast<int64_t>();
}

inline Format format_of(py::handle tensor) {
    const std::string dtype = py::str(tensor.attr("dtype"));
    for (size_t i = 0; i < std::size(format_names); ++i)
        if (dtype == format_names[i].dtype) return Format(i);
    throw std::invalid_argument("no kernel reads " + dtype);
}

// An EncodedVector of lmcleaner_ext/ops/encoding.py is the pair (payload, scales).
inline py::object payload_of(py::handle vector) {
    return py::reinterpret_borrow<py::tuple>(vector)[0];
}
inline py::object scales_of(py::handle vector) {
    return py::reinterpret_borrow<py::tuple>(vector)[1];
}

inline EncodedVector encoded_vector(py::handle vector) {
    const py::object payload = payload_of(vector);
    const void* values = data<const void>(payload);
    return {values, data<const uint8_t>(scales_of(vector)), values ? format_of(payload) : Format::fp32};
}

inline std::vector<EncodedVector> encoded_list(py::handle vectors) {
    std::vector<EncodedVector> found;
    for (py::handle vector : vectors) found.push_back(encoded_vector(vector));
    return found;
}

// Of one format: that of the first one that is not empty.
inline EncodedVectors encoded_vectors(py::handle vectors) {
    EncodedVectors found;
    bool known = false;
    for (py::handle vector : vectors) {
        const py::object payload = payload_of(vector);
        found.payloads.push_back(data<const void>(payload));
        found.scales.push_back(data<const uint8_t>(scales_of(vector)));
        if (!known && found.payloads.back() != nullptr) found.format = format_of(payload), known = true;
    }
    return found;
}

// Row r of a matrix of float32 rows, or the vector itself; null where it is empty.
inline float* row(py::handle tensor, int64_t r) {
    float* first = data<float>(tensor);
    return r == 0 || first == nullptr ? first : first + r * tensor.attr("stride")(0).cast<int64_t>();
}

inline std::vector<float*> float_vectors(py::handle tensors) {
    std::vector<float*> found;
    for (py::handle tensor : tensors) found.push_back(data<float>(tensor));
    return found;
}

// The number of a rule in math/rules/rules.h.
inline int rule_number(const std::string& name, size_t states) {
    int number = 0, found = -1;
    math::for_each_rule(
        [&](auto rule) {
            if (name == rule.name && states == size_t(rule.states)) found = number;
            ++number;
        },
        math::AllRules());
    if (found < 0) throw std::invalid_argument("no kernel for the rule " + name);
    return found;
}

// A ReplayWindow of lmcleaner_ext/ops/optimizer_replay.py.
inline ReplayArguments replay_arguments(py::handle window) {
    const py::object delta = window.attr("delta"), state = window.attr("state"), segments = window.attr("segments"),
                     counterfactual = window.attr("counterfactual"), coefficients = window.attr("coefficients"),
                     injection_table = window.attr("injection_table");
    ReplayArguments a{};
    a.n = size(delta, 1);
    a.theta = data<float>(window.attr("theta"));
    a.state = float_vectors(state);
    a.rule = rule_number(window.attr("rule").cast<std::string>(), a.state.size());
    const int64_t requests = window.attr("requests").cast<int64_t>();
    for (int64_t r = 0; r < requests; ++r) {
        a.delta.push_back(row(delta, r));
        for (py::handle vector : counterfactual) a.counterfactual.push_back(row(vector, r));
    }
    a.coefficients = data<const double>(coefficients);
    a.classes = size(coefficients, 3);
    a.steps = size(coefficients, 2);
    a.segments = data<const Segment>(segments);
    a.segment_count = size(segments, 2);
    a.gradients = encoded_vectors(window.attr("gradients"));
    a.injections = encoded_vectors(window.attr("injections"));
    a.injection_table = data<const double>(injection_table);
    a.injection_columns = size(injection_table, 1);
    a.diagonal = data<const float>(window.attr("diagonal"));
    a.lead = window.attr("lead").cast<int64_t>();
    return a;
}

// A PropagationWindow of lmcleaner_ext/ops/damped_propagation.py.
inline PropagationArguments propagation_arguments(py::handle window) {
    const py::object v = window.attr("v");
    return {
        .v = data<float>(v),
        .n = numel(v),
        .diagonals = encoded_vectors(window.attr("diagonals")),
        .injections = encoded_vectors(window.attr("injections")),
        .coefficients = data<const double>(window.attr("coefficients")),
        .injection_table = data<const double>(window.attr("injection_table")),
    };
}

inline DiagonalUpdate diagonal_update(py::handle h, py::handle a, py::handle b, double beta, double weight,
                                      uint64_t seed, bool by_chance) {
    return {data<uint16_t>(payload_of(h)),
            data<uint8_t>(scales_of(h)),
            data<const float>(a),
            data<const float>(b),
            float(beta),
            float(weight),
            seed,
            by_chance};
}

}  // namespace lmcleaner
