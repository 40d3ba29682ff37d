"""torch.optim.Adam and AdamW: any betas, eps, decoupled or L2 weight decay, maximize.

    m = b1 m + (1-b1) g;   v = b2 v + (1-b2) g^2;   theta = (1 - lr w) theta - lr (m / (1-b1^k)) / (sqrt(v / (1-b2^k)) + eps)

Not linear: the counterfactual m', v' are stepped beside the factual m, v.  Adam's L2 decay adds w theta to g instead.
Source: https://arxiv.org/abs/1711.05101, algorithm 2
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ops import coefficients as col
from .plan import StepPlan
from .rule import Group


class AdamRule:
    name = "adam"

    def accepts(self, group: Group) -> str | None:
        return "amsgrad=True keeps a running maximum that has no replay rule" if group["amsgrad"] else None

    def state_names(self, groups: Sequence[Group]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def kernel(self, groups: Sequence[Group], gradients: bool) -> str:
        return "adam" if any(g["weight_decay"] and not g["decoupled_weight_decay"] for g in groups) else "adamw"

    def needs_parameters(self, groups: Sequence[Group], plans: Sequence[StepPlan], gradients: bool) -> bool:
        decays = any(g["weight_decay"] for g in groups)
        return decays and (self.kernel(groups, gradients) == "adam" or any(plan.skip for plan in plans))

    def needs_stream(self, groups: Sequence[Group], plans: Sequence[StepPlan]) -> bool:
        return True

    def coefficients(
        self,
        groups: Sequence[Group],
        plans: Sequence[StepPlan],
        absent: Sequence[bool],
        taken: int,
        taken_counterfactual: int,
    ) -> np.ndarray:
        table = np.zeros((len(groups), col.COLUMNS))
        for row, group, plan, gone in zip(table, groups, plans, absent, strict=True):
            gain = -1.0 if group["maximize"] else 1.0
            beta1, beta2 = group["betas"]
            if not gone:
                taken, taken_counterfactual = taken + 1, taken_counterfactual + (not plan.skip)
            row[col.FLAGS] = col.ABSENT if gone else col.SKIP * plan.skip + col.FACTUAL_ONLY * plan.frozen
            row[col.GAIN], row[col.ALPHA] = gain, gain * plan.keep
            row[col.CURVATURE], row[col.DAMPING] = (
                gain * plan.curvature * plan.response,
                gain * plan.damping * plan.response,
            )
            row[col.LR], row[col.DECAY], row[col.EPS] = group["lr"], group["weight_decay"], group["eps"]
            row[col.BETA1], row[col.BETA2] = beta1, beta2
            row[col.SIZE], row[col.ROOT] = _size_and_root(group["lr"], beta1, beta2, taken)
            row[col.SIZE_CF], row[col.ROOT_CF] = _size_and_root(group["lr"], beta1, beta2, taken_counterfactual)
        return table


def _size_and_root(lr: float, beta1: float, beta2: float, k: int) -> tuple[float, float]:
    """(lr / bias_correction1, 1 / sqrt(bias_correction2)) after k steps; (0, 1) before the first."""
    return (lr / (1 - beta1**k), (1 - beta2**k) ** -0.5) if k else (0.0, 1.0)
