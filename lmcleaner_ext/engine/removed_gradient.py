"""The removed gradient of one step as a dense vector: what the counterfactual does not see, in loss units before clipping.

removed[t] = sum over forgotten samples of w_j grad l_j(theta[t])  +  C[t] delta[t]  +  lambda delta[t]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..curvature import Curvature, StepView
from ..errors import MissingDataError
from ..losses import LossGradients
from ..replay import StepLog
from ..replay.rebuild import dense_gradient
from .removal import StepRemoval, split_weights


class RemovedGradient:
    """Computes it for any step of one request; counts what that took."""

    def __init__(
        self,
        log: StepLog,
        removal: Mapping[int, StepRemoval],
        curvature: Curvature,
        losses: LossGradients | None,
        damping: float,
        every: int,
        end: int,
    ):
        self.log, self.removal, self.curvature, self.losses = log, removal, curvature, losses
        self.damping, self.every, self.end = damping, every, end
        self.products = self.gradients_computed = 0
        self._held: Tensor | None = None  # the product that `every` holds between two computations
        self._held_since = -1

    def total(self, step: int, theta: Tensor, delta: Tensor) -> Tensor:
        """removed[step] [P]."""
        view = self._view(step, theta)
        if not self.curvature.injects:
            self.products += 1
            return self.curvature.removed(view, delta)
        injection = view.injection()
        removed = torch.zeros_like(delta) if injection is None else injection
        if not self.curvature.elementwise:
            removed += self._product(step, view, delta)
        elif (h := self.curvature.diagonal_at(step)) is not None:
            removed += h * delta
        return removed.add_(delta, alpha=self.damping)

    def injection(self, step: int, theta: Tensor) -> Tensor:
        """The forgotten samples' part, [P]: from the log where tracked, else from the data at theta[step]."""
        total = torch.zeros(self.log.layout.size, dtype=self.log.layout.dtype)
        untracked = {}
        for identity, weight in self.removal[step].removed.items():
            if self.log.tracks(step, identity):
                source = self.log.sample_window([(step, identity)])
                source.verify(0, total.numel())
                total += weight * source.decode(0, total.dtype)
            else:
                untracked[identity] = weight
        if untracked:
            if self.losses is None:
                raise MissingDataError(
                    f"the gradient of sample {next(iter(untracked))!r} at step {step} is not in the log and cannot be recomputed "
                    'without data: pass data=, or record with mode="sample" and track_ids'
                )
            total += self.losses.gradient(theta, untracked)
            self.gradients_computed += len(untracked)
        return total

    def gradient(self, step: int, theta: Tensor | None) -> Tensor:
        """g[step] before clipping, [P]."""
        return dense_gradient(self.log, step, theta) / self.log[step].clip_factor

    def _product(self, step: int, view: StepView, delta: Tensor) -> Tensor:
        """C[step] delta; with `every`, one product over all the batches of a block of steps, held for the block."""
        if self._held is not None and step < self._held_since + self.every:
            return self._held
        block = range(step, min(step + self.every, self.end))
        weights: dict[Any, float] = {}
        for t in block:
            for identity, weight in self._retained(t).items():
                weights[identity] = weights.get(identity, 0.0) + weight / len(block)
        merged = StepView(step, view.theta, view.gradient, view.injection, weights, view.losses)
        self._held, self._held_since = self.curvature.product(merged, delta), step
        self.products += 1
        return self._held

    def _view(self, step: int, theta: Tensor) -> StepView:
        return StepView(
            step=step,
            theta=theta,
            gradient=lambda: self.gradient(step, theta),
            injection=lambda: self.injection(step, theta) if step in self.removal else None,
            retained=self._retained(step),
            losses=self.losses,
        )

    def _retained(self, step: int) -> dict[Any, float]:
        removal = self.removal.get(step)
        return dict(removal.retained if removal is not None else split_weights(self.log[step], frozenset())[1])
