"""What the counterfactual does differently at one step (docs/method.md, section 1, "Counterfactual conventions")."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepPlan:
    """One step of the counterfactual.

    skip       the whole step is not taken
    keep       factor on the logged gradient: 1 (placeholder), 1/(1 - W) (renormalize), 0 (nothing of the batch remains),
               times the ratio c'/c of the clip factors
    response   factor on the diagonal curvature and the damping: c' or c'/(1 - W)
    curvature  multiplies the diagonal h
    damping    lambda
    frozen     this request was truncated before: its deviation and counterfactual state stand still
    """

    skip: bool = False
    keep: float = 1.0
    response: float = 1.0
    curvature: float = 0.0
    damping: float = 0.0
    frozen: bool = False
