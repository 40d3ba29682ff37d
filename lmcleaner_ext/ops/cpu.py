"""Backend "cpu": the kernels of csrc/cpu, in float32, on the threads that torch is allowed (torch.set_num_threads).

The arguments have been checked by checks.py; here they become pointers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from .encoding import payload_dtype, scale_count

FORMATS: dict[torch.dtype, int] = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.int8: 3,
    torch.float8_e4m3fn: 4,
}
RULES: dict[str, int] = {"sgd": 0, "update": 1, "adam": 2, "adamw": 3}
DEVICES = ("cpu",)


def unavailable_reason() -> str | None:
    return None


def _address(x: Tensor | None) -> int:
    """The data pointer; 0 (null) for an absent or an empty tensor."""
    return 0 if x is None else x.data_ptr()


def format_of(payloads: Sequence[Tensor]) -> int:
    """The common format of these payloads; empty ones have none."""
    return next((FORMATS[x.dtype] for x in payloads if x.numel()), 0)


def row_addresses(vectors: Sequence[Tensor], requests: int) -> list[int]:
    """Addresses of vectors [n] or of their rows [requests, n], request by request; 0 for an empty one."""
    return [
        x.data_ptr() + r * x.stride(0) * x.element_size() if x.numel() else 0 for r in range(requests) for x in vectors
    ]


def _new_encoded(like: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    scales = torch.empty(scale_count(like.numel(), dtype), dtype=torch.uint8)
    return torch.empty_like(like, dtype=payload_dtype(dtype)), scales


def encode(x: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    payload, scales = _new_encoded(x, dtype)
    finite = _native.encode(
        _address(x), x.numel(), FORMATS[payload.dtype], _address(payload), _address(scales), torch.get_num_threads()
    )
    return payload, scales, finite


def encode_difference_(theta: Tensor, shadow: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    payload, scales = _new_encoded(theta, dtype)
    finite = _native.encode_difference(
        _address(theta),
        _address(shadow),
        theta.numel(),
        FORMATS[payload.dtype],
        _address(payload),
        _address(scales),
        torch.get_num_threads(),
    )
    return payload, scales, finite


def decode(payload: Tensor, scales: Tensor, out: Tensor) -> None:
    _native.decode(
        _address(payload),
        _address(scales),
        out.numel(),
        FORMATS[payload.dtype],
        _address(out),
        torch.get_num_threads(),
    )


def dot(payload_a: Tensor, scales_a: Tensor, payload_b: Tensor, scales_b: Tensor) -> Tensor:
    value = _native.dot(
        _address(payload_a),
        _address(scales_a),
        FORMATS[payload_a.dtype],
        _address(payload_b),
        _address(scales_b),
        FORMATS[payload_b.dtype],
        payload_a.numel(),
        torch.get_num_threads(),
    )
    return torch.tensor(value, dtype=torch.float64)


def exchange_(theta: Tensor, v: Tensor) -> tuple[float, float]:
    """theta <- theta - v and v <- what theta was, float32, contiguous; returns the sums of theta^2 before and after."""
    return _native.exchange(_address(theta), _address(v), theta.numel(), torch.get_num_threads())


def optimizer_replay_window_(*arguments: Any) -> Tensor:
    squares = torch.tensor(_replay((), 0, 1, *arguments), dtype=torch.float64)
    return squares.view(arguments[0].shape[:-1])


def optimizer_replay_verified_(
    checks: Sequence[_native.VectorChecks], first_chunk: int, chunk_elements: int, *arguments: Any
) -> float | None:
    """The op on memory-mapped vectors, whose checksums are taken in the same pass: the log is read once.

    `checks` come from the rings, for every vector of theirs; the panel begins with their chunk `first_chunk`, and each
    chunk has `chunk_elements`. Returns the sum of delta^2 over all requests, or None where a vector is damaged: all results are
    then void.
    """
    squares = _replay(checks, first_chunk, chunk_elements, *arguments)
    return None if squares is None else sum(squares)


def _replay(
    checks: Sequence[_native.VectorChecks],
    first_chunk: int,
    chunk_elements: int,
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
) -> list[float] | None:
    requests = len(delta) if delta.dim() == 2 else 1
    return _native.optimizer_replay_window(
        RULES[rule],
        delta.shape[-1],
        row_addresses([delta], requests),
        _address(theta),
        [x.data_ptr() for x in state],
        row_addresses(counterfactual, requests),
        coefficients.data_ptr(),
        coefficients.shape[-3],
        coefficients.shape[-2],
        segments.data_ptr(),
        segments.shape[0],
        [x.data_ptr() for x in gradients],
        [x.data_ptr() for x in gradient_scales],
        format_of(gradients),
        [x.data_ptr() for x in injections],
        [x.data_ptr() for x in injection_scales],
        format_of(injections),
        injection_table.data_ptr(),
        injection_table.shape[1],
        _address(diagonal),
        lead,
        torch.get_num_threads(),
        list(checks),
        first_chunk,
        chunk_elements,
    )
