"""encode, encode_difference_, decode and dot (the format: ops/encoding.py, the specification: ops/reference.py)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..encoding import block_count, payload_dtype
from .launch import (
    FORMATS,
    OPTIONS,
    TILE_BLOCKS,
    load_payload,
    load_scales,
    on,
    power_of_two,
    present,
    tile_columns,
    tiles,
)

# A float32 with these bits or more rounds to 2^128, which float32 does not have: with fp16's 11 bits, bf16's 8, and fp32.
OVERFLOW_BITS = {"fp16": 0x7F7FF000, "bf16": 0x7F7F8000, "fp32": 0x7F800000}


@triton.jit
def _store_encoded(x, index, mask, tile, payload, scales, blocks, overflowed, FORMAT: tl.constexpr,
                   OVERFLOW: tl.constexpr, TILE_BLOCKS: tl.constexpr):  # fmt: skip
    """Write the payload and scales of x [TILE_BLOCKS, 256]; returns what they decode to. Raises the flag `overflowed`."""
    magnitude = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # ordered like the magnitudes, NaN above infinity
    largest = tl.max(magnitude, axis=1)
    tl.store(overflowed, 1, mask=tl.max(largest, axis=0) >= OVERFLOW)
    if FORMAT == "fp16":
        exponent = tl.minimum(tl.maximum((largest >> 23) - 14, 0), 254)
        exponent = tl.where(largest == 0, 127, exponent)
        row = tile.to(tl.int64) * TILE_BLOCKS + tl.arange(0, TILE_BLOCKS)
        tl.store(scales + row, exponent.to(tl.uint8), mask=row < blocks)
        encoded = (x * power_of_two(254 - exponent)[:, None]).to(tl.float16)
        tl.store(payload + index, encoded, mask=mask)
        decoded = encoded.to(tl.float32) * power_of_two(exponent)[:, None]
    elif FORMAT == "bf16":
        bits = x.to(tl.uint32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # round to nearest even
        tl.store(payload + index, upper.to(tl.uint16), mask=mask)
        decoded = (upper << 16).to(tl.float32, bitcast=True)
    else:
        tl.store(payload + index, x, mask=mask)
        decoded = x
    return decoded


@triton.jit
def encode_kernel(x, payload, scales, overflowed, n, blocks, FORMAT: tl.constexpr, OVERFLOW: tl.constexpr,
                  TILE_BLOCKS: tl.constexpr):  # fmt: skip
    tile = tl.program_id(0)
    index = tile_columns(tile, TILE_BLOCKS)
    mask = index < n
    values = tl.load(x + index, mask=mask, other=0.0)
    _store_encoded(values, index, mask, tile, payload, scales, blocks, overflowed, FORMAT, OVERFLOW, TILE_BLOCKS)


@triton.jit
def encode_difference_kernel(theta, shadow, payload, scales, overflowed, n, blocks, FORMAT: tl.constexpr,
                             OVERFLOW: tl.constexpr, TILE_BLOCKS: tl.constexpr):  # fmt: skip
    tile = tl.program_id(0)
    index = tile_columns(tile, TILE_BLOCKS)
    mask = index < n
    before = tl.load(shadow + index, mask=mask, other=0.0)
    difference = tl.load(theta + index, mask=mask, other=0.0) - before
    decoded = _store_encoded(
        difference, index, mask, tile, payload, scales, blocks, overflowed, FORMAT, OVERFLOW, TILE_BLOCKS
    )
    tl.store(shadow + index, before + decoded, mask=mask)


@triton.jit
def decode_kernel(payload, scales, out, n, blocks, FORMAT: tl.constexpr, TILE_BLOCKS: tl.constexpr):
    tile = tl.program_id(0)
    index = tile_columns(tile, TILE_BLOCKS)
    mask = index < n
    values = load_payload(payload, index, mask, FORMAT, False)
    if scales is not None:
        values = values * load_scales(scales, tile, blocks, TILE_BLOCKS)
    tl.store(out + index, values, mask=mask)


@triton.jit
def dot_kernel(payload_a, scales_a, payload_b, scales_b, tile_sums, n, blocks, FORMAT_A: tl.constexpr,
               FORMAT_B: tl.constexpr, TILE_BLOCKS: tl.constexpr):  # fmt: skip
    tile = tl.program_id(0)
    index = tile_columns(tile, TILE_BLOCKS)
    mask = index < n
    a = load_payload(payload_a, index, mask, FORMAT_A, False)
    b = load_payload(payload_b, index, mask, FORMAT_B, False)
    if scales_a is not None:
        a = a * load_scales(scales_a, tile, blocks, TILE_BLOCKS)
    if scales_b is not None:
        b = b * load_scales(scales_b, tile, blocks, TILE_BLOCKS)
    products = a.to(tl.float64) * b.to(tl.float64)
    tl.store(tile_sums + tile, tl.sum(tl.sum(products, axis=1), axis=0))


def _new_encoded(like: Tensor, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Payload, scales and the flag that the kernel raises."""
    target = payload_dtype(dtype)
    blocks = block_count(like.numel()) if target == torch.float16 else 0
    return (
        torch.empty_like(like, dtype=target),
        torch.empty(blocks, dtype=torch.uint8, device=like.device),
        torch.zeros(1, dtype=torch.int32, device=like.device),
    )


def _bits(payload: Tensor) -> Tensor:
    """bfloat16 is handled as its bits."""
    return payload.view(torch.uint16) if payload.dtype == torch.bfloat16 else payload


def _encode(kernel, inputs: tuple[Tensor, ...], dtype: str) -> tuple[Tensor, Tensor, bool]:
    x = inputs[0]
    n, (payload, scales, overflowed) = x.numel(), _new_encoded(x, dtype)
    if n:
        with on(x.device):
            kernel[(tiles(n),)](
                *inputs, _bits(payload), present(scales), overflowed, n, block_count(n), FORMAT=dtype,
                OVERFLOW=OVERFLOW_BITS[dtype], TILE_BLOCKS=TILE_BLOCKS, **OPTIONS,
            )  # fmt: skip
    return payload, scales, not bool(overflowed)


def encode(x: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    return _encode(encode_kernel, (x,), dtype)


def encode_difference_(theta: Tensor, shadow: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    return _encode(encode_difference_kernel, (theta, shadow), dtype)


def decode(payload: Tensor, scales: Tensor, out: Tensor) -> None:
    n = out.numel()
    if n:
        with on(out.device):
            decode_kernel[(tiles(n),)](
                _bits(payload), present(scales), out, n, block_count(n), FORMAT=FORMATS[payload.dtype],
                TILE_BLOCKS=TILE_BLOCKS, **OPTIONS,
            )  # fmt: skip


def dot(payload_a: Tensor, scales_a: Tensor, payload_b: Tensor, scales_b: Tensor) -> Tensor:
    n = payload_a.numel()
    tile_sums = torch.empty(tiles(n), dtype=torch.float64, device=payload_a.device)
    if n:
        with on(payload_a.device):
            dot_kernel[(tiles(n),)](
                _bits(payload_a), present(scales_a), _bits(payload_b), present(scales_b), tile_sums, n, block_count(n),
                FORMAT_A=FORMATS[payload_a.dtype], FORMAT_B=FORMATS[payload_b.dtype], TILE_BLOCKS=TILE_BLOCKS, **OPTIONS,
            )  # fmt: skip
    return tile_sums.sum()
