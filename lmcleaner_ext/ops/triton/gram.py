"""Many vectors at once: their squares, inner products and linear combinations (the specification: reference/gram.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..encoding import EncodedVector
from .encoded_vector import decode
from .launch import (
    OPTIONS,
    TILE_BLOCKS,
    addresses,
    aligned,
    format_of,
    load_listed,
    load_payload,
    on,
    power_of_two,
    scaled,
    tile_columns,
    tiles,
)

GROUP = 16  # vectors: the smallest matrix product that Triton makes
COLUMNS = 64  # summed in float32, from there on in float64
STRIPS = 512  # programs that share the columns, at most


@triton.jit(do_not_specialize=["count"])
def squares_kernel(payloads, scales, n, blocks, count, tile_sums, FORMAT: tl.constexpr, SCALED: tl.constexpr,
                   ALIGNED: tl.constexpr, TILE_BLOCKS: tl.constexpr):  # fmt: skip
    tile, j = tl.program_id(0) // count, tl.program_id(0) % count
    index = tile_columns(tile, TILE_BLOCKS)
    x = load_listed(
        payloads, scales, j, count, index, index < n, tile, blocks, FORMAT, ALIGNED, SCALED, TILE_BLOCKS
    ).to(tl.float64)
    tl.store(tile_sums + tl.program_id(0), tl.sum(tl.sum(x * x, axis=1), axis=0))


@triton.jit
def _load_group(payloads, scales, first, count, column, n, FORMAT: tl.constexpr, SCALED: tl.constexpr,
                GROUP: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Elements [column, column + COLUMNS) of GROUP vectors: float32 [GROUP, COLUMNS]."""
    row = first + tl.arange(0, GROUP)
    index = column + tl.arange(0, COLUMNS).to(tl.int64)[None, :]
    address = tl.load(payloads + row, mask=row < count, other=0)[:, None]
    mask = (row < count)[:, None] & (index < n)
    x = load_payload(address, index, mask, FORMAT, False)
    if SCALED:
        byte = tl.load(scales + row, mask=row < count, other=0)[:, None].to(tl.pointer_type(tl.uint8))
        x = x * power_of_two(tl.load(byte + index // 256, mask=mask, other=127).to(tl.int32))
    return x


@triton.jit(do_not_specialize=["count", "strips"])
def gram_kernel(payloads, scales, n, count, strips, parts, FORMAT: tl.constexpr, SCALED: tl.constexpr,
                GROUP: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """parts[row group, column group, strip, GROUP, GROUP]"""
    strip, pair = tl.program_id(0) % strips, tl.program_id(0) // strips
    groups = tl.cdiv(count, GROUP)
    first_row, first_column = pair // groups * GROUP, pair % groups * GROUP
    sums = tl.zeros((GROUP, GROUP), tl.float64)
    column = strip.to(tl.int64) * COLUMNS
    while column < n:
        a = _load_group(payloads, scales, first_row, count, column, n, FORMAT, SCALED, GROUP, COLUMNS)
        b = _load_group(payloads, scales, first_column, count, column, n, FORMAT, SCALED, GROUP, COLUMNS)
        sums += tl.dot(a, tl.trans(b), input_precision="ieee").to(tl.float64)
        column += strips.to(tl.int64) * COLUMNS
    entry = tl.arange(0, GROUP)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    tl.store(parts + tl.program_id(0).to(tl.int64) * GROUP * GROUP + entry, sums)


@triton.jit(do_not_specialize=["count", "requests"])
def combine_kernel(out, payloads, scales, coefficients, n, blocks, count, requests, FORMAT: tl.constexpr,
                   SCALED: tl.constexpr, ALIGNED: tl.constexpr, TILE_BLOCKS: tl.constexpr):  # fmt: skip
    # the requests of a tile follow each other: all but the first find the vectors in the cache
    tile, request = tl.program_id(0) // requests, tl.program_id(0) % requests
    index = tile_columns(tile, TILE_BLOCKS)
    mask = index < n
    row = out + request.to(tl.int64) * n
    sums = tl.load(row + index, mask=mask, other=0.0)
    j = 0
    while j < count:
        x = load_listed(payloads, scales, j, count, index, mask, tile, blocks, FORMAT, ALIGNED, SCALED, TILE_BLOCKS)
        sums = tl.fma(tl.zeros_like(x) + tl.load(coefficients + request * count + j), x, sums)
        j += 1
    tl.store(row + index, sums, mask=mask)


def _one_format(vectors: Sequence[EncodedVector]) -> tuple[list[Tensor], list[Tensor]]:
    """Payloads and scales as they are, or decoded where their formats differ."""
    if len({(x.payload.dtype, x.scales.numel()) for x in vectors}) == 1:
        return [x.payload for x in vectors], [x.scales for x in vectors]
    plain = [torch.empty(x.payload.shape, dtype=torch.float32, device=x.payload.device) for x in vectors]
    for x, out in zip(vectors, plain, strict=True):
        decode(x, out)
    return plain, [x.scales[:0] for x in vectors]


def row_squares(vectors: Sequence[EncodedVector]) -> Tensor:
    payloads, scales = _one_format(vectors)
    n, count, device = payloads[0].numel(), len(payloads), payloads[0].device
    tile_sums = torch.zeros(tiles(n), count, dtype=torch.float64, device=device)
    if n:
        with on(device):
            squares_kernel[(tile_sums.numel(),)](
                addresses(payloads, device), addresses(scales, device), n, triton.cdiv(n, 256), count, tile_sums,
                FORMAT=format_of(payloads), SCALED=scaled(scales), ALIGNED=aligned(payloads, ()),
                TILE_BLOCKS=TILE_BLOCKS, **OPTIONS,
            )  # fmt: skip
    return tile_sums.sum(0)


def gram(vectors: Sequence[EncodedVector], rows: int) -> Tensor:
    payloads, scales = _one_format(vectors)
    n, count, device = payloads[0].numel(), len(payloads), payloads[0].device
    groups, strips = triton.cdiv(count, GROUP), max(1, min(STRIPS, triton.cdiv(n, COLUMNS)))
    parts = torch.zeros(groups, groups, strips, GROUP, GROUP, dtype=torch.float64, device=device)
    with on(device):
        gram_kernel[(groups * groups * strips,)](
            addresses(payloads, device), addresses(scales, device), n, count, strips, parts,
            FORMAT=format_of(payloads), SCALED=scaled(scales), GROUP=GROUP, COLUMNS=COLUMNS, **OPTIONS,
        )  # fmt: skip
    whole = parts.sum(2).transpose(1, 2).reshape(groups * GROUP, groups * GROUP)
    below = whole[:count, :count].tril()
    return (below + below.tril(-1).T)[:rows].contiguous()  # symmetric to the last bit


def combine_(out: Tensor, vectors: Sequence[EncodedVector], coefficients: Tensor) -> None:
    payloads, scales = _one_format(vectors)
    (requests, n), device = out.shape, out.device
    if not out.numel():
        return
    with on(device):
        combine_kernel[(tiles(n) * requests,)](
            out, addresses(payloads, device), addresses(scales, device), coefficients.to(device, torch.float32).contiguous(),
            n, triton.cdiv(n, 256), len(payloads), requests, FORMAT=format_of(payloads), SCALED=scaled(scales),
            ALIGNED=aligned([out, *payloads], ()), TILE_BLOCKS=TILE_BLOCKS, **OPTIONS,
        )  # fmt: skip
