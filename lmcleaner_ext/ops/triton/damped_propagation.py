"""The damped propagation and its prefix form (the specification: ops/vector_reference.py).

Logarithm and exponential are taken in float64: Triton's float32 ones are approximations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..damped_propagation import PropagationWindow
from .launch import (
    FORMATS,
    OPTIONS,
    TILE_BLOCKS,
    addresses,
    aligned,
    bits_of,
    first_of_each_step,
    format_of,
    load_listed,
    load_payload,
    load_scales,
    on,
    present,
    scaled,
    tile_columns,
    tiles,
)

LARGEST_DECREMENT = tl.constexpr(1 - 2.0**-24)  # of the prefix form: vector_reference.SMALLEST_FACTOR


@triton.jit(do_not_specialize=["steps"])
def propagate_kernel(v_, n, blocks, steps, coefficients, diagonals, scales, injections, injection_scales,
                     injection_begin, injection_factor, tile_sums, tile_factors, FORMAT: tl.constexpr,
                     SCALED: tl.constexpr, INJECTION_FORMAT: tl.constexpr, INJECTION_SCALED: tl.constexpr,
                     ALIGNED: tl.constexpr, TILE_BLOCKS: tl.constexpr):  # fmt: skip
    tile = tl.program_id(0)
    index = tile_columns(tile, TILE_BLOCKS)
    mask = index < n
    v = tl.load(v_ + index, mask=mask, other=0.0)
    largest = tl.zeros_like(v)
    h = load_listed(diagonals, scales, 0, steps, index, mask, tile, blocks, FORMAT, ALIGNED, SCALED, TILE_BLOCKS)
    t = 0
    while t < steps:
        h_next = load_listed(
            diagonals, scales, t + 1, steps, index, mask, tile, blocks, FORMAT, ALIGNED, SCALED, TILE_BLOCKS
        )
        factor = tl.load(coefficients + 2 * t) - tl.load(coefficients + 2 * t + 1) * h
        largest = tl.maximum(largest, tl.abs(factor))
        v = v * factor
        j, stop = tl.load(injection_begin + t), tl.load(injection_begin + t + 1)
        while j < stop:
            injected = load_listed(injections, injection_scales, j, j + 1, index, mask, tile, blocks,
                                   INJECTION_FORMAT, ALIGNED, INJECTION_SCALED, TILE_BLOCKS)  # fmt: skip
            v = v - tl.load(injection_factor + j) * injected
            j += 1
        h = h_next
        t += 1
    tl.store(v_ + index, v, mask=mask)
    wide = tl.where(mask, v, 0.0).to(tl.float64)
    tl.store(tile_sums + tile, tl.sum(tl.sum(wide * wide, axis=1), axis=0))
    tl.store(tile_factors + tile, tl.max(tl.max(tl.where(mask, largest, 0.0), axis=1), axis=0))


@triton.jit
def accumulate_prefix_kernel(prefix, h, scales, clamped, n, blocks, lr, shift, FORMAT: tl.constexpr,
                             TILE_BLOCKS: tl.constexpr):  # fmt: skip
    tile = tl.program_id(0)
    index = tile_columns(tile, TILE_BLOCKS)
    mask = index < n
    values = load_payload(h, index, mask, FORMAT, False)
    if scales is not None:
        values = values * load_scales(scales, tile, blocks, TILE_BLOCKS)
    decrement = lr * values + shift
    too_large = mask & (decrement > LARGEST_DECREMENT)
    decrement = tl.where(too_large, LARGEST_DECREMENT, decrement).to(tl.float64)
    factor = 1.0 - decrement
    # where the decrement is small, log(factor) alone would keep few of its digits
    rounding = (1.0 - factor) - decrement
    logarithm = (tl.log(factor) + rounding / factor).to(tl.float32)
    before = tl.load(prefix + index, mask=mask, other=0.0)
    tl.store(prefix + index, before + logarithm, mask=mask)
    tl.store(clamped + tile, tl.sum(tl.sum(too_large.to(tl.int64), axis=1), axis=0))


@triton.jit(do_not_specialize=["count"])
def propagate_by_prefix_kernel(v_, n, prefixes, signs, count, tile_sums, ALIGNED: tl.constexpr,
                               TILE_BLOCKS: tl.constexpr):  # fmt: skip
    tile = tl.program_id(0)
    index = tile_columns(tile, TILE_BLOCKS)
    mask = index < n
    exponent = tl.zeros(index.shape, tl.float32)
    j = 0
    while j < count:
        exponent += tl.load(signs + j) * load_payload(tl.load(prefixes + j), index, mask, "fp32", ALIGNED)
        j += 1
    v = tl.load(v_ + index, mask=mask, other=0.0) * tl.exp(exponent.to(tl.float64)).to(tl.float32)
    tl.store(v_ + index, v, mask=mask)
    wide = tl.where(mask, v, 0.0).to(tl.float64)
    tl.store(tile_sums + tile, tl.sum(tl.sum(wide * wide, axis=1), axis=0))


def damped_propagate_window_(window: PropagationWindow) -> tuple[Tensor, Tensor]:
    v, coefficients, injection_table = window.v, window.coefficients, window.injection_table
    diagonals, diagonal_scales = ([x[i] for x in window.diagonals] for i in range(2))
    injections, injection_scales = ([x[i] for x in window.injections] for i in range(2))
    n, steps, device = v.numel(), len(diagonals), v.device
    tile_sums = torch.zeros(max(1, tiles(n)), dtype=torch.float64, device=device)
    tile_factors = torch.zeros_like(tile_sums, dtype=torch.float32)
    if n:
        lr, damping = coefficients.unbind(1)
        table = torch.stack([1 - lr * damping, lr], dim=1).float()
        factors = (lr[injection_table[:, 0].long()] * injection_table[:, 1]).float()
        with on(device):
            propagate_kernel[(tiles(n),)](
                v, n, triton.cdiv(n, 256), steps, table.to(device), addresses(diagonals, device),
                addresses(diagonal_scales, device), addresses(injections, device), addresses(injection_scales, device),
                first_of_each_step(injection_table, steps).to(device), factors.to(device), tile_sums, tile_factors,
                FORMAT=format_of(diagonals), SCALED=scaled(diagonal_scales), INJECTION_FORMAT=format_of(injections),
                INJECTION_SCALED=scaled(injection_scales), ALIGNED=aligned([*diagonals, *injections], ()),
                TILE_BLOCKS=TILE_BLOCKS, **OPTIONS,
            )  # fmt: skip
    return tile_sums.sum(), tile_factors.max().double()


def prefix_accumulate_(prefix: Tensor, h: Tensor, scales: Tensor, lr: float, damping: float) -> Tensor:
    n = prefix.numel()
    clamped = torch.zeros(tiles(n), dtype=torch.int64, device=prefix.device)
    if n:
        with on(prefix.device):
            accumulate_prefix_kernel[(tiles(n),)](
                prefix, bits_of(h), present(scales), clamped, n, triton.cdiv(n, 256), lr, lr * damping,
                FORMAT=FORMATS[h.dtype], TILE_BLOCKS=TILE_BLOCKS, **OPTIONS,
            )  # fmt: skip
    return clamped.sum()


def prefix_propagate_(v: Tensor, prefixes: Sequence[Tensor], signs: Sequence[float]) -> Tensor:
    n, device = v.numel(), v.device
    tile_sums = torch.zeros(tiles(n), dtype=torch.float64, device=device)
    if n:
        with on(device):
            propagate_by_prefix_kernel[(tiles(n),)](
                v, n, addresses(prefixes, device), torch.tensor([*signs, 0.0], device=device), len(prefixes), tile_sums,
                ALIGNED=aligned(prefixes, ()), TILE_BLOCKS=TILE_BLOCKS, **OPTIONS,
            )  # fmt: skip
    return tile_sums.sum()
