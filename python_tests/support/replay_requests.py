"""Several requests in one call of `optimizer_replay_window_`: requests that differ in every way they may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmcleaner_ext import ops
from lmcleaner_ext.ops import coefficients as column
from support.backends import device_of
from support.replay_cases import Case, Inputs, Vectors, build, moved


def differing(case: Case) -> list[Case]:
    """Five requests on one factual side: samples, re-averaged, skipped steps, curvature, and a truncated one."""
    last = case.steps - 1
    base = case.flags

    def flagged(flag: int, steps: Sequence[int]) -> dict[tuple[int, int], int]:
        added = {(c, t): flag for c in range(case.classes) for t in steps}
        return {at: base.get(at, 0) | added.get(at, 0) for at in {**base, **added}}

    return [
        case,
        replace(case, keep=1.3, injections=((min(1, last), 1.0), (last, -0.5)), seed=case.seed + 1),
        replace(case, flags=flagged(column.SKIP, [last // 3, last]), injections=(), seed=case.seed + 2),
        replace(case, damping=0.01, injections=((last // 2, 2.0),), seed=case.seed + 3),
        replace(
            case,
            flags=flagged(column.FACTUAL_ONLY, range(last // 2 + 1, case.steps)),
            injections=((0, 1.0), (last, 1.0)),  # the second comes too late to count
            seed=case.seed + 4,
        ),
    ]


@dataclass
class Requests:
    """Inputs of one call, and of each request as a call of its own."""

    alone: list[Inputs]

    @property
    def case(self) -> Case:
        return self.alone[0].case

    def start(self, dtype: torch.dtype, device: str = "cpu") -> Vectors:
        starts = [inputs.start for inputs in self.alone]
        return Vectors(
            torch.stack([x.delta for x in starts]),
            starts[0].theta,
            starts[0].state,
            [torch.stack(list(rows)) for rows in zip(*(x.counterfactual for x in starts), strict=True)],
        ).to(dtype, device)

    def window(self, vectors: Vectors) -> ops.ReplayWindow:
        """The op's argument, on the device of `vectors`."""
        first, device = self.alone[0], vectors.delta.device
        table = [(*row, r) for r, inputs in enumerate(self.alone) for row in inputs.injection_table.tolist()]
        return ops.ReplayWindow(
            vectors.delta, vectors.theta, vectors.state, vectors.counterfactual,
            torch.stack([inputs.coefficients for inputs in self.alone]), first.segments,
            [moved(vector, device) for vector in first.gradients],
            [moved(vector, device) for inputs in self.alone for vector in inputs.injections],
            torch.tensor(table, dtype=torch.float64).view(-1, 3),
            None if first.diagonal is None else first.diagonal.to(vectors.delta), self.case.rule, self.case.lead,
        )  # fmt: skip

    def run(self, vectors: Vectors, backend: str | None = None) -> Tensor:
        return ops.optimizer_replay_window_(self.window(vectors), backend=backend)

    def outcome(self, dtype: torch.dtype, backend: str | None = None) -> tuple[Vectors, Tensor]:
        """The vectors after one call for all requests, and the sums of delta^2 [R]."""
        vectors = self.start(dtype, device_of(backend))
        squares = self.run(vectors, backend)
        return vectors.to(dtype), squares.cpu()


def build_requests(cases: Sequence[Case]) -> Requests:
    """The first case gives the factual side; every other brings its own start, injections and coefficients."""
    first = build(cases[0])
    alone = [first]
    for case in cases[1:]:
        own = build(case)
        start = Vectors(own.start.delta, first.start.theta, first.start.state, own.start.counterfactual)
        if case.rule not in ("sgd", "update"):  # both sides close, as they are in a run
            pairs = zip(first.start.state, own.start.state, own.start.counterfactual, strict=True)
            start.counterfactual = [mine * (other / theirs).nan_to_num(1.0) for mine, theirs, other in pairs]
        alone.append(replace(own, start=start, gradients=first.gradients, diagonal=first.diagonal))
    return Requests(alone)


def row(vectors: Vectors, request: int) -> Vectors:
    """What one request sees of `vectors`."""
    return Vectors(vectors.delta[request], vectors.theta, vectors.state, [x[request] for x in vectors.counterfactual])
