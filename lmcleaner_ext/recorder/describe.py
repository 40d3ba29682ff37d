"""What the manifest says about an optimizer, and the hyper-parameters that each step really used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..optim import RULES

IGNORED = {"params", "param_names", "foreach", "fused", "capturable", "differentiable", "initial_lr"}


def rule_name(optimizer: torch.optim.Optimizer) -> str:
    """Key of the replay rule, or "" for an optimizer (or an option of it) that can be logged but not replayed."""
    name = {torch.optim.SGD: "sgd", torch.optim.Adam: "adam", torch.optim.AdamW: "adam"}.get(type(optimizer), "")
    if not name or len({bool(g["maximize"]) for g in optimizer.param_groups}) > 1:
        return ""
    groups = step_groups(optimizer)
    if any(RULES[name].accepts(group) for group in groups):
        return ""
    if len({RULES[name].kernel([group], True) for group in groups if group["weight_decay"]}) > 1:
        return ""  # L2 and decoupled decay side by side
    return name


def step_groups(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], ...]:
    """Each group's hyper-parameters as plain numbers, read at the moment of the step."""
    decoupled = isinstance(optimizer, torch.optim.AdamW)
    groups = []
    for group in optimizer.param_groups:
        values = {key: _plain(value) for key, value in group.items() if key not in IGNORED}
        if "betas" in values:
            values["decoupled_weight_decay"] = bool(values.get("decoupled_weight_decay", decoupled))
        groups.append(values)
    return tuple(groups)


def is_plain_sgd(optimizer: torch.optim.Optimizer) -> bool:
    """SGD without momentum: its update is its gradient."""
    return type(optimizer) is torch.optim.SGD and not any(g["momentum"] for g in optimizer.param_groups)


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    kind = type(optimizer)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "rule": rule_name(optimizer),
        "groups": step_groups(optimizer),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else repr(value)
