"""diag_hessian_update_ (the specification: reference/diagonal_hessian.py; the random numbers: csrc/math/diagonal_hessian.h)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..encoding import EncodedVector
from .encoded_vector import OVERFLOW_BITS
from .launch import OPTIONS, TILE_BLOCKS, load_scales, on, power_of_two, tile_columns, tiles


@triton.jit
def _block_key(seed, block):
    """A number for each (seed, block), uint32: the upper half of splitmix64."""
    x = seed.to(tl.uint64) * 0x9E3779B97F4A7C15 + block.to(tl.uint64)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return ((x ^ (x >> 31)) >> 32).to(tl.uint32)


@triton.jit
def _round_by_chance(x, key, column):
    """To eleven bits, upwards with the probability of what is cut off; "lowbias32" makes the number."""
    number = key + column.to(tl.uint32) * 0x9E3779B1
    number = (number ^ (number >> 16)) * 0x7FEB352D
    number = (number ^ (number >> 15)) * 0x846CA68B
    number = number ^ (number >> 16)
    bits = x.to(tl.uint32, bitcast=True)
    return ((bits + (number & 0x1FFF)) & 0xFFFFE000).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["seed", "beta", "weight"])
def update_kernel(h, scales, a_, b_, beta, weight, seed, overflowed, n, blocks, BY_CHANCE: tl.constexpr,
                  OVERFLOW: tl.constexpr, TILE_BLOCKS: tl.constexpr):  # fmt: skip
    tile = tl.program_id(0)
    index = tile_columns(tile, TILE_BLOCKS)
    mask = index < n
    old = tl.load(h + index, mask=mask, other=0.0).to(tl.float32) * load_scales(scales, tile, blocks, TILE_BLOCKS)
    a, b = tl.load(a_ + index, mask=mask, other=0.0), tl.load(b_ + index, mask=mask, other=0.0)
    value = beta * old + weight * (a * b)
    largest = tl.max(value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)
    tl.store(overflowed, 1, mask=tl.max(largest, axis=0) >= OVERFLOW)
    exponent = tl.minimum(tl.maximum((largest >> 23) - 14, 0), 254)
    exponent = tl.where(largest == 0, 127, exponent)
    value = value * power_of_two(254 - exponent)[:, None]
    row = tile.to(tl.int64) * TILE_BLOCKS + tl.arange(0, TILE_BLOCKS)
    if BY_CHANCE:
        value = _round_by_chance(value, _block_key(seed, row)[:, None], tl.arange(0, 256)[None, :])
    tl.debug_barrier()  # every thread has read the old scales
    tl.store(h + index, value.to(tl.float16), mask=mask)
    tl.store(scales + row, exponent.to(tl.uint8), mask=row < blocks)


def diag_hessian_update_(
    h: EncodedVector, a: Tensor, b: Tensor, beta: float, weight: float, seed: int | None
) -> Tensor:
    n, device = a.numel(), a.device
    overflowed = torch.zeros((), dtype=torch.int32, device=device)
    if n:
        with on(device):
            update_kernel[(tiles(n),)](
                *h, a, b, beta, weight, seed or 0, overflowed, n, triton.cdiv(n, 256), BY_CHANCE=seed is not None,
                OVERFLOW=OVERFLOW_BITS["fp16"], TILE_BLOCKS=TILE_BLOCKS, **OPTIONS,
            )  # fmt: skip
    return overflowed == 0
