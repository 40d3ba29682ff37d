"""What the ops accept. A call that breaks a rule is refused before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigurationError
from .encoding import PAYLOAD_DTYPES, SCALED, EncodedVector, block_count

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


def rows(name: str, x: Tensor, shape: torch.Size, like: Tensor) -> None:
    """One vector per request, [requests, n]: each contiguous, and apart from the others."""
    requests, n = shape
    apart = requests == 1 or n == 0 or (requests > 1 and x.stride(0) >= n)
    if x.shape != shape or not apart or not x[0].is_contiguous():
        raise ConfigurationError(
            f"{name} must have a contiguous row for each request, one or more, [{requests}, {n}]; found shape {list(x.shape)}, "
            f"strides {list(x.stride())}"
        )
    vector(f"{name}[0]", x[0], n, like)


def encoded(name: str, vector: EncodedVector, n: int, device: torch.device) -> None:
    """An encoded vector of ``n`` elements (encoding.py)."""
    payload, scales = vector
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


def injections_of(injections: Sequence[EncodedVector], injection_table: Tensor, steps: int, requests: int = 1) -> None:
    """As many vectors as rows (step, weight[, request]), sorted by request and then by step."""
    if len(injections) != injection_table.shape[0]:
        raise ConfigurationError(
            f"found {len(injections)} injections and {injection_table.shape[0]} rows of injection_table; these must be equal"
        )
    before = (0.0, 0.0)
    for step, _, *others in injection_table.tolist():
        request = others[0] if others else 0.0
        whole = step == int(step) and request == int(request)
        if not before <= (request, step) or not 0 <= step < steps or not request < requests or not whole:
            raise ConfigurationError(
                f"the rows of injection_table must be sorted by request in [0, {requests}) and then by step in [0, {steps}), both "
                f"integers; found request {request} and step {step} after {before}"
            )
        before = (request, step)


def encoded_list(name: str, vectors: Sequence[EncodedVector], n: int, device: torch.device) -> None:
    """Encoded vectors of one format; an empty payload stands for zeros.

    The engine calls the op once per panel with some sixty tensors: what is like the first one is passed quickly.
    """
    dtype, shape, blocks = None, (n,), 0
    for index, (payload, exponents) in enumerate(vectors):
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
        encoded(f"{name}[{index}]", EncodedVector(payload, exponents), n, device)
        if dtype is not None and (payload.dtype, exponents.numel()) != (dtype, blocks):
            raise ConfigurationError(
                f"all {name} must have one format; {name}[{index}] is {payload.dtype} with {exponents.numel()} scales, "
                f"those before it {dtype} with {blocks}"
            )
        dtype, blocks = payload.dtype, exponents.numel()
