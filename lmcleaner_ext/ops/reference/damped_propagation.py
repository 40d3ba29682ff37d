"""Propagation with a diagonal curvature in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..damped_propagation import PropagationWindow
from .encoded_vector import decoded


def damped_propagate_window_(window: PropagationWindow) -> tuple[Tensor, Tensor]:
    """v <- (1 - lr (h + damping)) v - lr * sum of weight * injection, step by step."""
    v = window.v
    largest = torch.zeros((), dtype=v.dtype, device=v.device)
    table = [(int(step), weight) for step, weight in window.injection_table.tolist()]
    for t, (lr, damping) in enumerate(window.coefficients.tolist()):
        factor = (1 - lr * damping) - lr * decoded(window.diagonals[t], v)
        v *= factor
        if v.numel():
            largest = torch.maximum(largest, factor.abs().amax())
        for vector, (step, weight) in zip(window.injections, table, strict=True):
            if step == t:
                v -= lr * weight * decoded(vector, v)
    return v.double().square().sum(), largest.double()
