"""The running average of the curvature's diagonal in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..encoding import BLOCK, EXPONENT_BIAS, EncodedVector, block_count
from .encoded_vector import block_exponents, decoded, encode, power_of_two

_MASK = (1 << 32) - 1


def _block_keys(seed: int, blocks: int) -> list[int]:
    """splitmix64 of (seed, block), its upper half."""
    keys = []
    for block in range(blocks):
        x = (seed * 0x9E3779B97F4A7C15 + block) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        keys.append((x ^ (x >> 31)) >> 32)
    return keys


def _round_by_chance(x: Tensor, seed: int) -> Tensor:
    """float32 to eleven bits, upwards with the probability of what is cut off; "lowbias32" makes the numbers."""
    blocks = block_count(x.numel())
    keys = torch.tensor(_block_keys(seed, blocks), dtype=torch.int64, device=x.device).repeat_interleave(BLOCK)
    index = torch.arange(BLOCK, device=x.device).repeat(blocks)
    number = (keys + index * 0x9E3779B1) & _MASK
    number = ((number ^ (number >> 16)) * 0x7FEB352D) & _MASK
    number = (number ^ (number >> 15)) & _MASK
    number = ((number & 0xFFFF) * 0x846CA68B + (((number >> 16) * 0x846CA68B) << 16)) & _MASK  # within 63 bits
    number = (number ^ (number >> 16))[: x.numel()]
    bits = x.float().view(torch.int32).to(torch.int64) & _MASK
    bits = (bits + (number & 0x1FFF)) & ~0x1FFF
    return (bits & _MASK).to(torch.int32).view(torch.float32)


def diag_hessian_update_(
    h: EncodedVector, a: Tensor, b: Tensor, beta: float, weight: float, seed: int | None
) -> Tensor:
    """h <- beta h + weight a b, encoded in block-scaled fp16 again; whether every element fits."""
    value = beta * decoded(h, a) + weight * (a * b)
    if seed is None or not bool(torch.isfinite(value).all()):
        payload, exponents, finite = encode(value, "fp16")
    else:
        exponents = block_exponents(value, torch.float16)
        scale = power_of_two(EXPONENT_BIAS - exponents).to(value.dtype)
        payload = _round_by_chance(value * scale.repeat_interleave(BLOCK)[: value.numel()], seed).to(torch.float16)
        exponents, finite = exponents.to(torch.uint8), True
    h.payload.copy_(payload)
    h.scales.copy_(exponents)
    return torch.tensor(finite, device=a.device)
