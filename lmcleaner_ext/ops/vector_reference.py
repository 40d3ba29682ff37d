"""The ops of vector.py in plain torch: the specification that the other backends are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference

SMALLEST_FACTOR = 2.0**-24
"""Of the prefix form. Below, 1 - lr (h + damping) in float32 is the rounding of its own subtraction."""


def _decoded(payload: Tensor, scales: Tensor, like: Tensor) -> Tensor:
    out = torch.zeros_like(like)
    if payload.numel():  # an empty payload stands for zeros
        reference.decode(payload, scales, out)
    return out


def damped_propagate_window_(
    v: Tensor,
    diagonals: Sequence[Tensor],
    diagonal_scales: Sequence[Tensor],
    coefficients: Tensor,
    injections: Sequence[Tensor],
    injection_scales: Sequence[Tensor],
    injection_table: Tensor,
) -> tuple[Tensor, Tensor]:
    """v <- (1 - lr (h + damping)) v - lr * sum of weight * injection, step by step."""
    largest = torch.zeros((), dtype=v.dtype, device=v.device)
    table = [(int(step), weight) for step, weight in injection_table.tolist()]
    for t, (lr, damping) in enumerate(coefficients.tolist()):
        factor = (1 - lr * damping) - lr * _decoded(diagonals[t], diagonal_scales[t], v)
        v *= factor
        if v.numel():
            largest = torch.maximum(largest, factor.abs().amax())
        for index, (step, weight) in enumerate(table):
            if step == t:
                v -= lr * weight * _decoded(injections[index], injection_scales[index], v)
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
