// The Python module lmcleaner_ext._native: what was built, the CPU kernels and the ring.

#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "cpu/instruction_set.h"

namespace py = pybind11;

void bind_kernels(py::module_& module);         // bind_kernels.cpp
void bind_vector_kernels(py::module_& module);  // bind_vector_kernels.cpp
void bind_store(py::module_& module);           // bind_store.cpp
void bind_parts(py::module_& module);           // bind_parts.cpp

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

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() =
        "The ring on disk and the CPU kernels. Pointers are passed as integers; the callers in "
        "lmcleaner_ext.ops and lmcleaner_ext.log keep the memory alive.";
    module.def("build_info", &build_info, "What this module was built with, and why CUDA is missing if it is.");
    module.def(
        "cpu_instruction_set", [] { return lmcleaner::name_of(lmcleaner::active_instruction_set()); },
        "The instruction set the CPU kernels use; LMCLEANER_ISA asks for a lower one.");
    bind_kernels(module);
    bind_vector_kernels(module);
    bind_store(module);
    bind_parts(module);
}
