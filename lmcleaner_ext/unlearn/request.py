"""A deletion request, checked: what will run, on which log and model, before anything is computed or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature import Curvature
from ..engine import StepRemoval, SweepResult, step_removals, sweep
from ..engine.removal import DEFAULT_CONVENTION
from ..errors import ConfigurationError, MissingDataError, UnsupportedOptimizerError
from ..log.record import SampleId, normalize_ids
from ..losses import LossFunction, LossGradients, data_source
from ..recorder import TrainingLogger
from ..replay import StepLog
from ..replay.device_panels import replaying
from .mode import choose_mode
from .options import RequestOptions


@dataclass
class Request:
    """One request with everything resolved; `sweep` computes its deviation."""

    log: StepLog
    ids: tuple[SampleId, ...]
    convention: str
    removal: dict[int, StepRemoval]
    curvature: Curvature
    reason: str
    losses: LossGradients | None
    options: RequestOptions
    keep_state: bool
    device: torch.device | None  # the model's; None without a model

    @property
    def mode(self) -> str:
        return self.curvature.name

    @property
    def damping(self) -> float:
        return self.options.damping if self.curvature.damped else 0.0

    @property
    def relearn_ids(self) -> tuple[SampleId, ...]:
        """Samples outside the request whose steps were dropped with it."""
        asked = set(self.ids) if self.options.level == "sample" else set()
        dropped = (
            i
            for r in self.removal.values()
            if r.skip or self.options.level == "batch"
            for i in (*r.removed, *r.retained)
        )
        return tuple(dict.fromkeys(i for i in dropped if i not in asked))

    def steps_swept(self) -> range:
        return range(min(self.removal), min(self.log.steps.stop, max(self.removal) + 1 + self.options.K))

    def sweep(self, advance: Callable[[int], None] = lambda elements: None) -> SweepResult:
        with replaying(self.device, self.options.backend, self.log.layout.dtype) as through:
            return sweep(
                self.log, self.removal, curvature=self.curvature, losses=self.losses, options=self.options,
                keep_state=self.keep_state, advance=advance, through=through,
            )  # fmt: skip


def open_log(log: StepLog | TrainingLogger | str | Path) -> StepLog:
    """The log behind what the user passed; a TrainingLogger's is brought up to date first."""
    if isinstance(log, TrainingLogger):
        return log.open()
    if isinstance(log, StepLog):
        log.refresh()
        return log
    if not isinstance(log, str | PathLike):
        raise ConfigurationError(f"log is a folder, a StepLog or a TrainingLogger, found {type(log).__name__}")
    return StepLog.open(log)


def prepare(
    model: nn.Module | None,
    log: StepLog,
    ids: Iterable[SampleId],
    options: RequestOptions,
    *,
    data: Any = None,
    loss_fn: LossFunction | None = None,
    diagonal: Tensor | None = None,
    keep_state: bool = False,
) -> Request:
    """Check the arguments against the log and resolve hessian_mode="auto". Nothing is computed.

    Raises ConfigurationError, WrongModelError, UnknownSampleError, ExpiredStepError, MissingDataError, UnsupportedOptimizerError.
    """
    if model is not None:
        log.layout.check(model)
    if keep_state and log.rule is None:
        raise UnsupportedOptimizerError(
            f"{log.without_rule}, so the state of a live optimizer cannot be corrected: "
            "continue with a new optimizer, or leave optimizer=None"
        )
    asked = normalize_ids(ids)
    removal = step_removals(log, asked, options.level, options.counterfactual) if asked else {}
    source = data_source(data)
    losses = (
        LossGradients(model, log.layout, source, loss_fn, options.micro_batch)
        if model is not None and source is not None
        else None
    )
    curvature, reason = choose_mode(options.hessian_mode, log, losses, diagonal)
    request = Request(
        log, asked, options.counterfactual or DEFAULT_CONVENTION[options.level], removal, curvature, reason,
        losses, options, keep_state, None if model is None else next(model.parameters()).device,
    )  # fmt: skip
    _require_vectors(request)
    return request


def _require_vectors(request: Request) -> None:
    """Find missing gradients now, not in the middle of the sweep."""
    if request.losses is not None or not request.curvature.injects:
        return
    for removal in request.removal.values():
        if removal.skip or removal.nothing_left:
            continue
        for identity in removal.removed:
            if not request.log.tracks(removal.step, identity):
                raise MissingDataError(
                    f"the gradient of sample {identity!r} at step {removal.step} is not in the log: pass data= (a callable from a list of "
                    'ids to a batch) and the model, or record with mode="sample" and track_ids'
                )
