"""Propagation of a deviation with a diagonal curvature: the steps of plain SGD, over a window of the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .dispatch import call
from .encoding import EncodedVector, Vector
from .window import Window


@dataclass(frozen=True)
class PropagationWindow(Window):
    """The argument of ``damped_propagate_window_``: n parameters and K logged steps."""

    v: Tensor
    """The deviation [n], updated in place, float32 or float64."""
    diagonals: Sequence[EncodedVector]
    """h[t] for K steps, vectors [n] of one format. Empty: zeros."""
    coefficients: Tensor
    """float64 [K, 2] on the CPU, (lr, damping) of each step."""
    injections: Sequence[EncodedVector]
    """Vectors [n] of one format, in gradient units. Empty: zeros."""
    injection_table: Tensor
    """float64 [I, 2] on the CPU, (step, weight), sorted by step."""

    UPDATED = ("v",)
    TABLES = ("coefficients", "injection_table")


def damped_propagate_(
    v: Tensor, h: Vector, lr: float, damping: float, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """v <- v - lr (h v + damping v), in place: one step of plain SGD with the diagonal curvature h (docs/method.md, section 3).

    Args:
        v: the deviation [n], float32 or float64.
        h: the diagonal [n], plain or encoded.
        lr, damping: learning rate and Tikhonov damping of this step.

    Returns:
        The sum of v^2 afterwards and max |1 - lr (h + damping)|, the contraction factor: two float64 scalar tensors,
        bitwise the same for any number of threads. Both are NaN where v has become NaN.

    Raises ConfigurationError for a wrong shape, dtype or device; nothing has been changed.
    """
    coefficients, none = torch.tensor([[lr, damping]], dtype=torch.float64), torch.empty(0, 2, dtype=torch.float64)
    window = PropagationWindow(v, [EncodedVector.of(h)], coefficients, [], none)
    return damped_propagate_window_(window, backend=backend)


def damped_propagate_window_(window: PropagationWindow, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """The same for all K steps of a log window in one pass over v, with gradients injected along the way:

        v <- (1 - lr[t] (h[t] + damping[t])) v - lr[t] * sum over injections of step t of weight * injection

    Returns and raises what ``damped_propagate_`` does; the factor is the largest of all steps.
    """
    return call(torch.ops.lmcleaner.damped_propagate_window_, backend, *window.flat())
