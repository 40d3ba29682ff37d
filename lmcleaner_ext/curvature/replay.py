"""No linearisation: the true gradient at the counterfactual parameters, one forward-backward pass per step.

    g'[t] = sum over retained j of w_j grad l_j(theta[t] - delta[t])

Carried to the end this is retraining from t_z without the forgotten samples.
"""

from __future__ import annotations

from torch import Tensor

from .base import Curvature, StepView


class TrueGradient(Curvature):
    name = "replay"
    needs_data = True
    passes = 1
    damped = False
    injects = False
    retrains = True

    def removed(self, view: StepView, v: Tensor) -> Tensor:
        """g[t] - g'[t], [P]: what the counterfactual does not see, injections included."""
        losses = self.losses(view)
        return view.gradient() - losses.gradient(view.theta - v, view.retained)

    def product(self, view: StepView, v: Tensor) -> Tensor:
        """The secant along v of the retained samples' gradient, [P]."""
        losses = self.losses(view)
        return losses.gradient(view.theta, view.retained) - losses.gradient(view.theta - v, view.retained)
