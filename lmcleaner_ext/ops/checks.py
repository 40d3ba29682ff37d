"""What the ops accept. A call that breaks a rule is refused before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigurationError
from .coefficients import COLUMNS, STATE_COUNTS
from .encoding import PAYLOAD_DTYPES, SCALED, block_count

ARITHMETIC = (torch.float32, torch.float64)
PAYLOADS = tuple(PAYLOAD_DTYPES.values())


def vector(name: str, x: Tensor, n: int | None = None, like: Tensor | None = None) -> None:
    """A contiguous float32 or float64 vector [n], with the dtype and device of ``like``."""
    if x.dim() != 1 or not x.is_contiguous() or (n is not None and x.shape[0] != n):
        wanted = "[n]" if n is None else f"[{n}]"
        raise ConfigurationError(
            f"{name} must be a contiguous vector {wanted}; found shape {list(x.shape)}, strides {list(x.stride())}"
        )
    if x.dtype not in ARITHMETIC or (like is not None and x.dtype != like.dtype):
        wanted = "float32 or float64" if like is None else str(like.dtype)
        raise ConfigurationError(f"{name} must be {wanted}; found {x.dtype}")
    if like is not None and x.device != like.device:
        raise ConfigurationError(f"{name} is on {x.device}, the other vectors on {like.device}")


def encoded(name: str, payload: Tensor, scales: Tensor, n: int, device: torch.device) -> None:
    """An encoded vector of ``n`` elements (encoding.py)."""
    if payload.dim() != 1 or not payload.is_contiguous() or payload.shape[0] != n or payload.dtype not in PAYLOADS:
        raise ConfigurationError(
            f"the payload of {name} must be a contiguous vector [{n}] of {', '.join(map(str, PAYLOADS))}; "
            f"found {payload.dtype} {list(payload.shape)}, strides {list(payload.stride())}"
        )
    blocks = scales.numel()
    if blocks and payload.dtype not in SCALED:
        raise ConfigurationError(
            f"{name}: only {', '.join(map(str, SCALED))} payloads have scales; found {payload.dtype} with {blocks}"
        )
    if blocks and (scales.dtype != torch.uint8 or not scales.is_contiguous() or blocks != block_count(n)):
        raise ConfigurationError(
            f"the scales of {name} must be a contiguous uint8 vector [{block_count(n)}], or empty; "
            f"found {scales.dtype} {list(scales.shape)}"
        )
    if payload.device != device or (blocks and scales.device != device):
        raise ConfigurationError(f"{name} is on {payload.device}, the other vectors on {device}")


def table(name: str, x: Tensor, dtype: torch.dtype, columns: int, dim: int) -> None:
    if x.dtype != dtype or x.dim() != dim or x.shape[-1] != columns or not x.is_contiguous() or x.device.type != "cpu":
        raise ConfigurationError(
            f"{name} must be a contiguous {dtype} table on the CPU with {dim} dimensions, the last of {columns}; "
            f"found {x.dtype} {list(x.shape)} on {x.device}"
        )


def replay(
    delta: Tensor,
    theta: Tensor | None,
    state: Sequence[Tensor],
    counterfactual: Sequence[Tensor],
    coefficients: Tensor,
    segments: Tensor,
    gradients: Sequence[Tensor],
    gradient_scales: Sequence[Tensor],
    injections: Sequence[Tensor],
    injection_scales: Sequence[Tensor],
    injection_table: Tensor,
    diagonal: Tensor | None,
    rule: str,
    lead: int,
) -> None:
    """Every argument of ``optimizer_replay_window_``."""
    vector("delta", delta)
    n, steps = delta.shape[0], len(gradients)
    if rule not in STATE_COUNTS:
        raise ConfigurationError(f"unknown rule {rule!r}; expected one of {', '.join(STATE_COUNTS)}")
    if len(state) not in STATE_COUNTS[rule] or len(counterfactual) != len(state):
        raise ConfigurationError(
            f"rule {rule!r} takes {' or '.join(map(str, STATE_COUNTS[rule]))} state vectors and as many counterfactual "
            f"ones; found {len(state)} and {len(counterfactual)}"
        )
    if theta is not None:
        vector("theta", theta, n, delta)
    if diagonal is not None:
        vector("diagonal", diagonal, n, delta)
    for name, vectors in (("state", state), ("counterfactual", counterfactual)):
        for index, x in enumerate(vectors):
            if x.numel():  # empty: zeros, not wanted afterwards
                vector(f"{name}[{index}]", x, n, delta)

    table("coefficients", coefficients, torch.float64, COLUMNS, 3)
    table("segments", segments, torch.int64, 3, 2)
    table("injection_table", injection_table, torch.float64, 2, 2)
    classes = coefficients.shape[0]
    if coefficients.shape[1] != steps or len(gradient_scales) != steps or not 0 <= lead <= steps:
        raise ConfigurationError(
            f"{steps} gradients need as many scales and steps of coefficients, and 0 <= lead <= {steps}; found "
            f"{len(gradient_scales)} scales, coefficients {list(coefficients.shape)}, lead {lead}"
        )
    end_before = 0
    for begin, end, parameter_class in segments.tolist():
        if not end_before <= begin <= end <= n or not 0 <= parameter_class < classes:
            raise ConfigurationError(
                f"segments must be sorted and disjoint in [0, {n}] with a class under {classes}; "
                f"found ({begin}, {end}, {parameter_class}) after {end_before}"
            )
        end_before = end
    injections_of(injections, injection_scales, injection_table, steps)

    encoded_list("gradients", gradients, gradient_scales, n, delta.device)
    encoded_list("injections", injections, injection_scales, n, delta.device)


def injections_of(payloads: Sequence[Tensor], scales: Sequence[Tensor], injection_table: Tensor, steps: int) -> None:
    """As many payloads and scales as rows (step, weight), sorted by step."""
    if not len(payloads) == len(scales) == injection_table.shape[0]:
        raise ConfigurationError(
            f"found {len(payloads)} injections, {len(scales)} scales and "
            f"{injection_table.shape[0]} rows of injection_table; these must be equal"
        )
    step_before = 0.0
    for step, _ in injection_table.tolist():
        if not step_before <= step < steps or step != int(step):
            raise ConfigurationError(
                f"the steps of injection_table must be sorted integers in [0, {steps}); found {step} after {step_before}"
            )
        step_before = step


def encoded_list(name: str, payloads: Sequence[Tensor], scales: Sequence[Tensor], n: int, device: torch.device) -> None:
    """Encoded vectors of one format; an empty payload stands for zeros.

    The engine calls the op once per panel with some sixty tensors: what is like the first one is passed quickly.
    """
    dtype, shape, blocks = None, (n,), 0
    for index, (payload, exponents) in enumerate(zip(payloads, scales, strict=True)):
        if (
            payload.dtype is dtype
            and payload.shape == shape
            and exponents.numel() == blocks
            and payload.device == device
            and payload.is_contiguous()
            and (not blocks or (exponents.dtype is torch.uint8 and exponents.is_contiguous()))
            and exponents.device == device
        ):
            continue
        if payload.numel() == 0:
            continue
        encoded(f"{name}[{index}]", payload, exponents, n, device)
        if dtype is not None and (payload.dtype, exponents.numel()) != (dtype, blocks):
            raise ConfigurationError(
                f"all {name} must have one format; {name}[{index}] is {payload.dtype} with {exponents.numel()} scales, "
                f"those before it {dtype} with {blocks}"
            )
        dtype, blocks = payload.dtype, exponents.numel()
