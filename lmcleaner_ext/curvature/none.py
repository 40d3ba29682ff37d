"""No curvature: the gradient is taken not to change with the parameters, C = 0.

The deviation is then what the optimizer itself makes of the removed gradients, exactly: its state carries the influence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Curvature, StepView


class NoCurvature(Curvature):
    name = "none"
    damped = False
    elementwise = True

    def product(self, view: StepView, v: Tensor) -> Tensor:
        """Zeros [P]."""
        return torch.zeros_like(v)
