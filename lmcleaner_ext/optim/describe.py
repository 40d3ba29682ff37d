"""An optimizer as the log knows it: its rule, the hyper-parameters that each step really used, its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layout import ParameterLayout
from . import RULES, SERVED
from .rule import Rule

IGNORED = {"params", "param_names", "foreach", "fused", "capturable", "differentiable", "initial_lr"}


def rule_of(optimizer: torch.optim.Optimizer) -> Rule | None:
    """The replay rule; None for an optimizer (or an option of it) that can be logged but not replayed."""
    return None if in_the_way(optimizer) else _family(type(optimizer))


def in_the_way(optimizer: torch.optim.Optimizer) -> str | None:
    """Why an optimizer has no replay rule, None where it has one."""
    rule, groups = _family(type(optimizer)), step_groups(optimizer)
    if rule is None:
        return f"the optimizers with a rule are {SERVED}"
    for reason in map(rule.accepts, groups):
        if reason:
            return reason
    if len({bool(group.get("maximize")) for group in groups}) > 1:
        return "one group maximises and another one minimises"
    if len({rule.kernel([group], True) for group in groups if group["weight_decay"]}) > 1:
        return "one group has L2 and another one decoupled weight decay"
    return None


def step_groups(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], ...]:
    """Each group's hyper-parameters as plain numbers, read at the moment of the step."""
    rule = _family(type(optimizer))
    groups = []
    for group in optimizer.param_groups:
        values = {key: _plain(value) for key, value in group.items() if key not in IGNORED}
        groups.append(values if rule is None else rule.hyperparameters(optimizer, values))
    return tuple(groups)


def _family(kind: type) -> Rule | None:
    return next((rule for rule in RULES.values() if rule.serves(kind)), None)


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """{"class", "rule": its key or "" where there is none, then with the reason, "groups"}: what the manifest says."""
    kind, rule = type(optimizer), rule_of(optimizer)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        **({"rule": "", "reason": in_the_way(optimizer)} if rule is None else {"rule": rule.name}),
        "groups": step_groups(optimizer),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else repr(value)


def run_state(
    layout: ParameterLayout, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, step: int
) -> dict[str, Tensor]:
    """{"theta": [P], each of the optimizer's state vectors: [P], "steps": the optimizer's counter of each parameter, -1: none yet}.

    Before step `step`, which is the count of an optimizer that keeps none.
    """
    tensors = {"theta": layout.flatten(parameters)}
    steps = []
    for entry, p in zip(layout.entries, parameters, strict=True):
        state = optimizer.state.get(p, {})
        steps.append(float(state["step"]) if "step" in state else (float(max(1, step)) if state else -1.0))
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape and name != "step":
                if name not in tensors:
                    tensors[name] = torch.zeros_like(tensors["theta"])
                tensors[name][entry.begin : entry.end].copy_(value.reshape(-1))
    tensors["steps"] = torch.tensor(steps, dtype=torch.float64)
    return tensors
