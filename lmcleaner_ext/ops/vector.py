"""Kernels beside the replay: what the curvature modes and the recorder do with vectors of the log.

An encoded vector is given as (payload, scales) or, unscaled, as a plain tensor; ``encoding.py`` has the formats. Every
function takes ``backend=`` like those of ``lmcleaner_ext.ops``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import vector_library as _vector_library  # noqa: F401 - registers the ops
from .dispatch import use_backend

Vector = Tensor | tuple[Tensor, Tensor]

_ops = torch.ops.lmcleaner


def call(op: Callable[..., Any], backend: str | None, *arguments: Any) -> Any:
    if backend is None:
        return op(*arguments)
    with use_backend(backend):
        return op(*arguments)


def pair(vector: Vector) -> tuple[Tensor, Tensor]:
    """(payload, scales) of an encoded vector or a plain tensor."""
    if isinstance(vector, Tensor):
        return vector, torch.empty(0, dtype=torch.uint8, device=vector.device)
    return vector


def _pairs(vectors: Sequence[Vector]) -> tuple[list[Tensor], list[Tensor]]:
    found = [pair(vector) for vector in vectors]
    return [payload for payload, _ in found], [scales for _, scales in found]


def damped_propagate_(
    v: Tensor, h: Vector, lr: float, damping: float, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """v <- v - lr (h v + damping v), in place: one step of plain SGD with the diagonal curvature h (METHOD.md section 3).

    Args:
        v: the deviation [n], float32 or float64.
        h: the diagonal [n], plain or encoded.
        lr, damping: learning rate and Tikhonov damping of this step.

    Returns:
        The sum of v^2 afterwards and max |1 - lr (h + damping)|, the contraction factor: two float64 scalar tensors,
        bitwise the same for any number of threads. Both are NaN where v has become NaN.

    Raises ConfigurationError for a wrong shape, dtype or device; nothing has been changed.
    """
    return damped_propagate_window_(v, [h], [(lr, damping)], backend=backend)


def damped_propagate_window_(
    v: Tensor,
    diagonals: Sequence[Vector],
    coefficients: Tensor | Sequence[tuple[float, float]],
    injections: Sequence[Vector] = (),
    injection_table: Tensor | Sequence[tuple[int, float]] = (),
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The same for all K steps of a log window in one pass over v, with gradients injected along the way:

        v <- (1 - lr[t] (h[t] + damping[t])) v - lr[t] * sum over injections of step t of weight * injection

    Args:
        v: the deviation [n], updated in place, float32 or float64.
        diagonals: h[t] for K steps, encoded vectors [n] of one format. An empty tensor stands for zeros.
        coefficients: float64 [K, 2] on the CPU, (lr, damping) of each step; or K such pairs.
        injections: encoded vectors [n] of one format, in gradient units.
        injection_table: float64 [I, 2] on the CPU, (step, weight), sorted by step; or I such pairs.

    Returns and raises what ``damped_propagate_`` does; the factor is the largest of all steps.
    """
    if not isinstance(coefficients, Tensor):
        coefficients = torch.tensor(coefficients, dtype=torch.float64).view(-1, 2)
    if not isinstance(injection_table, Tensor):
        injection_table = torch.tensor(injection_table, dtype=torch.float64).view(-1, 2)
    return call(
        _ops.damped_propagate_window_,
        backend,
        v,
        *_pairs(diagonals),
        coefficients,
        *_pairs(injections),
        injection_table,
    )


def prefix_accumulate_(prefix: Tensor, h: Vector, lr: float, damping: float, *, backend: str | None = None) -> Tensor:
    """C <- C + log(1 - lr (h + damping)), in place: one step of the prefix form, in which K steps cost what one does.

    A logarithm has no place for a factor that is zero or negative (lr (h + damping) >= 1, no contraction): factors under
    2^-24 count as 2^-24, so such a contribution is taken to have died out. How many were clamped is returned; where there
    are many, ``damped_propagate_window_`` has no such limit. lr and damping are fixed here, not at deletion time.
    Begin again at zero every few hundred steps and keep C in float32: its rounding error grows with its magnitude.

    Args:
        prefix: C [n], float32 or float64.
        h: the diagonal [n], plain or encoded.

    Returns the number of clamped elements, an int64 scalar tensor. Raises ConfigurationError.
    """
    return call(_ops.prefix_accumulate_, backend, prefix, *pair(h), lr, damping)


def prefix_propagate_(
    v: Tensor, prefixes: Sequence[Tensor], signs: Sequence[float], *, backend: str | None = None
) -> Tensor:
    """v <- v exp(sum of sign[j] C[j]), in place: the steps from t to t' inside one window are C[t'] - C[t].

    Args:
        v: the deviation [n], float32 or float64.
        prefixes: any number of C [n], like v: over several windows, the last C of each and the C at both ends.
        signs: +1 or -1 for each.

    Returns the sum of v^2 afterwards, a float64 scalar tensor. Raises ConfigurationError.
    """
    return call(_ops.prefix_propagate_, backend, v, list(prefixes), list(signs))
