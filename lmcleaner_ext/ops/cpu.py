"""Backend "cpu": the kernels of csrc/cpu, in float32, on the threads that torch is allowed (torch.set_num_threads).

The arguments have been checked by checks.py; here they become pointers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from .encoding import EncodedVector, payload_dtype, scale_count
from .optimizer_replay import ReplayWindow

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


def optimizer_replay_window_(window: ReplayWindow) -> Tensor:
    squares = torch.tensor(_replay(window, (), 0, 1), dtype=torch.float64)
    return squares.view(window.delta.shape[:-1])


def optimizer_replay_verified_(
    window: ReplayWindow, checks: Sequence[_native.VectorChecks], first_chunk: int, chunk_elements: int
) -> float | None:
    """The op on memory-mapped vectors, whose checksums are taken in the same pass: the log is read once.

    `checks` come from the rings, for every vector of theirs; the panel begins with their chunk `first_chunk`, and each
    chunk has `chunk_elements`. Returns the sum of delta^2 over all requests, or None where a vector is damaged: all results are
    then void.
    """
    squares = _replay(window, checks, first_chunk, chunk_elements)
    return None if squares is None else sum(squares)


def _replay(
    window: ReplayWindow, checks: Sequence[_native.VectorChecks], first_chunk: int, chunk_elements: int
) -> list[float] | None:
    return _native.optimizer_replay_window(
        *replay_arguments(window), torch.get_num_threads(), list(checks), first_chunk, chunk_elements
    )


def replay_arguments(w: ReplayWindow) -> tuple[Any, ...]:
    """What the kernels of _native and _cuda take."""
    return (
        RULES[w.rule], w.delta.shape[-1], row_addresses([w.delta], w.requests), _address(w.theta),
        [x.data_ptr() for x in w.state], row_addresses(w.counterfactual, w.requests),
        w.coefficients.data_ptr(), w.coefficients.shape[-3], w.coefficients.shape[-2],
        w.segments.data_ptr(), w.segments.shape[0], *list_arguments(w.gradients), *list_arguments(w.injections),
        w.injection_table.data_ptr(), w.injection_table.shape[1], _address(w.diagonal), w.lead,
    )  # fmt: skip


def list_arguments(vectors: Sequence[EncodedVector]) -> tuple[list[int], list[int], int]:
    """Addresses of payloads and scales, and their format."""
    payloads = [payload for payload, _ in vectors]
    return [x.data_ptr() for x in payloads], [scales.data_ptr() for _, scales in vectors], format_of(payloads)
