"""What the logger takes from the live run besides the optimizer's gradients: an anchor's contents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import ParameterLayout


def run_state(
    layout: ParameterLayout, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, step: int
) -> dict[str, Tensor]:
    """{"theta": [P], each of the optimizer's state vectors: [P], "steps": the optimizer's counter of each parameter, -1: none yet}.

    Before step `step`; torch's SGD keeps no counter.
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
