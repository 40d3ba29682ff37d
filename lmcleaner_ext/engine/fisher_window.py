"""The Fisher recursion of plain SGD over a window of the log, in coefficients instead of vectors.

    v[t+1] = (1 - lr[t] damping[t]) v[t] - lr[t] (g[t] (g[t]^T v[t]) + removed[t])

All that the steps need of the vectors is a[t] = g[t]^T v[t]. With P(s, t) the product of (1 - lr damping) from step s to t - 1,

    (I + L) a = b      L[t, s] = P(s+1, t) lr[s] <g[t], g[s]>  for s < t
                       b[t]    = P(0, t) <g[t], v[0]> - sum over s < t of P(s+1, t) lr[s] <g[t], removed[s]>
    v[T] = P(0, T) v[0] - sum over s of P(s+1, T) lr[s] (a[s] g[s] + removed[s])

One Gram matrix of the window serves every request; then one combination (the compact WY form of a product of rank-one
updates: Schreiber and Van Loan, 1989). Two passes over the log instead of two per step and request.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from ..ops.vector import Vector


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

    share = torch.zeros(
        len(table), requests, dtype=torch.float64
    )  # of removed vector i in request r, as step s adds it
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
