"""The damped propagation (the specification: reference/damped_propagation.py)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..damped_propagation import PropagationWindow
from .launch import (
    OPTIONS,
    TILE_BLOCKS,
    addresses,
    aligned,
    first_of_each_step,
    format_of,
    load_listed,
    on,
    scaled,
    tile_columns,
    tiles,
)


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
