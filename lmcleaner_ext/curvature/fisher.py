"""Rank one, from the log alone:  C v = g (g^T v).

One product per step; engine/fisher_window.py has the recursion of plain SGD over many steps at once.
"""

from __future__ import annotations

from torch import Tensor

from .. import ops
from .base import Curvature, StepView


class Fisher(Curvature):
    """The outer product of the step's own mean gradient."""

    name = "fisher"

    def product(self, view: StepView, v: Tensor) -> Tensor:
        """g (g^T v), [P]."""
        g = view.gradient()
        return g * float(ops.dot(g, v))
