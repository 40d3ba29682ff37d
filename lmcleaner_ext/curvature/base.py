"""The interface behind which the engine does not know which mode it runs (docs/method.md, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..losses import LossGradients, Weights

MODES = ("none", "diag", "fisher", "ggn", "exact", "replay")
NEEDS_DATA = ("ggn", "exact", "replay")


@dataclass(frozen=True)
class StepView:
    """One step as a curvature sees it, in the units of the loss before clipping.

    theta      theta[t] [P], the historical parameters
    gradient   () -> g[t] [P] before clipping
    injection  () -> sum over forgotten samples of w_j grad l_j(theta[t]) [P], or None where none is forgotten
    retained   {id: weight} of the samples that stay
    losses     derivatives of their losses
    """

    theta: Tensor
    gradient: Callable[[], Tensor]
    injection: Callable[[], Tensor | None]
    retained: Weights
    losses: LossGradients | None


class Curvature(Protocol):
    """A product v -> C[t] v.

    Implementations give `product`; `replay`, which is not linear, gives `removed` instead.
    """

    name: str

    def product(self, view: StepView, v: Tensor) -> Tensor:
        """C[t] v, [P], without the damping."""
