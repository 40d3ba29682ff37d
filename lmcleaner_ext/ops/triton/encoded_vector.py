"""encode, encode_difference_, decode and dot (the format: ops/encoding.py, the specification: reference/encoded_vector.py)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..encoding import EncodedVector, block_count, payload_dtype, scale_count
from .launch import (
    FORMATS,
    OPTIONS,
    TILE_BLOCKS,
    bits_of,
    load_payload,
    load_scales,
    on,
    power_of_two,
    present,
    tile_columns,
    tiles,
    value_of_fp8,
)

SIGNIFICANT_BITS = {"fp16": 11, "bf16": 8, "int8": 7, "fp8": 4, "fp32": 24}
# A float32 with these bits or more rounds to 2^128, which float32 does not have, or is not finite.
OVERFLOW_BITS = {name: 0x7F800000 - (0x00800000 >> bits) for name, bits in SIGNIFICANT_BITS.items()}
# Added and subtracted again, it rounds what is under 2^22 to an integer, half to even.
ROUNDER = tl.constexpr(1.5 * 2.0**23)


@triton.jit
def _store_encoded(x, index, mask, tile, payload, scales, blocks, overflowed, FORMAT: tl.constexpr,
                   OVERFLOW: tl.constexpr, TILE_BLOCKS: tl.constexpr):  # fmt: skip
    """Write the payload and scales of x [TILE_BLOCKS, 256]; returns what they decode to. Raises the flag `overflowed`."""
    magnitude = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # ordered like the magnitudes, NaN above infinity
    largest = tl.max(magnitude, axis=1)
    tl.store(overflowed, 1, mask=tl.max(largest, axis=0) >= OVERFLOW)
    if FORMAT == "fp32":
        tl.store(payload + index, x, mask=mask)
        return x
    elif FORMAT == "bf16":
        bits = x.to(tl.uint32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # round to nearest even
        tl.store(payload + index, upper.to(tl.uint16), mask=mask)
        return (upper << 16).to(tl.float32, bitcast=True)
    else:
        # int8 has no 128: what would round to it belongs to the next exponent
        carry: tl.constexpr = 0x10000 if FORMAT == "int8" else 0
        top: tl.constexpr = 14 if FORMAT == "fp16" else (6 if FORMAT == "int8" else 7)
        exponent = ((largest + carry) >> 23) - top
        exponent = tl.where(largest == 0, 127, tl.minimum(tl.maximum(exponent, 0), 254))
        row = tile.to(tl.int64) * TILE_BLOCKS + tl.arange(0, TILE_BLOCKS)
        tl.store(scales + row, exponent.to(tl.uint8), mask=row < blocks)
        scaled = x * power_of_two(254 - exponent)[:, None]
        if FORMAT == "fp16":
            encoded = scaled.to(tl.float16)
            values = encoded.to(tl.float32)
        elif FORMAT == "int8":
            values = (scaled + ROUNDER) - ROUNDER
            encoded = values.to(tl.int8)
        else:
            encoded = _fp8_of_value(scaled)
            values = value_of_fp8(encoded)
        tl.store(payload + index, encoded, mask=mask)
        return values * power_of_two(exponent)[:, None]


@triton.jit
def _fp8_of_value(x):
    """e4m3 of |x| <= 2^8, rounded to nearest even. Under 2^-6 the codes count steps of 2^-9."""
    bits = x.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20).to(tl.int32) - (120 << 3)
    small = ((tl.abs(x) * 512.0 + ROUNDER) - ROUNDER).to(tl.int32)
    code = tl.where(tl.abs(x) < 0.015625, small, normal)
    return (code | ((bits >> 24) & 0x80).to(tl.int32)).to(tl.uint8)


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
    return (
        torch.empty_like(like, dtype=payload_dtype(dtype)),
        torch.empty(scale_count(like.numel(), dtype), dtype=torch.uint8, device=like.device),
        torch.zeros(1, dtype=torch.int32, device=like.device),
    )


def _encode(kernel, inputs: tuple[Tensor, ...], dtype: str) -> tuple[Tensor, Tensor, bool]:
    x = inputs[0]
    n, (payload, scales, overflowed) = x.numel(), _new_encoded(x, dtype)
    if n:
        with on(x.device):
            kernel[(tiles(n),)](
                *inputs, bits_of(payload), present(scales), overflowed, n, block_count(n), FORMAT=dtype,
                OVERFLOW=OVERFLOW_BITS[dtype], TILE_BLOCKS=TILE_BLOCKS, **OPTIONS,
            )  # fmt: skip
    return payload, scales, not bool(overflowed)


def encode(x: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    return _encode(encode_kernel, (x,), dtype)


def encode_difference_(theta: Tensor, shadow: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    return _encode(encode_difference_kernel, (theta, shadow), dtype)


def decode(vector: EncodedVector, out: Tensor) -> None:
    n = out.numel()
    if n:
        with on(out.device):
            decode_kernel[(tiles(n),)](
                bits_of(vector.payload), present(vector.scales), out, n, block_count(n), FORMAT=FORMATS[vector.payload.dtype],
                TILE_BLOCKS=TILE_BLOCKS, **OPTIONS,
            )  # fmt: skip


def dot(a: EncodedVector, b: EncodedVector) -> Tensor:
    n, device = a.payload.numel(), a.payload.device
    tile_sums = torch.empty(tiles(n), dtype=torch.float64, device=device)
    if n:
        with on(device):
            dot_kernel[(tiles(n),)](
                bits_of(a.payload), present(a.scales), bits_of(b.payload), present(b.scales), tile_sums, n, block_count(n),
                FORMAT_A=FORMATS[a.payload.dtype], FORMAT_B=FORMATS[b.payload.dtype], TILE_BLOCKS=TILE_BLOCKS, **OPTIONS,
            )  # fmt: skip
    return tile_sums.sum()
