"""What the logger takes from the live run besides the optimizer's gradients: an anchor's contents, one sample's own gradient."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..layout import ParameterLayout
from ..losses import LossFunction, evaluation_mode
from .factors import LinearFactors


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


def sample_gradient(
    model: nn.Module, loss_fn: LossFunction, inputs: Any, parameters: Sequence[Tensor], factors: LinearFactors | None
) -> Sequence[Tensor | None]:
    """grad l(z; theta[t]) of one row, without a trace in the run: no .grad, no random numbers, no buffers.

    With `factors` without the parts that come from linear layers: those wait in it, for `factors.record`.
    """
    buffers = [(b, b.clone()) for b in model.buffers()]
    watching = nullcontext() if factors is None else factors.watching()
    with torch.random.fork_rng(), torch.enable_grad(), evaluation_mode(model), watching:
        loss = loss_fn(model, inputs).sum()
        gradients: Sequence[Tensor | None] = (
            torch.autograd.grad(loss, parameters, allow_unused=True) if factors is None else factors.gradients(loss)
        )
    with torch.no_grad():
        for buffer, saved in buffers:
            buffer.copy_(saved)
    return gradients
