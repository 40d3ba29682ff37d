"""Propagation of a deviation with a diagonal curvature: the steps of plain SGD, over a window of the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigurationError
from . import checks
from .encoding import EncodedVector, Vector, payloads
from .registry import call, compute, register_window
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
    return call("damped_propagate_window_", backend, *window.flat())


def _damped_propagate_window_(window: PropagationWindow) -> tuple[Tensor, Tensor]:
    _check(window)
    tensors = [window.v, *payloads(window.diagonals), *payloads(window.injections)]
    squares, largest = compute("damped_propagate_window_", tensors, window)
    return squares, torch.where(squares.isnan(), squares, largest)  # no backend's maximum need see a NaN


def _fake(window: PropagationWindow) -> tuple[Tensor, Tensor]:
    return window.v.new_empty((), dtype=torch.float64), window.v.new_empty((), dtype=torch.float64)


register_window(PropagationWindow, _damped_propagate_window_, _fake, "(Tensor, Tensor)")


def _check(window: PropagationWindow) -> None:
    """Every argument of ``damped_propagate_window_``."""
    v, steps = window.v, len(window.diagonals)
    checks.vector("v", v)
    checks.table("coefficients", window.coefficients, torch.float64, 2, 2)
    checks.table("injection_table", window.injection_table, torch.float64, 2, 2)
    if window.coefficients.shape[0] != steps:
        raise ConfigurationError(
            f"{steps} diagonals need as many rows of coefficients; found coefficients {list(window.coefficients.shape)}"
        )
    checks.injections_of(window.injections, window.injection_table, steps)
    checks.encoded_list("diagonals", window.diagonals, v.shape[0], v.device)
    checks.encoded_list("injections", window.injections, v.shape[0], v.device)
