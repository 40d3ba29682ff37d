"""The interface behind which the engine does not know which mode it runs (docs/method.md, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import MissingDataError
from ..log import LogReader
from ..losses import LossGradients, Weights


@dataclass(frozen=True)
class StepView:
    """One step as a curvature sees it, in the units of the loss before clipping.

    step       t
    theta      theta[t] [P], the historical parameters
    gradient   () -> g[t] [P] before clipping
    injection  () -> sum over forgotten samples of w_j grad l_j(theta[t]) [P], or None where none is forgotten
    retained   {id: weight} of the samples that stay
    losses     derivatives of their losses
    """

    step: int
    theta: Tensor
    gradient: Callable[[], Tensor]
    injection: Callable[[], Tensor | None]
    retained: Weights
    losses: LossGradients | None


class Curvature:
    """One mode: a product v -> C[t] v, and what serving it takes. A new one is a file beside this and a line in __init__.py.

    name         what hessian_mode calls it
    needs_data   the training samples and the model
    passes       forward-backward passes of one product
    damped       lambda is added to it
    elementwise  C is diagonal: many steps are one window of the replay kernel, which `diagonal_at` gives h
    injects      the forgotten samples' gradients are taken out besides; one that does not gives `removed`
    retrains     it can serve a run whose optimizer has no replay rule, by retraining
    """

    name: ClassVar[str]
    needs_data: ClassVar[bool] = False
    passes: ClassVar[int] = 0
    damped: ClassVar[bool] = True
    elementwise: ClassVar[bool] = False
    injects: ClassVar[bool] = True
    retrains: ClassVar[bool] = False

    @classmethod
    def of(cls, log: LogReader | None, diagonal: Tensor | None) -> Curvature:
        """The mode for requests on this log (None: for single products); diagonal: h [P], where the user gave one."""
        return cls()

    def product(self, view: StepView, v: Tensor) -> Tensor:
        """C[t] v, [P], without the damping."""
        raise NotImplementedError

    def removed(self, view: StepView, v: Tensor) -> Tensor:
        """g[t] - g'[t], [P]: all that the counterfactual does not see, injections included. Of modes that do not inject."""
        raise NotImplementedError

    def diagonal_at(self, step: int) -> Tensor | None:
        """h[step] [P] of an elementwise mode; None: zero."""
        return None

    def changes(self) -> Sequence[int]:
        """The steps where `diagonal_at` changes."""
        return ()

    def losses(self, view: StepView) -> LossGradients:
        """Those of the view; raises MissingDataError where there are none."""
        if view.losses is None:
            raise MissingDataError(f'hessian_mode="{self.name}" needs the training samples: pass data=')
        return view.losses
