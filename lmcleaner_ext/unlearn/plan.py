"""`plan`: what each mode would cost and whether it can run, without running it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..curvature import MODES
from ..errors import LMCleanerError
from ..log.record import SampleId, normalize_ids
from ..losses import LossFunction
from ..options import takes_options
from ..recorder import TrainingLogger
from ..replay import StepLog
from .options import RequestOptions
from .request import Request, open_log, prepare

PROBE = 1 << 22  # elements over which the replay's speed is measured


@dataclass(frozen=True)
class ModePlan:
    """One mode: can it run, and its estimated cost. `reason` says why not."""

    mode: str
    possible: bool
    reason: str
    steps: int = 0
    products: int = 0
    passes: int = 0  # forward-backward passes over a step's batch
    bytes_read: int = 0
    seconds: float | None = None  # None: needs the model and the data to be measured


@dataclass(frozen=True)
class Plan:
    """All modes for one request. `automatic` is what hessian_mode="auto" would choose."""

    modes: tuple[ModePlan, ...]
    automatic: str
    reason: str
    uses: int
    relearn: int

    def __getitem__(self, mode: str) -> ModePlan:
        return next(m for m in self.modes if m.mode == mode)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def __str__(self) -> str:
        lines = [f"{'mode':8s} {'steps':>6s} {'passes':>7s} {'read':>10s} {'time':>9s}"]
        for m in self.modes:
            if not m.possible:
                lines.append(f"{m.mode:8s} cannot run: {m.reason}")
                continue
            duration = "-" if m.seconds is None else f"{m.seconds:.1f} s"
            lines.append(f"{m.mode:8s} {m.steps:6d} {m.passes:7d} {m.bytes_read / 1e6:7.0f} MB {duration:>9s}")
        return "\n".join([*lines, f"auto: {self.automatic} ({self.reason})"])


@takes_options(RequestOptions)
def plan(
    model: nn.Module | None,
    log: StepLog | TrainingLogger | str | Path,
    ids: Iterable[SampleId],
    *,
    data: Any = None,
    loss_fn: LossFunction | None = None,
    diagonal: Tensor | None = None,
    **options: Any,
) -> Plan:
    """Cost of every hessian_mode for this request; nothing is changed and nothing is retrained.

    The replay's speed is measured on this machine on a few million elements, a forward-backward pass on one step's batch.

    Args:
        model: may be None: then only what the log alone can serve is possible.
        log, ids, data, loss_fn, diagonal: as in `unlearn`.
        **options

    Raises what `unlearn` raises for the ids and the model; a mode that cannot run is reported, not raised.
    """
    reader, asked = open_log(log), normalize_ids(ids)
    chosen = RequestOptions(**{**options, "hessian_mode": "auto"})
    automatic = prepare(model, reader, asked, chosen, data=data, loss_fn=loss_fn, diagonal=diagonal)
    per_element, per_pass = _replay_speed(), _pass_seconds(automatic)
    modes = []
    for mode in MODES:
        try:
            request = prepare(
                model, reader, asked, replace(chosen, hessian_mode=mode), data=data, loss_fn=loss_fn, diagonal=diagonal
            )
        except LMCleanerError as error:
            modes.append(ModePlan(mode, False, f"{type(error).__name__}: {error}"))
            continue
        modes.append(_cost(request, per_element, per_pass))
    return Plan(tuple(modes), automatic.mode, automatic.reason, len(automatic.removal), len(automatic.relearn_ids))


def _cost(request: Request, per_element: float, per_pass: float | None) -> ModePlan:
    log = request.log
    steps = len(request.steps_swept()) if request.removal else 0
    passes = request.curvature.passes * -(-steps // request.options.every)
    recomputed = sum(
        any(not log.tracks(t, i) for i in r.removed)
        for t, r in request.removal.items()
        if not r.skip and request.curvature.injects
    )
    vector = log.layout.size * ops.payload_dtype(log.dtype).itemsize
    seconds = steps * log.layout.size * per_element
    if passes + recomputed:
        seconds = None if per_pass is None else seconds + (passes + recomputed) * per_pass  # type: ignore[assignment]
    products = 0 if request.curvature.elementwise else -(-steps // request.options.every)
    return ModePlan(request.mode, True, request.reason, steps, products, passes + recomputed, steps * vector, seconds)


def _replay_speed() -> float:
    """Seconds per element and step of an AdamW replay here, over a window that does not fit the cache."""
    from ..optim import AdamRule, StepPlan

    group = {
        "lr": 1e-5,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "maximize": False,
        "decoupled_weight_decay": True,
    }
    steps = 8
    table = torch.from_numpy(AdamRule().coefficients([group] * steps, [StepPlan()] * steps, [False] * steps, 0, 0))[
        None
    ]
    gradient = ops.encode(torch.randn(PROBE), "fp16")
    tensors = [torch.zeros(PROBE) for _ in range(5)]
    segments = torch.tensor([[0, PROBE, 0]])
    empty = torch.zeros(0, 2, dtype=torch.float64)
    window = ops.ReplayWindow(
        tensors[0], None, tensors[1:3], tensors[3:], table, segments, [gradient] * steps, [], empty, None, "adamw"
    )
    started = time.perf_counter()
    ops.optimizer_replay_window_(window)
    return (time.perf_counter() - started) / (PROBE * steps)


def _pass_seconds(request: Request) -> float | None:
    """Seconds of one forward-backward pass over the first affected step's batch, at the model's present weights."""
    if request.losses is None or not request.removal:
        return None
    removal = next(iter(request.removal.values()))
    layout = request.log.layout
    theta = layout.flatten(layout.parameters(request.losses.model)).cpu()
    started = time.perf_counter()
    request.losses.gradient(theta, {**removal.retained, **removal.removed})
    return time.perf_counter() - started
