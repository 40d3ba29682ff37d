"""The course of a sweep through the log, for one request or several: which steps, in which windows, from what, and where it starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from torch import Tensor

from ..curvature import Curvature
from ..errors import NumericalError, UnsupportedOptimizerError
from ..log import StepRecord
from ..log.record import SampleId
from ..optim import Rule, StepPlan
from ..replay import StepLog
from ..replay.state import ReplayState, state_from_anchor
from .clipping import tracked_clip_ratio
from .removal import StepRemoval


class Course:
    """The steps from the first use by any of the requests to K steps after the last one.

    removals: of each request, none of them empty; ends: the step after each request's last one; corrections: the anchors where the
    run was corrected online within the course; clipped: whether any of its steps was clipped through the log.
    After `choose_inputs`: parameters, stream: whether theta and the logged vectors are read; lead: how many steps between an anchor
    and the first use the first window begins with.

    Raises UnsupportedOptimizerError.
    """

    def __init__(
        self,
        log: StepLog,
        removals: Sequence[Mapping[int, StepRemoval]],
        K: int,
        curvature: Curvature,
    ):
        if log.rule is None:
            raise UnsupportedOptimizerError(log.without_rule)
        self.log, self.removals, self.curvature = log, removals, curvature
        self.rule: Rule = log.rule
        self.ends = [min(log.steps.stop, max(removal) + 1 + K) for removal in removals]
        self.steps = range(min(min(removal) for removal in removals), max(self.ends))
        self.corrections = {a.step: a for a in log.anchors() if a.corrected and a.step in self.steps[1:]}
        self.clipped = any(log[t].max_norm is not None for t in self.steps)
        self.parameters = self.stream = False
        self.lead = 0

    @property
    def clipped_step_by_step(self) -> bool:
        """The counterfactual clip factor is a global number: with a diagonal, or from updates, it is known only step by step."""
        diagonal = self.curvature.diagonal_at(self.steps.start) is not None
        return self.clipped and (diagonal or not self.log.gradients)

    def choose_inputs(self, theta: bool = False) -> None:
        """Whether the logged vectors and theta enter at all: a linear rule needs neither where only samples are taken out.

        theta: it is needed whatever the rule says.
        """
        groups = [group for t in self.steps for group in self.log[t].groups]
        plans = [
            StepPlan(skip=r.skip, keep=0.0 if r.nothing_left else r.scale)
            for removal in self.removals
            for r in removal.values()
        ]
        if self.clipped:
            plans.append(StepPlan(keep=0.5))  # the ratio of the clip factors is not 1
        self.parameters = theta or self.rule.needs_parameters(groups, plans, self.log.gradients)
        self.stream = self.parameters or self.rule.needs_stream(groups, plans)
        self._anchor = self.log.anchor_before(self.steps.start)
        self.lead = self.steps.start - self._anchor.step if self.stream else 0

    def windows(self, cuts: Iterable[int] = ()) -> list[range]:
        """The course cut at online corrections, where the diagonal changes, and before these steps."""
        changes = [t for t in self.curvature.changes() if t in self.steps]
        ends = {self.steps.start, self.steps.stop, *self.corrections, *changes, *cuts}
        return [range(a, b) for a, b in pairwise(sorted(ends))]

    def start(self, keep: bool) -> ReplayState:
        """The state at the anchor or, where no logged vectors are read, at the first use; keep: nothing of it in scratch memory."""
        state = state_from_anchor(
            self.log, self._anchor, self.rule, parameters=self.parameters, stream=self.stream, keep=keep
        )
        if not self.stream:
            state.count(self.log, self.steps.start)
        return state

    def enter(self, state: ReplayState, window: range) -> Tensor | None:
        """Before a window: take the state over to a run that was corrected online here. Returns the diagonal that holds in it."""
        if window.start in self.corrections:
            states = self.rule.states(self.log[window.start].groups)
            state.rebase(self.corrections[window.start], self.rule, states)
        return self.curvature.diagonal_at(window.start)

    def tracked_step(
        self, step: int, removal: StepRemoval | None, curvature: float, damping: float
    ) -> tuple[StepPlan, dict[SampleId, float]]:
        """(the plan of a step, {sample id: weight of its tracked gradient among the injections})."""
        if removal is None or removal.skip or removal.nothing_left:
            skip, keep = (False, 1.0) if removal is None else (removal.skip, 0.0)
            return StepPlan(skip, keep, 1.0, curvature, damping), {}
        record = self.log[step]
        response, ratio = tracked_clip_ratio(self.log, record, removal)
        factor = injection_sign(record)
        weights = {identity: weight * removal.scale * response * factor for identity, weight in removal.removed.items()}
        return StepPlan(False, removal.scale * ratio, removal.scale, curvature, damping), weights


def injection_sign(record: StepRecord) -> float:
    """What the kernel takes out is in the optimizer's sign."""
    return -1.0 if record.groups[0].get("maximize") else 1.0


def not_finite(step: int, whose: str = "") -> NumericalError:
    """The error for a deviation that has left the numbers by this step; whose: " of request 3"."""
    return NumericalError(
        f"the deviation{whose} is not finite by step {step}: nothing was changed. Use a larger damping, a smaller K, or "
        'hessian_mode="none"'
    )
