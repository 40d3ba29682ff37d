"""torch.optim.Adam and AdamW: any betas, eps, decoupled or L2 weight decay, maximize.

    m = b1 m + (1-b1) g;   v = b2 v + (1-b2) g^2;   theta = (1 - lr w) theta - lr (m / (1-b1^k)) / (sqrt(v / (1-b2^k)) + eps)

Not linear: the counterfactual m', v' are stepped beside the factual m, v.  Adam's L2 decay adds w theta to g instead.
Source: https://arxiv.org/abs/1711.05101, algorithm 2
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ..ops import coefficients as col
from .counterfactual import StepPlan
from .rule import Group, Rule, State


class AdamRule(Rule):
    name, title, served = "adam", "Adam", "Adam and AdamW without amsgrad"
    classes = (torch.optim.Adam, torch.optim.AdamW)
    anchored: ClassVar = {"adam": 2}
    normalises = True

    def hyperparameters(self, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> dict[str, Any]:
        decoupled = bool(group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW)))
        return {**group, "decoupled_weight_decay": decoupled}

    def accepts(self, group: Group) -> str | None:
        return "amsgrad=True keeps a running maximum that has no replay rule" if group["amsgrad"] else None

    def states(self, groups: Sequence[Group]) -> tuple[State, ...]:
        return (
            State("exp_avg", lambda g: g["betas"][0]),
            State("exp_avg_sq", lambda g: g["betas"][1], non_negative=True),
        )

    def kernel(self, groups: Sequence[Group], gradients: bool) -> str:
        return "adam" if any(g["weight_decay"] and not g["decoupled_weight_decay"] for g in groups) else "adamw"

    def needs_parameters(self, groups: Sequence[Group], plans: Sequence[StepPlan], gradients: bool) -> bool:
        decays = any(g["weight_decay"] for g in groups)
        return decays and (self.kernel(groups, gradients) == "adam" or any(plan.skip for plan in plans))

    def fill(
        self, row: np.ndarray, group: Group, plan: StepPlan, before: tuple[int, int], after: tuple[int, int]
    ) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        row[col.EPS], row[col.BETA1], row[col.BETA2] = group["eps"], beta1, beta2
        row[col.SIZE], row[col.ROOT] = _size_and_root(lr, beta1, beta2, after[0])
        row[col.SIZE_CF], row[col.ROOT_CF] = _size_and_root(lr, beta1, beta2, after[1])


def _size_and_root(lr: float, beta1: float, beta2: float, k: int) -> tuple[float, float]:
    """(lr / bias_correction1, 1 / sqrt(bias_correction2)) after k steps; (0, 1) before the first."""
    return (lr / (1 - beta1**k), (1 - beta2**k) ** -0.5) if k else (0.0, 1.0)
