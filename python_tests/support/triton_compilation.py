"""Compile every Triton kernel for GPUs that are not there: `python triton_compilation.py` prints one JSON line per kernel.

A process of its own, because Triton decides at import whether it interprets. The binary says how many registers it uses.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lmcleaner_ext.ops.triton import damped_propagation, diagonal_hessian, encoded_vector, launch, optimizer_replay
from lmcleaner_ext.ops.triton.gram import COLUMNS, GROUP, combine_kernel, gram_kernel, squares_kernel

FP32, FP64, INT32, INT64, BYTES = "*fp32", "*fp64", "*i32", "*i64", "*u8"
OLDER = {"replay adam", "encode fp8", "damped_propagate", "gram"}  # compiled for 8.0 too


def replay(rule: str, states: int, payload: str = "fp16") -> tuple[Any, dict[str, str], dict[str, Any]]:
    vectors = ["delta_", "theta_", "state0", "other0", "state1", "other1"][: 2 + 2 * states]
    types = dict.fromkeys([*vectors, "diagonal", "coefficients", "injection_weight"], FP32)
    types |= dict.fromkeys(["segments", "first_tiles", "payloads", "scales", "injection_payloads"], INT64)
    types |= dict.fromkeys(["injection_scales", "injection_begin"], INT64)
    types |= {"tile_sums": FP64, "blocks": "i64", "segment_count": "i32", "steps": "i32", "lead": "i32"}
    scaled = payload in ("fp16", "fp8")
    constants = {
        "RULE": rule,
        "DEVIATION": rule != "adam",
        "FORMAT": payload,
        "SCALED": scaled,
        "INJECTION_FORMAT": payload,
    }
    constants |= {"INJECTION_SCALED": scaled, "ALIGNED": True, "STORE_FACTUAL": True}
    return optimizer_replay.replay_kernel, types, constants


def encoding(
    kernel: Any, vectors: list[str], payload: str, overflow: int
) -> tuple[Any, dict[str, str], dict[str, Any]]:
    types = dict.fromkeys(vectors, FP32) | {"overflowed": INT32, "n": "i64", "blocks": "i64"}
    types["payload"] = {"fp16": "*fp16", "bf16": "*u16", "int8": "*i8", "fp8": BYTES, "fp32": FP32}[payload]
    if payload in ("fp16", "int8", "fp8"):
        types["scales"] = BYTES
    return kernel, types, {"FORMAT": payload, "OVERFLOW": overflow}


def variants() -> dict[str, tuple[Any, dict[str, str], dict[str, Any]]]:
    """By name: kernel, types of its run-time arguments, its constants. An argument in neither is absent (None)."""
    found = {
        "replay adam": replay("adam", 2),
        "replay adam bf16": replay("adam", 2, "bf16"),
        "replay adam fp8": replay("adam", 2, "fp8"),
        "replay momentum": replay("momentum", 1),
        "replay sgd": replay("sgd", 0),
        "replay update": replay("update", 0),
    }
    for payload in ("fp16", "fp8"):
        overflow = encoded_vector.OVERFLOW_BITS[payload]
        found[f"encode {payload}"] = encoding(encoded_vector.encode_kernel, ["x"], payload, overflow)
        found[f"encode_difference {payload}"] = encoding(
            encoded_vector.encode_difference_kernel, ["theta", "shadow"], payload, overflow
        )
    scalars = {"n": "i64", "blocks": "i64"}
    decoded = {"payload": "*fp16", "scales": BYTES, "out": FP32, **scalars}
    found["decode fp16"] = (encoded_vector.decode_kernel, decoded, {"FORMAT": "fp16"})
    pair = {"payload_a": "*fp16", "scales_a": BYTES, "payload_b": FP32, "tile_sums": FP64, **scalars}
    found["dot fp16 fp32"] = (encoded_vector.dot_kernel, pair, {"FORMAT_A": "fp16", "FORMAT_B": "fp32"})
    lists = dict.fromkeys(["diagonals", "scales", "injections", "injection_scales", "injection_begin"], INT64)
    types = {"v_": FP32, "n": "i64", "blocks": "i64", "steps": "i32", "coefficients": FP32, **lists}
    types |= {"injection_factor": FP32, "tile_sums": FP64, "tile_factors": FP32}
    formats = {"FORMAT": "fp16", "SCALED": True, "INJECTION_FORMAT": "fp16", "INJECTION_SCALED": True, "ALIGNED": True}
    found["damped_propagate"] = (damped_propagation.propagate_kernel, types, formats)
    many = {"payloads": INT64, "scales": INT64, "n": "i64", "count": "i32"}
    kind = {"FORMAT": "fp16", "SCALED": True}
    squares = {**many, "blocks": "i64", "tile_sums": FP64}
    found["row_squares"] = (squares_kernel, squares, {**kind, "ALIGNED": True})
    matrix = {**many, "strips": "i32", "parts": FP64}
    found["gram"] = (gram_kernel, matrix, {**kind, "GROUP": GROUP, "COLUMNS": COLUMNS})
    sums = {"out": FP32, **many, "coefficients": FP32, "blocks": "i64", "requests": "i32"}
    found["combine"] = (combine_kernel, sums, {**kind, "ALIGNED": True})
    update = {"h": "*fp16", "scales": BYTES, "a_": FP32, "b_": FP32, "beta": "fp32", "weight": "fp32", "seed": "i64"}
    update |= {"overflowed": INT32, **scalars}
    chance = {"BY_CHANCE": True, "OVERFLOW": encoded_vector.OVERFLOW_BITS["fp16"]}
    found["diag_hessian_update"] = (diagonal_hessian.update_kernel, update, chance)
    return found


def compile_for(
    architecture: int, kernel: Any, types: dict[str, str], constants: dict[str, Any]
) -> tuple[str, dict[str, int]]:
    """(PTX, registers and bytes of spilled ones per thread)."""
    names = kernel.arg_names
    constants = {"TILE_BLOCKS": launch.TILE_BLOCKS, **constants}
    signature = {name: types.get(name, "constexpr") for name in names}
    values = {(i,): constants.get(name) for i, name in enumerate(names) if name not in types}
    # as at run time: what is a multiple of 16 is compiled as such
    divisible = {name for name, kind in types.items() if kind.startswith("*")} | {"n"}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in divisible & types.keys()}
    source = ASTSource(kernel, signature, values, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.OPTIONS)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", told)
    assert found is not None, told
    registers, stack, local = map(int, found.groups())
    return compiled.asm["ptx"], {"registers": registers, "spilled_bytes": stack + local}


def main() -> None:
    for name, variant in variants().items():
        for architecture in (80, 90) if name in OLDER else (90,):
            ptx, resources = compile_for(architecture, *variant)
            wide = len(re.findall(r"ld\.global\S*\.v4\.b32", ptx))
            print(json.dumps({"kernel": name, "architecture": architecture, **resources, "wide_loads": wide}))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
