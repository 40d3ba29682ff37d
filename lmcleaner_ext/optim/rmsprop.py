"""torch.optim.RMSprop: any alpha, eps, momentum, L2 weight decay, maximize; not centered.

    e = +-g + w theta;   v = alpha v + (1-alpha) e^2;   d = e / (sqrt(v) + eps);   b = mu b + d;   theta -= lr (b  if momentum, else d)

Not linear: the counterfactual v', b' are stepped beside the factual v, b.
Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

from ..ops import coefficients as col
from .counterfactual import StepPlan
from .rule import Group, Rule, State


class RMSpropRule(Rule):
    name, title, served = "rmsprop", "RMSprop", "RMSprop not centered"
    classes = (torch.optim.RMSprop,)
    anchored: ClassVar = {"rmsprop": 1, "rmsprop-momentum": 2}
    normalises = True

    def accepts(self, group: Group) -> str | None:
        return "centered=True keeps an average of the gradient that has no replay rule" if group["centered"] else None

    def states(self, groups: Sequence[Group]) -> tuple[State, ...]:
        squares = State("square_avg", lambda g: g["alpha"], non_negative=True)
        if not any(g["momentum"] for g in groups):
            return (squares,)
        return squares, State("momentum_buffer", lambda g: g["momentum"])

    def kernel(self, groups: Sequence[Group], gradients: bool) -> str:
        return "rmsprop"

    def needs_parameters(self, groups: Sequence[Group], plans: Sequence[StepPlan], gradients: bool) -> bool:
        return any(g["weight_decay"] for g in groups)

    def fill(
        self, row: np.ndarray, group: Group, plan: StepPlan, before: tuple[int, int], after: tuple[int, int]
    ) -> None:
        row[col.BETA1], row[col.BETA2], row[col.EPS] = group["momentum"], group["alpha"], group["eps"]
