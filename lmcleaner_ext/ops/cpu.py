"""Backend "cpu": the kernels of csrc/cpu, in float32, on the threads that torch is allowed (torch.set_num_threads).

The kernels read the tensors themselves, which the ops have checked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _native
from .damped_propagation import PropagationWindow
from .encoding import EncodedVector, payload_dtype, scale_count
from .optimizer_replay import ReplayWindow

DEVICES = ("cpu",)

threads = torch.get_num_threads


def unavailable_reason() -> str | None:
    return None


def room_for(x: Tensor, dtype: str) -> EncodedVector:
    """Memory for x in the format ``dtype``, beside x."""
    scales = torch.empty(scale_count(x.numel(), dtype), dtype=torch.uint8, device=x.device)
    return EncodedVector(torch.empty_like(x, dtype=payload_dtype(dtype)), scales)


def encode(x: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    out = room_for(x, dtype)
    return *out, _native.encode(x, out, threads())


def encode_difference_(theta: Tensor, shadow: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    out = room_for(theta, dtype)
    return *out, _native.encode_difference(theta, shadow, out, threads())


def decode(vector: EncodedVector, out: Tensor) -> None:
    _native.decode(vector, out, threads())


def dot(a: EncodedVector, b: EncodedVector) -> Tensor:
    return torch.tensor(_native.dot(a, b, threads()), dtype=torch.float64)


def exchange_(theta: Tensor, v: Tensor) -> tuple[float, float]:
    """theta <- theta - v and v <- what theta was, float32, contiguous; returns the sums of theta^2 before and after."""
    return _native.exchange(theta, v, threads())


def optimizer_replay_window_(window: ReplayWindow) -> Tensor:
    squares = torch.tensor(_native.optimizer_replay_window(window, threads()), dtype=torch.float64)
    return squares.view(window.delta.shape[:-1])


def optimizer_replay_verified_(
    window: ReplayWindow, checks: Sequence[_native.VectorChecks], first_chunk: int, chunk_elements: int
) -> float | None:
    """The op on memory-mapped vectors, whose checksums are taken in the same pass: the log is read once.

    `checks` come from the rings, for every vector of theirs; the panel begins with their chunk `first_chunk`, and each
    chunk has `chunk_elements`. Returns the sum of delta^2 over all requests, or None where a vector is damaged: all results are
    then void.
    """
    squares = _native.optimizer_replay_window(window, threads(), list(checks), first_chunk, chunk_elements)
    return None if squares is None else sum(squares)


def damped_propagate_window_(window: PropagationWindow) -> tuple[Tensor, Tensor]:
    squares, largest = _native.propagate(window, threads())
    return torch.tensor(squares, dtype=torch.float64), torch.tensor(largest, dtype=torch.float64)


def diag_hessian_update_(
    h: EncodedVector, a: Tensor, b: Tensor, beta: float, weight: float, seed: int | None
) -> Tensor:
    by_chance = seed is not None
    return torch.tensor(_native.update_diagonal(h, a, b, beta, weight, (seed or 0) % 2**64, by_chance, threads()))


def row_squares(vectors: Sequence[EncodedVector]) -> Tensor:
    squares = _native.row_squares(vectors, vectors[0].payload.numel(), threads())
    return torch.tensor(squares, dtype=torch.float64)


def gram(vectors: Sequence[EncodedVector], rows: int) -> Tensor:
    out = torch.empty(rows, len(vectors), dtype=torch.float64)
    _native.gram(vectors, rows, vectors[0].payload.numel(), out, threads())
    return out


def combine_(out: Tensor, vectors: Sequence[EncodedVector], coefficients: Tensor) -> None:
    _native.combine(out, vectors, coefficients.float().contiguous(), threads())
