"""hessian_mode="fisher" of plain SGD from the log alone: windows of steps in coefficients instead of vectors.

    v[t+1] = (1 - lr[t] damping[t]) v[t] - lr[t] (g[t] (g[t]^T v[t]) + removed[t])

All that the steps need of the vectors is a[t] = g[t]^T v[t]. With P(s, t) the product of (1 - lr damping) from step s to t - 1,

    (I + L) a = b      L[t, s] = P(s+1, t) lr[s] <g[t], g[s]>  for s < t
                       b[t]    = P(0, t) <g[t], v[0]> - sum over s < t of P(s+1, t) lr[s] <g[t], removed[s]>
    v[T] = P(0, T) v[0] - sum over s of P(s+1, T) lr[s] (a[s] g[s] + removed[s])

One Gram matrix of the window serves every request; then one combination (the compact WY form of a product of rank-one
updates: Schreiber and Van Loan, 1989). Two passes over the log instead of two per step and request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .. import ops
from ..curvature import Curvature
from ..curvature.fisher import Fisher
from ..log import FactoredWindow, VectorWindow
from ..ops import Vector
from ..replay import StepLog
from .removal import StepRemoval


def in_coefficients(log: StepLog, removal: Mapping[int, StepRemoval], curvature: Curvature, steps: range) -> bool:
    """Whether every step is v <- v - lr (g g^T v + damping v + removed) with one lr for all parameters and all of it logged."""
    if not isinstance(curvature, Fisher) or log.rule is None:
        return False
    for t in steps:
        record = log[t]
        group = record.groups[0]
        alike = all((g["lr"], g["weight_decay"]) == (group["lr"], group["weight_decay"]) for g in record.groups)
        plain = log.rule.plain(record.groups) and not any(g["maximize"] for g in record.groups)
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
        vectors = [[ops.EncodedVector(v.payload, v.scales) for v in source.vectors] for source in sources]
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


def steps_at_once(device: torch.device) -> int:
    """A Gram matrix costs K^2 / 2 products per element: longer windows are cut into pieces that memory, not arithmetic, limits.

    On a GPU the steps and their requests should fit one group of 32 vectors.
    """
    return 16 if device.type == "cuda" else 8


def fisher_window_(
    v: Tensor,
    gradients: Sequence[Vector],
    coefficients: Sequence[tuple[float, float]],
    removed: Sequence[Vector] = (),
    removed_table: Sequence[tuple[int, float, int]] = (),
    scales: Sequence[float] | None = None,
) -> Tensor:
    """Propagate v in place through len(gradients) steps; returns the sum of v^2 of each request, float64 [R] or [].

    Args:
        v: [n], or [R, n] for R requests; float32 or float64.
        gradients: x[t] [n] with g[t] = scales[t] x[t]: logged gradients, or logged updates with scales -1 / lr.
        coefficients: (lr, damping) of each step.
        removed: encoded vectors [n], in gradient units.
        removed_table: (step, weight, request) of each, sorted by step.
        scales: None: all one.

    Raises ConfigurationError.
    """
    requests = v.unsqueeze(0) if v.dim() == 1 else v
    scale = [1.0] * len(gradients) if scales is None else scales
    at_once = steps_at_once(v.device)
    for begin in range(0, len(gradients), at_once):
        end = min(begin + at_once, len(gradients))
        here = [(i, row) for i, row in enumerate(removed_table) if begin <= row[0] < end]
        _piece(
            requests,
            gradients[begin:end],
            torch.tensor(scale[begin:end], dtype=torch.float64),
            coefficients[begin:end],
            [removed[i] for i, _ in here],
            [(step - begin, weight, request) for _, (step, weight, request) in here],
        )
    squares = torch.stack([ops.dot(request, request) for request in requests.unbind()])
    return squares[0] if v.dim() == 1 else squares


def _piece(
    v: Tensor,
    gradients: Sequence[Vector],
    scale: Tensor,
    coefficients: Sequence[tuple[float, float]],
    removed: Sequence[Vector],
    table: Sequence[tuple[int, float, int]],
) -> None:
    steps, requests = len(gradients), len(v)
    products = ops.gram([*gradients, *v.unbind(), *removed], rows=steps).cpu()  # [T, T + R + I]
    products[:, :steps] *= scale
    products *= scale[:, None]

    lr = torch.tensor([x for x, _ in coefficients], dtype=torch.float64)
    keep = torch.tensor([1 - x * damping for x, damping in coefficients], dtype=torch.float64)
    # remaining[s, t] = P(s, t): what is left at t of something that is there before step s, [T + 1, T + 1]
    remaining = torch.zeros(steps + 1, steps + 1, dtype=torch.float64)
    for s in range(steps + 1):
        remaining[s, s:] = torch.cat([torch.ones(1, dtype=torch.float64), keep[s:].cumprod(0)])
    later = remaining[1:].T  # [T + 1, T]: what is left at t of what step s added, P(s + 1, t); zero for s >= t

    # of removed vector i in request r, as step s adds it
    share = torch.zeros(len(table), requests, dtype=torch.float64)
    added = torch.zeros(steps, len(table), dtype=torch.float64)  # whether it is step s that adds it
    for i, (step, weight, request) in enumerate(table):
        share[i, request], added[step, i] = weight * float(lr[step]), 1
    left = later @ added  # [T + 1, I]
    right = remaining[0, :steps, None] * products[:, steps : steps + requests]
    right -= (products[:, steps + requests :] * left[:steps]) @ share
    lower = torch.eye(steps, dtype=torch.float64) + later[:steps] * lr * products[:, :steps]
    a = torch.linalg.solve_triangular(lower, right, upper=False)  # [T, R]

    if bool((keep != 1).any()):
        v *= float(remaining[0, steps])
    weights = torch.cat([(later[steps] * lr * scale)[:, None] * a, left[steps][:, None] * share])  # [T + I, R]
    ops.combine([*gradients, *removed], -weights.T.contiguous(), v)
