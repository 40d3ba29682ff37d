"""The counterfactual run itself: train again along the log's schedule, without the forgotten samples.

Same starting weights, batches, learning rates, clipping bounds. The gradient comes from the data and the step from torch's own optimizer,
so nothing here shares code with the replay rules: this is the oracle that `verify` measures against.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..engine import StepRemoval
from ..engine.removal import split_weights
from ..errors import UnsupportedOptimizerError
from ..losses import LossGradients
from ..replay import StepLog

GradientFunction = Callable[[Tensor, Mapping[Any, float]], Tensor]


def retrain(
    log: StepLog,
    removal: Mapping[int, StepRemoval],
    losses: LossGradients,
    *,
    progress: bool | None = None,
    from_start: bool = False,
) -> Tensor:
    """theta_ideal[tau], [P], by real training from the newest anchor at or before the first use (or the oldest anchor: `from_start`).

    An empty removal retrains the factual run, which shows how far floating-point noise alone leads away. Raises MissingDataError,
    UnsupportedOptimizerError (an optimizer class that is not torch's).
    """
    first = min(removal, default=log.steps.stop - 1)
    anchor = log.anchor_before(log.steps.start if from_start else first)
    theta = anchor.tensor("theta").to(log.layout.dtype)
    optimizer, parameters = _optimizer_at(log, anchor.step, theta)
    steps = range(anchor.step, log.steps.stop)
    for t in tqdm(steps, desc="retrain", unit="step", disable=None if progress is None else not progress):
        step_removal, record = removal.get(t), log[t]
        if step_removal is not None and step_removal.skip:
            continue
        retained = step_removal.retained if step_removal is not None else split_weights(record, frozenset())[1]
        scale = step_removal.scale if step_removal is not None else 1.0
        gradient = losses.gradient(theta, retained) * scale
        if record.max_norm is not None:
            norm = float(gradient.double().norm())
            gradient *= min(1.0, record.max_norm / (norm + 1e-6))
        for group, logged in zip(optimizer.param_groups, record.groups, strict=True):
            group.update({k: tuple(v) if isinstance(v, list) else v for k, v in logged.items() if k in group})
        for index, (p, view) in enumerate(zip(parameters, log.layout.views(gradient), strict=True)):
            p.grad = None if index in record.absent else view
        optimizer.step()
    return theta


def _optimizer_at(log: StepLog, step: int, theta: Tensor) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
    """torch's optimizer over views of `theta` [P], with its state as the anchor at `step` holds it."""
    path = log.manifest["optimizer"]["class"]
    module, _, name = path.rpartition(".")
    if not module.startswith("torch.optim"):
        raise UnsupportedOptimizerError(
            f"{path} is not one of torch.optim's optimizers: this log cannot be retrained from here"
        )
    parameters = [torch.nn.Parameter(view) for view in log.layout.views(theta)]
    groups = []
    for index, logged in enumerate(log.manifest["optimizer"]["groups"]):
        members = [p for p, entry in zip(parameters, log.layout.entries, strict=True) if entry.group == index]
        options = {
            k: tuple(v) if isinstance(v, list) else v for k, v in logged.items() if k != "decoupled_weight_decay"
        }
        groups.append({"params": members, **options})
    optimizer: torch.optim.Optimizer = getattr(importlib.import_module(module), name)(groups)
    anchor = log.anchor_before(step)
    taken, state = anchor.tensor("steps").tolist(), anchor.state_names()
    flat = {key: anchor.tensor(key).to(theta.dtype) for key in state}
    for p, entry, k in zip(parameters, log.layout.entries, taken, strict=True):
        if k >= 0:
            values: dict[str, Any] = {
                key: flat[key][entry.begin : entry.end].view(entry.shape).clone() for key in state
            }
            if not isinstance(optimizer, torch.optim.SGD):  # the only one that counts no steps
                values["step"] = torch.tensor(k)
            optimizer.state[p].update(values)
    return optimizer, parameters
