"""An optimizer as the log knows it: its rule, the hyper-parameters that each step really used, its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layout import ParameterLayout
from . import RULES
from .rule import Rule

IGNORED = {"params", "param_names", "foreach", "fused", "capturable", "differentiable", "initial_lr"}


def rule_of(optimizer: torch.optim.Optimizer) -> Rule | None:
    """The replay rule; None for an optimizer (or an option of it) that can be logged but not replayed."""
    rule, groups = _family(type(optimizer)), step_groups(optimizer)
    if rule is None or any(rule.accepts(group) for group in groups):
        return None
    signs = {bool(group.get("maximize")) for group in groups}
    kernels = {
        rule.kernel([group], True) for group in groups if group["weight_decay"]
    }  # L2 and decoupled decay are two
    return rule if len(signs) == 1 and len(kernels) <= 1 else None


def step_groups(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], ...]:
    """Each group's hyper-parameters as plain numbers, read at the moment of the step."""
    rule = _family(type(optimizer))
    groups = []
    for group in optimizer.param_groups:
        values = {key: _plain(value) for key, value in group.items() if key not in IGNORED}
        groups.append(values if rule is None else rule.hyperparameters(type(optimizer), values))
    return tuple(groups)


def _family(kind: type) -> Rule | None:
    return next((rule for rule in RULES.values() if rule.serves(kind)), None)


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """{"class", "rule": its key or "" where there is none, "groups"}: what the manifest says."""
    kind, rule = type(optimizer), rule_of(optimizer)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "rule": "" if rule is None else rule.name,
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
