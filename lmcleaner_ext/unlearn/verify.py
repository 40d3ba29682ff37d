"""`verify`: retrain the counterfactual and measure how close each mode comes to it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigurationError, LMCleanerError
from ..evaluation import residual
from ..log.record import SampleId, normalize_ids
from ..losses import LossFunction, LossGradients, data_source, to_device
from ..options import takes_options
from ..recorder import TrainingLogger
from ..replay import StepLog
from .options import RequestOptions
from .request import open_log, prepare
from .retrain import retrain


@dataclass(frozen=True)
class ModeReport:
    """One mode against retraining: residual rho, KL ratio on the forgotten samples (None: no logits), seconds, bytes of log read."""

    mode: str
    residual: float
    kl_ratio: float | None
    seconds: float
    bytes_read: int
    error: str | None = None

    @property
    def harmful(self) -> bool:
        """Worse than doing nothing."""
        return self.residual >= 1


@dataclass(frozen=True)
class VerifyReport:
    """All modes, and the retraining they are measured against.

    noise_floor: ||retrained factual run - trained model|| / ||trained - ideal||, what floating point alone costs (None: not measured).
    """

    modes: tuple[ModeReport, ...]
    retrain_seconds: float
    distance: float
    steps: int
    noise_floor: float | None = None

    def __getitem__(self, mode: str) -> ModeReport:
        return next(m for m in self.modes if m.mode == mode)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def __str__(self) -> str:
        lines = [f"{'mode':10s} {'residual':>9s} {'KL ratio':>9s} {'seconds':>8s} {'speed-up':>8s}"]
        for m in self.modes:
            kl = "-" if m.kl_ratio is None else f"{m.kl_ratio:.4f}"
            tail = f"  {m.error}" if m.error else ("  worse than doing nothing" if m.harmful else "")
            lines.append(
                f"{m.mode:10s} {m.residual:9.4f} {kl:>9s} {m.seconds:8.2f} {self.retrain_seconds / max(m.seconds, 1e-9):7.1f}x{tail}"
            )
        return "\n".join([*lines, f"retraining took {self.retrain_seconds:.2f} s over {self.steps} steps"])


@takes_options(RequestOptions, without=("hessian_mode",))
def verify(
    model: nn.Module,
    log: StepLog | TrainingLogger | str | Path,
    ids: Iterable[SampleId],
    *,
    data: Any,
    loss_fn: LossFunction | None = None,
    diagonal: Tensor | None = None,
    modes: Sequence[str] = ("none", "exact"),
    noise_floor: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> VerifyReport:
    """Retrain without `ids` along the log's schedule; residual and KL ratio of each mode (docs/method.md, section 2).

    The model is not changed.

    Args:
        model, log, ids, data, loss_fn, diagonal: as in `unlearn`; data is needed to retrain.
        modes: those to measure.  noise_floor: retrain the factual run too.  progress: bar on or off.
        **options

    Raises what `unlearn` raises; ConfigurationError where the ids had no influence on the weights.
    """
    reader = open_log(log)
    chosen = RequestOptions(**options, hessian_mode="replay" if reader.rule is None else "none")
    losses = LossGradients(model, reader.layout, data_source(data), loss_fn, chosen.micro_batch)
    asked, given = normalize_ids(ids), {"data": data, "loss_fn": loss_fn, "diagonal": diagonal}
    request = prepare(model, reader, asked, chosen, **given)
    if not request.removal:
        raise ConfigurationError("no ids were given: there is nothing to verify")
    started = time.perf_counter()
    ideal = retrain(reader, request.removal, losses, progress=progress, from_start=True)
    seconds = time.perf_counter() - started
    trained = reader.layout.flatten(reader.layout.parameters(model)).cpu()
    distance = float((trained - ideal).double().norm())
    forgotten = sorted({i for r in request.removal.values() for i in r.removed}, key=repr)
    reports = []
    for mode in modes:
        started = time.perf_counter()
        try:
            swept = prepare(model, reader, asked, replace(chosen, hessian_mode=mode), **given).sweep()
        except LMCleanerError as error:
            reports.append(
                ModeReport(
                    mode, float("nan"), None, time.perf_counter() - started, 0, f"{type(error).__name__}: {error}"
                )
            )
            continue
        estimate, taken = trained - swept.delta, time.perf_counter() - started
        ratio = _kl_ratio(losses, forgotten, ideal, estimate, trained)
        reports.append(ModeReport(mode, residual(estimate, ideal, trained), ratio, taken, swept.bytes_read))
    floor = None
    if noise_floor:
        again = retrain(reader, {}, losses, progress=progress, from_start=True)
        floor = float((again - trained).double().norm()) / distance
    return VerifyReport(tuple(reports), seconds, distance, reader.steps.stop - reader.steps.start, floor)


@torch.no_grad()
def _kl_ratio(
    losses: LossGradients, ids: Sequence[SampleId], ideal: Tensor, estimate: Tensor, trained: Tensor
) -> float | None:
    """KL(p_ideal || p_estimate) / KL(p_ideal || p_trained) over the forgotten samples' scored positions."""
    outputs = getattr(losses.loss_fn, "outputs", None)
    if outputs is None or losses.data is None:
        return None
    sums = [0.0, 0.0]
    for at in range(0, len(ids), losses.micro_batch):
        batch = to_device(losses.data(list(ids[at : at + losses.micro_batch])), losses.device)
        logits = {}
        for name, theta in (("ideal", ideal), ("estimate", estimate), ("trained", trained)):
            values, targets, _ = losses.call(losses.parameters(theta), batch, outputs)
            logits[name] = values.reshape(-1, values.shape[-1])[targets.reshape(-1) != -100].double().log_softmax(-1)
        for index, name in enumerate(("estimate", "trained")):
            sums[index] += float((logits["ideal"].exp() * (logits["ideal"] - logits[name])).sum())
    return sums[0] / sums[1] if sums[1] > 0 else None
