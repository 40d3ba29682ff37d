"""torch.optim.SGD with momentum, dampening, Nesterov, weight decay and maximize.

    e = +-g + w theta;   b = mu b + (1 - dampening) e  (first step: b = e);   theta -= lr (e + mu b  if Nesterov, b  if momentum, else e)

Everything is linear, so the deviations of theta and b are propagated themselves; the log's vectors are read only where a step is
skipped or re-averaged.  Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

from ..ops import coefficients as col
from .counterfactual import StepPlan
from .rule import Group, Rule, State


class SGDRule(Rule):
    name, title, served = "sgd", "SGD", "SGD"
    classes = (torch.optim.SGD,)
    anchored: ClassVar = {"sgd": 0, "momentum": 1}
    linear = True
    counts = False

    def plain(self, groups: Sequence[Group]) -> bool:
        return not any(g["momentum"] for g in groups)

    def states(self, groups: Sequence[Group]) -> tuple[State, ...]:
        return () if self.plain(groups) else (State("momentum_buffer", lambda g: g["momentum"]),)

    def kernel(self, groups: Sequence[Group], gradients: bool) -> str:
        return "sgd" if gradients else "update"

    def needs_parameters(self, groups: Sequence[Group], plans: Sequence[StepPlan], gradients: bool) -> bool:
        if not any(g["weight_decay"] for g in groups):
            return False
        return any(p.skip for p in plans) if gradients else any(not p.skip and p.keep != 1 for p in plans)

    def needs_stream(self, groups: Sequence[Group], plans: Sequence[StepPlan]) -> bool:
        return any(plan.skip or plan.keep != 1 for plan in plans)

    def fill(
        self, row: np.ndarray, group: Group, plan: StepPlan, before: tuple[int, int], after: tuple[int, int]
    ) -> None:
        row[col.FLAGS] += col.NESTEROV * bool(group["nesterov"])
        row[col.FLAGS] += col.FIRST * (before[0] == 0) + col.FIRST_CF * (before[1] == 0 and not plan.skip)
        row[col.BETA1] = group["momentum"]
        row[col.BETA2] = group["dampening"] if group["momentum"] else 0.0  # torch dampens a momentum buffer only
