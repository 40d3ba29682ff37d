"""The numbers a replay carries from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..layout import ParameterLayout
from ..log import LogReader
from ..log.anchors import Anchor
from ..optim import Rule
from ..optim.rule import State


@dataclass
class ReplayState:
    """delta, theta [P] and the optimizer state on both sides before step `step`.

    A state tensor that is None is all zeros and not wanted afterwards: the window then keeps it in scratch memory, which saves
    4 P bytes of traffic each. `taken` counts each parameter's optimizer steps (they differ where a parameter had no gradient), and
    `taken_counterfactual` those of each request. With R requests delta and the counterfactual state are [R, P].
    """

    step: int
    delta: Tensor | None
    theta: Tensor | None
    factual: list[Tensor | None]
    counterfactual: list[Tensor | None]
    taken: list[int]
    taken_counterfactual: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.taken_counterfactual = self.taken_counterfactual or [list(self.taken)]

    def count(self, log: LogReader, step: int) -> None:
        """Move to `step` without replaying: a linear rule's deviation depends on nothing before its first use but the counters."""
        for index in range(len(self.taken)):
            present = sum(index not in log[t].absent for t in range(self.step, step))
            self.taken[index] += present
            for own in self.taken_counterfactual:
                own[index] += present
        self.step = step

    def split(self, requests: int, layout: ParameterLayout) -> None:
        """Give each of several requests its own deviation, zero, and its own counterfactual state."""
        self.delta = zeros((requests, layout.size), layout.dtype)
        self.counterfactual = [None if x is None else x.expand(requests, -1).clone() for x in self.counterfactual]
        self.taken_counterfactual = [list(self.taken) for _ in range(requests)]

    def rebase(self, anchor: Anchor, rule: Rule, states: Sequence[State]) -> None:
        """The run was corrected online here: go on from its new parameters and state, keeping this request's own deviations."""
        if self.theta is not None:
            self.theta = anchor.tensor("theta").to(self.theta.dtype)
        for index, kept in enumerate(states):
            mine, other = self.factual[index], self.counterfactual[index]
            assert mine is not None
            assert other is not None
            fresh = anchor.tensor(kept.name).to(mine.dtype)
            if not rule.linear:  # a linear rule's counterfactual state is the deviation itself
                other.add_(fresh - mine)
                if kept.non_negative:
                    other.clamp_(min=0)
            self.factual[index] = fresh
        if rule.counts:  # the correction may have taken steps out of the optimizer's counters
            for index, steps in enumerate(anchor.tensor("steps").tolist()):
                for own in self.taken_counterfactual:
                    own[index] += max(0, int(steps)) - self.taken[index]
                self.taken[index] = max(0, int(steps))


def zeros(size: int | tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros whose memory comes, in huge pages, when the kernel's threads first touch it: NumPy's allocator does that,
    torch's writes the zeros here and now."""
    return torch.from_numpy(np.zeros(size, dtype=str(dtype).removeprefix("torch.")))


def state_from_anchor(
    log: LogReader, anchor: Anchor, rule: Rule, *, parameters: bool, stream: bool, keep: bool
) -> ReplayState:
    """The factual state at an anchor, the counterfactual equal to it.

    parameters: load theta.  stream: the logged vectors will be read, so the factual state is advanced and must be loaded.
    keep: the final state is wanted, so nothing stays in scratch memory.
    """
    at = anchor.step if anchor.step in log.steps else log.steps.stop - 1
    names, present = rule.state_names(log[at].groups), anchor.names()
    size, dtype = log.layout.size, log.layout.dtype

    def load(name: str) -> Tensor | None:
        if name in present and stream:
            return anchor.tensor(name).to(dtype)
        return zeros(size, dtype) if keep else None

    factual = [load(name) for name in names]
    if rule.linear:  # its counterfactual state is a deviation, and starts at zero
        counterfactual = [zeros(size, dtype) if keep else None for _ in names]
    else:
        counterfactual = [None if tensor is None else tensor.clone() for tensor in factual]
    steps = anchor.tensor("steps").tolist()
    return ReplayState(
        step=anchor.step,
        delta=None,
        theta=anchor.tensor("theta").to(dtype) if parameters else None,
        factual=factual,
        counterfactual=counterfactual,
        taken=[max(0, int(k)) for k in steps],
    )
