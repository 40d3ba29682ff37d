"""Lion, which torch does not have: any class of that name with the groups of the package lion-pytorch (lr, betas, weight_decay).

    d = sign(b1 m + (1-b1) g);   theta = (1 - lr w) theta - lr d;   m = b2 m + (1-b2) g

m is linear in g and d is not: the counterfactual m' is stepped beside the factual m, and delta moves by whole signs. What is left
out of the gradient's response turns a sign or does not: the residual falls in steps of the learning rate, not smoothly.
Source: https://arxiv.org/abs/2302.06675, algorithm 2
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ..ops import coefficients as col
from .counterfactual import StepPlan
from .rule import Group, Rule, State


class LionRule(Rule):
    name, title, served = "lion", "Lion", "Lion"
    class_names = ("Lion",)
    anchored: ClassVar = {"lion": 1}
    normalises = True
    counts = False

    def serves(self, kind: type) -> bool:
        # bitsandbytes' class of this name keeps its state packed, under other names
        return super().serves(kind) and not kind.__module__.startswith("bitsandbytes")

    def hyperparameters(self, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> dict[str, Any]:
        if not getattr(optimizer, "decoupled_wd", False):
            return group
        return {**group, "weight_decay": group["weight_decay"] / optimizer._init_lr}  # type: ignore[attr-defined]

    def accepts(self, group: Group) -> str | None:
        known = {"lr", "betas", "weight_decay", "maximize"}
        missing, more = (
            known - {"maximize"} - set(group),
            [key for key, value in group.items() if value and key not in known],
        )
        if missing:
            return f"this class of the name Lion has no {' and no '.join(sorted(missing))} in its groups"
        return f"Lion is replayed as lion-pytorch has it, which knows no {' and no '.join(more)}" if more else None

    def states(self, groups: Sequence[Group]) -> tuple[State, ...]:
        return (State("exp_avg", lambda g: g["betas"][1]),)

    def kernel(self, groups: Sequence[Group], gradients: bool) -> str:
        return "lion"

    def needs_parameters(self, groups: Sequence[Group], plans: Sequence[StepPlan], gradients: bool) -> bool:
        return any(g["weight_decay"] for g in groups) and any(plan.skip for plan in plans)

    def fill(
        self, row: np.ndarray, group: Group, plan: StepPlan, before: tuple[int, int], after: tuple[int, int]
    ) -> None:
        row[col.BETA1], row[col.BETA2] = group["betas"]
