"""The generalized Gauss-Newton matrix of a softmax cross-entropy:  C v = J^T H_out J v.

    H_out = w (diag(p) - p p^T)  per output position, p = softmax(logits);  J = d logits / d theta.

Positive semidefinite; the Hessian without the part that comes from the logits' own curvature.
Source: Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp

from ..errors import ConfigurationError
from .attention import twice_differentiable
from .base import Curvature, StepView


class GaussNewton(Curvature):
    """jvp through the model, multiply by H_out, vjp back."""

    name = "ggn"
    needs_data = True
    passes = 3

    def product(self, view: StepView, v: Tensor) -> Tensor:
        """C[t] v, [P]."""
        losses = self.losses(view)
        outputs = getattr(losses.loss_fn, "outputs", None)
        if outputs is None:
            raise ConfigurationError(
                'hessian_mode="ggn" must see the logits: give loss_fn an attribute outputs(model, batch) -> '
                "(logits [n, ..., V], targets [n, ...], weights [n, ...]), as lmcleaner_ext.losses.CausalLMLoss has"
            )
        total = torch.zeros_like(v)
        with twice_differentiable(losses.model):
            theta, tangent = losses.parameters(view.theta), losses.parameters(v)
            for batch, w in losses.batches(view.retained):
                fixed: dict[str, Any] = {}

                def logits(parameters: tuple[Tensor, ...], batch=batch, fixed=fixed) -> Tensor:  # type: ignore[no-untyped-def]
                    values, fixed["targets"], fixed["weights"] = losses.call(parameters, batch, outputs)
                    return values

                values, change = jvp(logits, (theta,), (tangent,))[:2]  # [n, ..., V] both
                position = fixed["weights"].detach() * w.to(values.dtype).view(-1, *[1] * (values.ndim - 2))
                p = values.softmax(-1)
                product = p * change - p * (p * change).sum(-1, keepdim=True)
                product = product * (position * (fixed["targets"] != -100)).unsqueeze(-1)
                total += losses.layout.flatten(vjp(logits, theta)[1](product)[0]).to(total.device)
        return total
