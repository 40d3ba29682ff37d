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


def bits_of(payload: Tensor) -> Tensor:
    """bfloat16 and fp8 are handled as their bits."""
    kinds = {torch.bfloat16: torch.uint16, torch.float8_e4m3fn: torch.uint8}
    return payload.view(kinds.get(payload.dtype, payload.dtype))


def scaled(scales: Iterable[Tensor]) -> bool:
    """Whether these vectors, all of one format, have scales."""
    return any(x.numel() for x in scales)


def addresses(vectors: Sequence[Tensor], device: torch.device) -> Tensor:
    """The vectors' addresses for `load_listed`, 0 for an empty one; at least one, so that there is a table."""
    return torch.tensor([x.data_ptr() if x.numel() else 0 for x in vectors] or [0], dtype=torch.int64).to(device)


def first_of_each_step(injection_table: Tensor, steps: int) -> Tensor:
    """int64 [steps + 1]: the injections of step t are [first[t], first[t + 1])."""
    counts = torch.bincount(injection_table[:, 0].long(), minlength=steps)
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


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


@triton.jit
def load_listed(payloads, scales, t, steps, index, mask, block, blocks, FORMAT: tl.constexpr, ALIGNED: tl.constexpr,
              SCALED: tl.constexpr, TILE_BLOCKS: tl.constexpr):  # fmt: skip
    """Vector t of a list given by addresses; zeros past the end and for a null address."""
    address = tl.load(payloads + t, mask=t < steps, other=0)
    values = tl.zeros(index.shape, tl.float32)
    if address != 0:
        values = load_payload(address, index, mask, FORMAT, ALIGNED)
        if SCALED:
            row_scales = tl.load(scales + t).to(tl.pointer_type(tl.uint8))
            values = values * load_scales(row_scales, block, blocks, TILE_BLOCKS)
    return values
