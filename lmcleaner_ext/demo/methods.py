"""The ways to forget that the demonstration compares, each as the parameters it leaves behind."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import evaluation, ops
from ..audit import AuditRecord
from ..datasets import by_id
from ..engine import StepRemoval, step_removals
from ..losses import LossGradients
from ..replay import StepLog
from ..unlearn import retrain, unlearn
from ..unlearn.options import RequestOptions
from .experiment import Subjects


@dataclass(frozen=True)
class Estimate:
    """The parameters [P] that one method gives, and its price. bytes_read: vectors of the log."""

    key: str
    title: str
    theta: Tensor
    seconds: float
    bytes_read: int
    audit: AuditRecord | None = None


@dataclass(frozen=True)
class Measured:
    """One row of the table; losses in nats per token. kl_ratio and residual: 1 = did nothing, 0 = exact."""

    key: str
    title: str
    forget_loss: float
    retain_loss: float
    forget_probability: float
    residual: float
    kl_ratio: float
    seconds: float
    bytes_read: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Comparison:
    """One trained model, its log, and the ids to forget."""

    def __init__(self, model: nn.Module, log: StepLog, subjects: Subjects):
        self.model, self.log, self.subjects = model, log, subjects
        self.data = by_id(subjects.training)
        self.ids = subjects.forget.sample_ids
        self.trained = log.layout.flatten(log.layout.parameters(model))
        self.removal: dict[int, StepRemoval] = step_removals(log, self.ids, "sample", None)
        self.losses = LossGradients(model, log.layout, self.data, None, RequestOptions.micro_batch)

    @property
    def uses(self) -> int:
        """How often a sample of the forgotten author was trained on."""
        return sum(len(removal.removed) for removal in self.removal.values())

    def nothing(self) -> Estimate:
        return Estimate("nothing", "nothing", self.trained, 0.0, 0)

    def gradient_step(self, advance: Callable[..., None] = lambda: None) -> Estimate:
        """The published recursion without propagation (docs/method.md, section 3, K = 0), which knows no optimizer state:

        delta = sum over uses of -lr[t] * w_j * grad l_j(theta[t])        theta_hat = theta - delta
        """
        started, read = time.perf_counter(), 0
        delta = torch.zeros_like(self.trained)
        vector = self.log.layout.size * ops.payload_dtype(self.log.dtype).itemsize
        for step, removal in self.removal.items():
            gradient = self.losses.gradient(self.log.parameters_at(step), removal.removed)
            read += (step - self.log.anchor_before(step).step) * vector
            for entry, part in zip(self.log.layout.entries, self.log.layout.views(gradient), strict=True):
                delta[entry.begin : entry.end].sub_(part.reshape(-1), alpha=self.log[step].lr[entry.group])
            advance()
        title = "subtract the gradient steps (K = 0)"
        return Estimate("gradient_step", title, self.trained - delta, time.perf_counter() - started, read)

    def unlearned(self, key: str, title: str, **options: Any) -> Estimate:
        """`lmcleaner_ext.unlearn` on a copy of the model."""
        corrected = copy.deepcopy(self.model)
        started = time.perf_counter()
        audit = unlearn(corrected, self.log, self.ids, data=self.data, progress=False, **options).audit
        seconds = time.perf_counter() - started
        layout = self.log.layout
        return Estimate(key, title, layout.flatten(layout.parameters(corrected)), seconds, audit.bytes_read, audit)

    def retrained(self) -> Estimate:
        """The truth: the same run from its start, without the author."""
        started = time.perf_counter()
        theta = retrain(self.log, self.removal, self.losses, progress=False, from_start=True)
        return Estimate("retrained", "retraining without the author", theta, time.perf_counter() - started, 0)

    def model_of(self, estimate: Estimate) -> nn.Module:
        """A copy of the model with these parameters."""
        model = copy.deepcopy(self.model)
        layout = self.log.layout
        with torch.no_grad():
            for parameter, value in zip(layout.parameters(model), layout.views(estimate.theta), strict=True):
                parameter.copy_(value)
        return model

    def measure(self, estimates: Sequence[Estimate], advance: Callable[..., None] = lambda: None) -> list[Measured]:
        """Every estimate against the retrained parameters, which must be among them."""
        by_key = {estimate.key: estimate for estimate in estimates}
        ideal, trained = by_key["retrained"], by_key["nothing"]
        ideal_model, trained_model = self.model_of(ideal), self.model_of(trained)
        rows = []
        for estimate in estimates:
            model = self.model_of(estimate)
            forget = evaluation.evaluate(model, self.subjects.forget, truth=False)
            retain = evaluation.evaluate(model, self.subjects.retain, truth=False)
            batches = evaluation.chunks(self.subjects.forget)
            rows.append(
                Measured(
                    key=estimate.key,
                    title=estimate.title,
                    forget_loss=forget.loss,
                    retain_loss=retain.loss,
                    forget_probability=forget.probability,
                    residual=evaluation.residual(estimate.theta, ideal.theta, trained.theta),
                    kl_ratio=evaluation.kl_ratio(ideal_model, model, trained_model, batches),
                    seconds=estimate.seconds,
                    bytes_read=estimate.bytes_read,
                )
            )
            advance()
        return rows
