"""A deletion request, checked: what will run, on which log and model, before anything is computed or changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..audit import AuditLog
from ..curvature import MODES, NEEDS_DATA, Curvature, curvature_mode
from ..curvature.diagonal import LoggedDiagonal
from ..digest import digest_tensors
from ..engine import StepRemoval, SweepResult, plan_removal, sweep
from ..engine.removal import DEFAULT_CONVENTION
from ..engine.sweep import SweepOptions
from ..errors import ConfigurationError, MissingDataError, UnsupportedOptimizerError, WrongModelError
from ..log.record import SampleId, normalize_ids
from ..losses import LossFunction, LossGradients, data_source
from ..recorder import TrainingLogger
from ..recorder.describe import describe_optimizer
from ..replay import StepLog
from ..replay.device_panels import DevicePanels, replay_device


@dataclass
class Request:
    """One request with everything resolved; `sweep` computes its deviation."""

    log: StepLog
    ids: tuple[SampleId, ...]
    level: str
    convention: str
    removal: dict[int, StepRemoval]
    mode: str
    reason: str
    losses: LossGradients | None
    diagonal: Tensor | LoggedDiagonal | None
    options: SweepOptions
    backend: str | None
    device: torch.device | None  # the model's; None without a model

    @property
    def damping(self) -> float:
        return 0.0 if self.mode in ("none", "replay") else self.options.damping

    @property
    def relearn_ids(self) -> tuple[SampleId, ...]:
        """Samples outside the request whose steps were dropped with it."""
        asked = set(self.ids) if self.level == "sample" else set()
        dropped = (
            i for r in self.removal.values() if r.skip or self.level == "batch" for i in (*r.removed, *r.retained)
        )
        return tuple(dict.fromkeys(i for i in dropped if i not in asked))

    def steps_swept(self) -> range:
        return range(min(self.removal), min(self.log.steps.stop, max(self.removal) + 1 + self.options.K))

    def sweep(self, advance: Callable[[int], None] = lambda elements: None) -> SweepResult:
        curvature: Curvature | None = None if self.mode in ("none", "diag") else curvature_mode(self.mode)
        with replaying(self.device, self.backend, self.log.layout.dtype) as through:
            return sweep(
                self.log, self.removal, curvature=curvature, diagonal=self.diagonal, losses=self.losses, options=self.options,
                advance=advance, through=through,
            )  # fmt: skip


@contextmanager
def replaying(device: torch.device | None, backend: str | None, dtype: torch.dtype) -> Iterator[DevicePanels | None]:
    """Where windows are replayed for a model on `device`: the panels of a GPU, or None and the host's backend chosen."""
    gpu = replay_device(device, backend, dtype)
    with (
        # a GPU's backend is for the windows alone: everything else lies on the host
        ops.use_backend(backend) if backend is not None and gpu is None else nullcontext(),
        DevicePanels(gpu, backend) if gpu is not None else nullcontext() as through,
    ):
        yield through


def open_log(log: StepLog | TrainingLogger | str | Path) -> StepLog:
    """The log behind what the user passed; a TrainingLogger's is brought up to date first."""
    if isinstance(log, TrainingLogger):
        return log.open()
    if isinstance(log, StepLog):
        log.refresh()
        return log
    return StepLog.open(log)


def prepare(
    model: nn.Module | None,
    log: StepLog,
    ids: Iterable[SampleId],
    *,
    level: str = "sample",
    hessian_mode: str = "auto",
    K: int = 800,
    damping: float = 1e-4,
    every: int = 1,
    tol: float | None = None,
    counterfactual: str | None = None,
    data: Any = None,
    loss_fn: LossFunction | None = None,
    diagonal: Tensor | None = None,
    micro_batch: int = 8,
    keep_state: bool = False,
    backend: str | None = None,
) -> Request:
    """Check the arguments against the log and resolve hessian_mode="auto". Nothing is computed.

    Raises ConfigurationError, WrongModelError, UnknownSampleError, ExpiredStepError, MissingDataError, UnsupportedOptimizerError.
    """
    if K < 0 or every < 1 or not 0 <= damping < math.inf or micro_batch < 1 or (tol is not None and tol <= 0):
        raise ConfigurationError(
            f"expected K >= 0, every >= 1, damping >= 0, micro_batch >= 1, tol > 0; found K={K}, every={every}, damping={damping}, "
            f"micro_batch={micro_batch}, tol={tol}"
        )
    if model is not None:
        log.layout.check(model)
    if keep_state and log.rule is None:
        raise UnsupportedOptimizerError(
            f"{log.manifest['optimizer']['class']} has no replay rule, so the state of a live optimizer cannot be corrected: "
            "continue with a new optimizer, or leave optimizer=None"
        )
    asked = normalize_ids(ids)
    removal = plan_removal(log, asked, level, counterfactual) if asked else {}
    source = data_source(data)
    losses = (
        LossGradients(model, log.layout, source, loss_fn, micro_batch)
        if model is not None and source is not None
        else None
    )
    mode, reason = _mode(hessian_mode, log, losses, diagonal)
    curvature = (LoggedDiagonal(log) if diagonal is None else diagonal.cpu()) if mode == "diag" else None
    request = Request(
        log, asked, level, counterfactual or DEFAULT_CONVENTION[level], removal, mode, reason, losses,
        curvature, SweepOptions(K, damping, every, tol, keep_state), backend,
        None if model is None else next(model.parameters()).device,
    )  # fmt: skip
    _require_vectors(request)
    return request


def _mode(asked: str, log: StepLog, losses: LossGradients | None, diagonal: Tensor | None) -> tuple[str, str]:
    if asked == "auto":
        return _automatic(log, losses, diagonal)
    if asked not in MODES:
        raise ConfigurationError(f"hessian_mode is one of {MODES} or 'auto', found {asked!r}")
    if asked in NEEDS_DATA and losses is None:
        raise MissingDataError(f'hessian_mode="{asked}" needs model and training samples: pass model and data=')
    if asked == "diag" and diagonal is not None and diagonal.shape != (log.layout.size,):
        raise ConfigurationError(f"diagonal has shape {tuple(diagonal.shape)}, expected ({log.layout.size},)")
    if log.rule is None and asked != "replay":
        raise UnsupportedOptimizerError(
            f"{log.manifest['optimizer']['class']} with these options has no replay rule (SGD, Adam and AdamW without amsgrad do): "
            'only hessian_mode="replay" with data= can serve this request'
        )
    return asked, "asked for"


def _automatic(log: StepLog, losses: LossGradients | None, diagonal: Tensor | None) -> tuple[str, str]:
    if log.rule is None:
        if losses is None:
            raise MissingDataError(
                f"{log.manifest['optimizer']['class']} has no replay rule: pass data= to retrain from the log's schedule"
            )
        return "replay", "the optimizer has no replay rule, so only retraining from the log's schedule serves it"
    if diagonal is not None:
        return "diag", "a diagonal was given"
    if log.rule.name == "adam":
        return (
            "none",
            "Adam normalises the gradient: the optimizer's state carries the influence, and the log alone serves it",
        )
    if losses is not None:
        return "replay", "without normalisation the curvature decides the deviation, and the data are there"
    return "none", "no data and no diagonal were given"


def _require_vectors(request: Request) -> None:
    """Find missing gradients now, not in the middle of the sweep."""
    if request.losses is not None or request.mode == "replay":
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


def check_optimizer(log: StepLog, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise ConfigurationError unless this optimizer trains the logged parameters of this model, by the logged rule."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not all(id(p) in held for p in log.layout.parameters(model)):
        raise ConfigurationError(
            "the optimizer does not hold this model's parameters: give the one that trains this very model"
        )
    found, logged = describe_optimizer(optimizer)["class"], log.manifest["optimizer"]["class"]
    if found != logged:
        raise ConfigurationError(f"this log was written with {logged}, the optimizer is {found}")


def check_weights(
    log: StepLog, model: nn.Module, audit_log: AuditLog | None, allow_changed: bool
) -> tuple[str, bool | None]:
    """(digest of the model's weights, whether they are the ones the log ends with).

    Accepted too: the weights that an earlier request in `audit_log` left behind. Raises WrongModelError otherwise.
    """
    head = log.head()
    digest = digest_tensors(log.layout.parameters(model), like=None if head is None else head["digest"])
    if head is None or head["step"] != log.steps.stop:
        return digest, None
    matches = head["digest"] == digest
    if not matches and not allow_changed and digest not in (audit_log.served(log.manifest["run"]) if audit_log else ()):
        raise WrongModelError(
            f"its weights after step {head['step'] - 1} have digest {head['digest'][:19]}, the model's have {digest[:19]}. Load the "
            "weights that this run ended with; after an earlier deletion pass the same audit_log, or allow_changed_weights=True"
        )
    return digest, matches
