"""The ops of vector.py as ``torch.ops.lmcleaner.*``: schemas, what they accept, fake kernels for tracing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigurationError
from . import checks, dispatch
from .library import _arithmetic, _fake, _kernel, _library

_SCHEMAS = (
    "damped_propagate_window_(Tensor(a!) v, Tensor[] diagonals, Tensor[] diagonal_scales, Tensor coefficients, "
    "Tensor[] injections, Tensor[] injection_scales, Tensor injection_table) -> (Tensor, Tensor)",
    "prefix_accumulate_(Tensor(a!) prefix, Tensor h, Tensor scales, float lr, float damping) -> Tensor",
    "prefix_propagate_(Tensor(a!) v, Tensor[] prefixes, float[] signs) -> Tensor",
)
for _schema in _SCHEMAS:
    _library.define(_schema)


@_kernel
def damped_propagate_window_(
    v: Tensor,
    diagonals: Sequence[Tensor],
    diagonal_scales: Sequence[Tensor],
    coefficients: Tensor,
    injections: Sequence[Tensor],
    injection_scales: Sequence[Tensor],
    injection_table: Tensor,
) -> tuple[Tensor, Tensor]:
    checks.vector("v", v)
    checks.table("coefficients", coefficients, torch.float64, 2, 2)
    checks.table("injection_table", injection_table, torch.float64, 2, 2)
    steps = len(diagonals)
    if not steps == len(diagonal_scales) == coefficients.shape[0]:
        raise ConfigurationError(
            f"{steps} diagonals need as many scales and rows of coefficients; found {len(diagonal_scales)} scales, "
            f"coefficients {list(coefficients.shape)}"
        )
    checks.injections_of(injections, injection_scales, injection_table, steps)
    checks.encoded_list("diagonals", diagonals, diagonal_scales, v.shape[0], v.device)
    checks.encoded_list("injections", injections, injection_scales, v.shape[0], v.device)
    compute = dispatch.select("damped_propagate_window_", v.device, _arithmetic(v, *diagonals, *injections))
    squares, largest = compute(
        v, diagonals, diagonal_scales, coefficients, injections, injection_scales, injection_table
    )
    return squares, torch.where(squares.isnan(), squares, largest)  # no backend's maximum need see a NaN


@_kernel
def prefix_accumulate_(prefix: Tensor, h: Tensor, scales: Tensor, lr: float, damping: float) -> Tensor:
    checks.vector("prefix", prefix)
    checks.encoded("h", h, scales, prefix.shape[0], prefix.device)
    compute = dispatch.select("prefix_accumulate_", prefix.device, _arithmetic(prefix, h))
    return compute(prefix, h, scales, lr, damping)


@_kernel
def prefix_propagate_(v: Tensor, prefixes: Sequence[Tensor], signs: Sequence[float]) -> Tensor:
    checks.vector("v", v)
    if len(prefixes) != len(signs):
        raise ConfigurationError(f"found {len(prefixes)} prefixes and {len(signs)} signs; these must be equal")
    for index, prefix in enumerate(prefixes):
        checks.vector(f"prefixes[{index}]", prefix, v.shape[0], v)
    return dispatch.select("prefix_propagate_", v.device, v.dtype)(v, prefixes, signs)


@_fake
def fake_damped_propagate_window_(
    v: Tensor,
    diagonals: Sequence[Tensor],
    diagonal_scales: Sequence[Tensor],
    coefficients: Tensor,
    injections: Sequence[Tensor],
    injection_scales: Sequence[Tensor],
    injection_table: Tensor,
) -> tuple[Tensor, Tensor]:
    return v.new_empty((), dtype=torch.float64), v.new_empty((), dtype=torch.float64)


@_fake
def fake_prefix_accumulate_(prefix: Tensor, h: Tensor, scales: Tensor, lr: float, damping: float) -> Tensor:
    return prefix.new_empty((), dtype=torch.int64)


@_fake
def fake_prefix_propagate_(v: Tensor, prefixes: Sequence[Tensor], signs: Sequence[float]) -> Tensor:
    return v.new_empty((), dtype=torch.float64)
