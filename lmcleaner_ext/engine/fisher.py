"""hessian_mode="fisher" of plain SGD from the log alone: windows in coefficients (curvature/fisher_window.py) instead of steps."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..curvature import Curvature
from ..curvature.fisher import Fisher
from ..curvature.fisher_window import fisher_window_, steps_at_once
from ..log import FactoredWindow, StepLog, VectorWindow
from .removal import StepRemoval


def in_coefficients(
    log: StepLog, removal: Mapping[int, StepRemoval], curvature: Curvature | None, steps: range
) -> bool:
    """Whether every step is v <- v - lr (g g^T v + damping v + removed) with one lr for all parameters and all of it logged."""
    if not isinstance(curvature, Fisher) or log.rule is None or log.rule.name != "sgd":
        return False
    for t in steps:
        record = log[t]
        group = record.groups[0]
        alike = all((g["lr"], g["weight_decay"]) == (group["lr"], group["weight_decay"]) for g in record.groups)
        plain = not any(g["momentum"] or g["maximize"] for g in record.groups)
        gradient = log.gradients or (group["weight_decay"] == 0 and group["lr"] != 0)  # else g is not -u / lr
        if not (alike and plain and gradient) or record.absent or record.max_norm is not None:
            return False
    return all(
        not r.skip and not r.nothing_left and r.scale == 1 and all(log.tracks(t, i) for i in r.removed)
        for t, r in removal.items()
    )


def propagate(
    log: StepLog, removal: Mapping[int, StepRemoval], delta: Tensor, steps: range, damping: float
) -> tuple[float, int]:
    """Take `delta` [P] through `steps` in place: (sum of delta^2, bytes read). Raises LogCorruptError, SlotOverwrittenError."""
    squares, read, at_once = 0.0, 0, steps_at_once(delta.device)
    for begin in range(steps.start, steps.stop, at_once):
        piece = range(begin, min(begin + at_once, steps.stop))
        groups = [log[t].groups[0] for t in piece]
        uses = [(t, i, w) for t in piece if t in removal for i, w in removal[t].removed.items()]
        sources: list[VectorWindow | FactoredWindow] = [log.window(piece, log.stream)]
        if uses:
            sources.append(log.sample_window([(t, identity) for t, identity, _ in uses]))
        for source in sources:
            source.verify(0, log.layout.size)
        vectors = [[(v.payload, v.scales) for v in source.vectors] for source in sources]
        squares = float(
            fisher_window_(
                delta,
                vectors[0],
                [(g["lr"], damping + g["weight_decay"]) for g in groups],
                vectors[1] if uses else (),
                [(t - begin, weight, 0) for t, _, weight in uses],
                scales=None if log.gradients else [-1 / g["lr"] for g in groups],
            )
        )
        for source in sources:
            source.check()
            read += sum(v.nbytes for v in source.vectors)
    return squares, read
