"""The ops of vector.py in plain torch: the specification that the other backends are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .damped_propagation import PropagationWindow
from .encoding import BLOCK, EXPONENT_BIAS, block_count

SMALLEST_FACTOR = 2.0**-24
"""Of the prefix form. Below, 1 - lr (h + damping) in float32 is the rounding of its own subtraction."""


def _decoded(payload: Tensor, scales: Tensor, like: Tensor) -> Tensor:
    out = torch.zeros_like(like)
    if payload.numel():  # an empty payload stands for zeros
        reference.decode(payload, scales, out)
    return out


def damped_propagate_window_(window: PropagationWindow) -> tuple[Tensor, Tensor]:
    """v <- (1 - lr (h + damping)) v - lr * sum of weight * injection, step by step."""
    v = window.v
    largest = torch.zeros((), dtype=v.dtype, device=v.device)
    table = [(int(step), weight) for step, weight in window.injection_table.tolist()]
    for t, (lr, damping) in enumerate(window.coefficients.tolist()):
        factor = (1 - lr * damping) - lr * _decoded(*window.diagonals[t], v)
        v *= factor
        if v.numel():
            largest = torch.maximum(largest, factor.abs().amax())
        for vector, (step, weight) in zip(window.injections, table, strict=True):
            if step == t:
                v -= lr * weight * _decoded(*vector, v)
    return v.double().square().sum(), largest.double()


def prefix_accumulate_(prefix: Tensor, h: Tensor, scales: Tensor, lr: float, damping: float) -> Tensor:
    """prefix += log(max(1 - lr (h + damping), 2^-24)); how many were clamped."""
    decrement = lr * _decoded(h, scales, prefix) + lr * damping
    prefix += torch.log1p(-decrement.clamp(max=1 - SMALLEST_FACTOR))
    return (decrement > 1 - SMALLEST_FACTOR).sum()


def prefix_propagate_(v: Tensor, prefixes: Sequence[Tensor], signs: Sequence[float]) -> Tensor:
    """v *= exp(sum of sign * prefix)."""
    exponent = torch.zeros_like(v)
    for prefix, sign in zip(prefixes, signs, strict=True):
        exponent += sign * prefix
    v *= exponent.exp()
    return v.double().square().sum()


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
    h: Tensor, scales: Tensor, a: Tensor, b: Tensor, beta: float, weight: float, seed: int | None
) -> Tensor:
    """h <- beta h + weight a b, encoded in block-scaled fp16 again; whether every element fits."""
    value = beta * _decoded(h, scales, a) + weight * (a * b)
    if seed is None or not bool(torch.isfinite(value).all()):
        payload, exponents, finite = reference.encode(value, "fp16")
    else:
        exponents = reference.block_exponents(value, torch.float16)
        scale = reference.power_of_two(EXPONENT_BIAS - exponents).to(value.dtype)
        payload = _round_by_chance(value * scale.repeat_interleave(BLOCK)[: value.numel()], seed).to(torch.float16)
        exponents, finite = exponents.to(torch.uint8), True
    h.copy_(payload)
    scales.copy_(exponents)
    return torch.tensor(finite, device=h.device)


def _double(payload: Tensor, scales: Tensor) -> Tensor:
    out = torch.empty(payload.shape, dtype=torch.float64, device=payload.device)
    reference.decode(payload, scales, out)
    return out


def row_squares(payloads: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
    """The sum of squares of each vector, float64 [K]."""
    squares = [_double(x, s).square().sum() for x, s in zip(payloads, scales, strict=True)]
    return torch.stack(squares)


def gram(payloads: Sequence[Tensor], scales: Sequence[Tensor], rows: int) -> Tensor:
    """The inner product of each of the first `rows` vectors with each of all K, float64 [rows, K]."""
    vectors = [_double(x, s) for x, s in zip(payloads, scales, strict=True)]
    return torch.stack([torch.stack([torch.dot(a, b) for b in vectors]) for a in vectors[:rows]])


def combine_(out: Tensor, payloads: Sequence[Tensor], scales: Sequence[Tensor], coefficients: Tensor) -> None:
    """out [R, n] += coefficients [R, K] times the K vectors."""
    for k, (payload, exponents) in enumerate(zip(payloads, scales, strict=True)):
        vector = torch.empty_like(out[0])
        reference.decode(payload, exponents, vector)
        out += coefficients[:, k, None].to(out) * vector
