"""Gradient clipping is part of the optimizer: the counterfactual gradient has another norm, hence another factor.

    factual  c = min(1, M / (n + 1e-6));    n'^2 = s^2 (n^2 - 2 <g, D> + |D|^2);    c' = min(1, M / (n' + 1e-6))

g, D: gradient and removed part before clipping; s: the convention's rescaling. The 1e-6 is torch.nn.utils.clip_grad_norm_'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from .. import ops
from ..log import StepRecord
from ..replay import StepLog
from .removal import StepRemoval


def clip_factor(norm: float, max_norm: float) -> float:
    return min(1.0, max_norm / (norm + 1e-6))


def clip_ratio(
    record: StepRecord, scale: float, removed: Tensor, gradient: Callable[[], Tensor]
) -> tuple[float, float]:
    """(c', c'/c) for a dense removed part [P]; (1, 1) where the step was not clipped through the log."""
    if record.max_norm is None or record.clip_norm is None:
        return 1.0, 1.0
    squares = record.clip_norm**2 - 2 * float(ops.dot(gradient(), removed)) + float(ops.dot(removed, removed))
    factor = clip_factor(scale * math.sqrt(max(squares, 0.0)), record.max_norm)
    return factor, factor / record.clip_factor


def tracked_clip_ratio(log: StepLog, record: StepRecord, removal: StepRemoval) -> tuple[float, float]:
    """The same from the log alone, for removed samples whose gradients are tracked."""
    if record.max_norm is None or record.clip_norm is None:
        return 1.0, 1.0
    samples = log.sample_window([(record.step, identity) for identity in removal.removed])
    step = log.window([record.step], "gradient")
    for source in (samples, step):
        source.verify(0, log.layout.size)
    weights = list(removal.removed.values())
    pairs = [(v.payload, v.scales) for v in samples.vectors]
    mine = (step[0].payload, step[0].scales)
    squares = record.clip_norm**2
    for i, (vector, weight) in enumerate(zip(pairs, weights, strict=True)):
        squares -= 2 * weight * float(ops.dot(mine, vector)) / record.clip_factor
        squares += weight**2 * float(ops.dot(vector, vector))
        squares += sum(2 * weight * weights[j] * float(ops.dot(vector, pairs[j])) for j in range(i))
    factor = clip_factor(removal.scale * math.sqrt(max(squares, 0.0)), record.max_norm)
    return factor, factor / record.clip_factor
