"""The correction as a vector, and putting it into a model: theta_hat = theta - delta, exactly undoable."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..curvature import StepView, curvature_mode
from ..errors import ConfigurationError
from ..layout import ParameterLayout
from ..log import StepRecord
from ..losses import LossFunction, LossGradients, data_source
from ..ops import cpu
from ..options import takes_options
from ..recorder import TrainingLogger
from ..replay import StepLog
from .options import RequestOptions
from .request import open_log, prepare

CHUNK = 1 << 20  # elements handled while they are in the cache


@torch.no_grad()
def apply_correction(model: nn.Module, v: Tensor, layout: ParameterLayout | None = None) -> Tensor:
    """theta <- theta - v in place; returns the previous parameters in v's own memory ([P], v is overwritten).

    v: [P] in `named_parameters()` order over the trainable parameters, float32 or float64. Raises ConfigurationError for another size.
    """
    exchange(model, v, layout or ParameterLayout.of(model))
    return v


@torch.no_grad()
def exchange(model: nn.Module, v: Tensor, layout: ParameterLayout) -> tuple[float, float]:
    """`apply_correction`; returns the parameters' Euclidean norms before and after, taken while they are in the cache."""
    if v.shape != (layout.size,):
        raise ConfigurationError(
            f"the correction has shape {tuple(v.shape)}, this model has {layout.size} trainable elements"
        )
    before = after = 0.0
    for p, part in zip(layout.parameters(model), layout.views(v), strict=True):
        if p.device.type == "cpu" and p.dtype == v.dtype == torch.float32 and p.is_contiguous() and v.is_contiguous():
            squares_before, squares_after = cpu.exchange_(p.data, part)
            before, after = before + squares_before, after + squares_after
            continue
        weights, buffer = p.data.view(-1) if p.is_contiguous() else p.data.reshape(-1), part.view(-1)
        for at in range(0, len(buffer), CHUNK):
            w, b = weights[at : at + CHUNK], buffer[at : at + CHUNK]
            corrected = w - b.to(w.device)
            before += squares(w)
            b.copy_(w)
            w.copy_(corrected)
            after += squares(w)
        if not p.is_contiguous():
            p.copy_(weights.view(p.shape))
    return math.sqrt(before), math.sqrt(after)


def squares(x: Tensor) -> float:
    """Sum of squares [n], accumulated in float64."""
    x = x.float() if x.dtype == torch.float16 else x  # as a payload, float16 would need block exponents
    return float(ops.dot(x, x))


@takes_options(RequestOptions)
def compute_correction(
    model: nn.Module | None,
    log: StepLog | TrainingLogger | str | Path,
    ids: Any,
    *,
    data: Any = None,
    loss_fn: LossFunction | None = None,
    diagonal: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """delta[tau] = theta[tau] - theta_ideal[tau], [P] float32 (float64 for float64 models); nothing is changed.

    Args:
        model: may be None where the mode needs none (the log alone decides).
        log, ids, data, loss_fn, diagonal: as in `unlearn`.
        **options
    """
    chosen = RequestOptions(**options)
    request = prepare(model, open_log(log), ids, chosen, data=data, loss_fn=loss_fn, diagonal=diagonal)
    if not request.removal:
        return torch.zeros(request.log.layout.size, dtype=request.log.layout.dtype)
    return request.sweep().delta


def hvp_apply(
    mode: str,
    v: Tensor,
    record: StepRecord,
    *,
    theta: Tensor | None = None,
    model: nn.Module | None = None,
    data: Any = None,
    loss_fn: LossFunction | None = None,
    damping: float = 0.0,
    diagonal: Tensor | None = None,
    micro_batch: int = RequestOptions.micro_batch,
) -> Tensor:
    """(C + damping I) v for one logged step, [P] (docs/method.md, section 5).

    mode: "none", "diag" (diagonal=h [P]), "fisher" (the record's gradient), "ggn" or "exact" (model, data, and theta, default the
    model's own parameters), over all samples of the record with their weights. "none" is zero, damping included.
    """
    curvature = curvature_mode(mode).of(None, diagonal)
    losses = None
    if model is not None:
        layout = ParameterLayout.of(model)
        losses = LossGradients(model, layout, data_source(data), loss_fn, micro_batch)
        theta = layout.flatten(layout.parameters(model)) if theta is None else theta
    weights: dict[Any, float] = {}
    for identity, weight in zip(record.sample_ids, record.weights.tolist(), strict=True):
        weights[identity] = weights.get(identity, 0.0) + weight
    view = StepView(record.step, v if theta is None else theta, record.gradient, lambda: None, weights, losses)
    product = curvature.product(view, v)
    return product + damping * v if curvature.damped else product
