"""What every kernel of this backend shares: the tile, how an encoded vector is read, and how a kernel is launched.

A program works on a tile of TILE_BLOCKS scale blocks, as a matrix [TILE_BLOCKS, 256]: each row has one scale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..encoding import BLOCK, PAYLOAD_DTYPES

INTERPRETED: bool = triton.knobs.runtime.interpret
"""TRITON_INTERPRET=1: the kernels run on the CPU."""

TILE_BLOCKS = 4
TILE = TILE_BLOCKS * BLOCK

FORMATS: dict[torch.dtype, str] = {dtype: name for name, dtype in PAYLOAD_DTYPES.items() if name != "fp64"}

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
"""No contraction of a b + c: the formulas say where they fuse, and rely on equal products being equal."""


def format_of(payloads: Iterable[Tensor]) -> str:
    """The common format of these payloads; empty ones have none."""
    return next((FORMATS[x.dtype] for x in payloads if x.numel()), "fp32")


def tiles(n: int) -> int:
    return triton.cdiv(n, TILE)


def present(x: Tensor | None) -> Tensor | None:
    """None for an empty tensor: a kernel then neither reads nor writes it."""
    return x if x is not None and x.numel() else None


def aligned(vectors: Iterable[Tensor | None], boundaries: Sequence[int]) -> bool:
    """Whether 16-byte accesses are safe: all vectors begin at a multiple of 16 bytes, and tiles are cut at one of 8 elements."""
    return all(x is None or x.data_ptr() % 16 == 0 for x in vectors) and all(b % 8 == 0 for b in boundaries)


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Launch on this device: Triton takes torch's current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@triton.jit
def tile_columns(tile, TILE_BLOCKS: tl.constexpr):
    """Index of each element of a tile: int64 [TILE_BLOCKS, 256]."""
    rows = tile.to(tl.int64) * TILE_BLOCKS + tl.arange(0, TILE_BLOCKS)
    return rows[:, None] * 256 + tl.arange(0, 256)[None, :]


@triton.jit
def power_of_two(exponent):
    """2^(e - 127) of an E8M0 exponent 0 <= e <= 254, int32; e = 0 is a subnormal."""
    return tl.where(exponent == 0, 0x00400000, exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def load_payload(address, index, mask, FORMAT: tl.constexpr, ALIGNED: tl.constexpr):
    """float32 values of a payload at `address` (a pointer or an integer), not yet scaled."""
    if FORMAT == "fp32":
        pointer = address.to(tl.pointer_type(tl.float32))
    elif FORMAT == "fp16":
        pointer = address.to(tl.pointer_type(tl.float16))
    elif FORMAT == "bf16":
        pointer = address.to(tl.pointer_type(tl.uint16))
    elif FORMAT == "int8":
        pointer = address.to(tl.pointer_type(tl.int8))
    else:
        pointer = address.to(tl.pointer_type(tl.uint8))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    values = tl.load(pointer + index, mask=mask, other=0)
    if FORMAT == "bf16":
        return (values.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif FORMAT == "fp8":
        return value_of_fp8(values)
    else:
        return values.to(tl.float32)


@triton.jit
def value_of_fp8(code):
    """e4m3 has the digits of an fp16 number 2^8 times smaller; not every GPU converts it."""
    code = code.to(tl.uint16)
    half = ((code & 0x80) << 8 | (code & 0x7F) << 7).to(tl.uint16).to(tl.float16, bitcast=True)
    return half.to(tl.float32) * 256.0


@triton.jit
def load_scales(scales, tile, blocks, TILE_BLOCKS: tl.constexpr):
    """The factors of a tile's rows, float32 [TILE_BLOCKS, 1]."""
    row = tile.to(tl.int64) * TILE_BLOCKS + tl.arange(0, TILE_BLOCKS)
    exponent = tl.load(scales + row, mask=row < blocks, other=127).to(tl.int32)
    return power_of_two(exponent)[:, None]
