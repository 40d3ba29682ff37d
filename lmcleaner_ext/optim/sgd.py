"""torch.optim.SGD with momentum, dampening, Nesterov, weight decay and maximize.

    e = +-g + w theta;   b = mu b + (1 - dampening) e  (first step: b = e);   theta -= lr (e + mu b  if Nesterov, b  if momentum, else e)

Everything is linear, so the deviations of theta and b are propagated themselves; the log's vectors are read only where a step is
skipped or re-averaged.  Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ops import coefficients as col
from .plan import StepPlan
from .rule import Group


class SGDRule:
    name = "sgd"

    def accepts(self, group: Group) -> str | None:
        return None

    def state_names(self, groups: Sequence[Group]) -> tuple[str, ...]:
        return ("momentum_buffer",) if any(g["momentum"] for g in groups) else ()

    def kernel(self, groups: Sequence[Group], gradients: bool) -> str:
        return "sgd" if gradients else "update"

    def needs_parameters(self, groups: Sequence[Group], plans: Sequence[StepPlan], gradients: bool) -> bool:
        if not any(g["weight_decay"] for g in groups):
            return False
        return any(p.skip for p in plans) if gradients else any(not p.skip and p.keep != 1 for p in plans)

    def needs_stream(self, groups: Sequence[Group], plans: Sequence[StepPlan]) -> bool:
        return any(plan.skip or plan.keep != 1 for plan in plans)

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
            flags = col.NESTEROV * bool(group["nesterov"]) + col.SKIP * plan.skip + col.FACTUAL_ONLY * plan.frozen
            flags += col.FIRST * (taken == 0) + col.FIRST_CF * (taken_counterfactual == 0 and not plan.skip)
            row[col.FLAGS] = col.ABSENT if gone else flags
            row[col.GAIN], row[col.ALPHA] = gain, gain * plan.keep
            row[col.CURVATURE], row[col.DAMPING] = (
                gain * plan.curvature * plan.response,
                gain * plan.damping * plan.response,
            )
            row[col.LR], row[col.DECAY] = group["lr"], group["weight_decay"]
            row[col.BETA1] = group["momentum"]
            row[col.BETA2] = group["dampening"] if group["momentum"] else 0.0  # torch dampens a momentum buffer only
            if not gone:
                taken, taken_counterfactual = taken + 1, taken_counterfactual + (not plan.skip)
        return table
