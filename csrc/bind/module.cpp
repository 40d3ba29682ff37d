// The Python module lmcleaner_ext._native: what was built, the numbers that Python shares, the CPU kernels and the
// ring.

#include <sstream>

#include "bind/arguments.h"
#include "cpu/instruction_set.h"
#include "store/format.h"

namespace py = pybind11;

void bind_cpu(py::module_& module);    // cpu.cpp
void bind_store(py::module_& module);  // store.cpp

namespace {

py::dict build_info() {
    py::list instruction_sets;
    std::istringstream names(LMCLEANER_INSTRUCTION_SETS);
    for (std::string name; std::getline(names, name, ',');) instruction_sets.append(name);
    py::dict info;
    info["version"] = LMCLEANER_VERSION;
    info["compiler"] = LMCLEANER_COMPILER;
    info["instruction_sets"] = instruction_sets;
    info["openmp"] =
#if defined(_OPENMP)
        true;
#else
        false;
#endif
    info["cuda"] = bool(LMCLEANER_CUDA_BUILT);
    info["cuda_compiler"] = LMCLEANER_CUDA_COMPILER;
    info["cuda_architectures"] = LMCLEANER_CUDA_ARCHITECTURES;
    info["cuda_reason"] = LMCLEANER_CUDA_REASON;
    return info;
}

// The numbers that Python shares with the kernels and the ring.
void bind_numbers(py::module_& module) {
    using namespace lmcleaner;
#define LMC_ENTRY(name) entries[#name] = int(math::name)
    py::dict entries;
    LMC_ENTRY(FLAGS), LMC_ENTRY(GAIN), LMC_ENTRY(ALPHA), LMC_ENTRY(CURVATURE), LMC_ENTRY(DAMPING), LMC_ENTRY(LR);
    LMC_ENTRY(DECAY), LMC_ENTRY(BETA1), LMC_ENTRY(BETA2), LMC_ENTRY(EPS), LMC_ENTRY(SIZE), LMC_ENTRY(ROOT);
    LMC_ENTRY(SIZE_CF), LMC_ENTRY(ROOT_CF), LMC_ENTRY(COLUMNS);
    module.attr("replay_columns") = entries;
    entries = py::dict();
    LMC_ENTRY(ABSENT), LMC_ENTRY(SKIP), LMC_ENTRY(FIRST), LMC_ENTRY(FIRST_CF), LMC_ENTRY(NESTEROV);
    LMC_ENTRY(FACTUAL_ONLY), LMC_ENTRY(START);
    module.attr("replay_flags") = entries;
#undef LMC_ENTRY
    py::dict rules;  // name: how many vectors of state it may have
    math::for_each_rule(
        [&](auto rule) {
            const py::tuple before = rules.contains(rule.name) ? py::tuple(rules[rule.name]) : py::tuple();
            rules[rule.name] = before + py::make_tuple(rule.states);
        },
        math::AllRules());
    module.attr("replay_rules") = rules;
    py::list formats;
    for (const FormatName& format : format_names) formats.append(format.name);
    module.attr("formats") = formats;
    module.attr("BLOCK") = block_size;
    module.attr("PAGE") = store::PAGE;
    module.attr("CHUNK") = store::CHUNK;
    module.def(
        "slot_bytes",
        [](uint64_t metadata, const std::vector<uint64_t>& sections) {
            return store::SlotLayout(metadata, sections).stride;
        },
        py::arg("metadata_bytes"), py::arg("section_bytes"), "What a slot of a ring takes on disk.");
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() =
        "The ring on disk and the CPU kernels. The kernels take tensors that lmcleaner_ext.ops has checked; the ring "
        "takes pointers as integers, whose memory lmcleaner_ext.log and lmcleaner_ext.recorder keep alive.";
    module.def("build_info", &build_info, "What this module was built with, and why CUDA is missing if it is.");
    module.def(
        "cpu_instruction_set", [] { return lmcleaner::name_of(lmcleaner::active_instruction_set()); },
        "The instruction set the CPU kernels use; LMCLEANER_ISA asks for a lower one.");
    py::register_local_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const lmcleaner::UnknownInstructionSet& error) {
            const py::object type = py::module_::import("lmcleaner_ext.errors").attr("ConfigurationError");
            PyErr_SetString(type.ptr(), error.what());
        }
    });
    bind_numbers(module);
    bind_cpu(module);
    bind_store(module);
}
