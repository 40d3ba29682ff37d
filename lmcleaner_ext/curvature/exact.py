"""The Hessian of the retained samples' loss at theta[t]:  C v = d/de grad L(theta + e v) at e = 0, forward over reverse."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, jvp

from .attention import twice_differentiable
from .base import Curvature, StepView


class ExactHessian(Curvature):
    """sum_j w_j Hessian(l_j) v, at about three forward-backward passes."""

    name = "exact"
    needs_data = True
    passes = 3

    def product(self, view: StepView, v: Tensor) -> Tensor:
        """C[t] v, [P]."""
        losses = self.losses(view)
        total = torch.zeros_like(v)
        with twice_differentiable(losses.model):
            theta, tangent = losses.parameters(view.theta), losses.parameters(v)
            for batch, w in losses.batches(view.retained):

                def loss(parameters: tuple[Tensor, ...], batch=batch, w=w) -> Tensor:  # type: ignore[no-untyped-def]
                    return (losses.losses(parameters, batch, len(w)) * w).sum()

                total += losses.layout.flatten(jvp(grad(loss), (theta,), (tangent,))[1]).to(total.device)
        return total
