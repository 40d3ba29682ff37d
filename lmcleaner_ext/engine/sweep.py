"""One sweep over the log for a whole request (docs/method.md, sections 3 and 4).

    Delta[t] = sum of the removed samples' gradients + C[t] delta[t]        what the counterfactual gradient lacks
    the optimizer is run exactly on both sides;   delta[t+1] = theta[t+1] - theta'[t+1]

The range from the first use to `K` steps after the last is cut into windows. With no curvature (or a diagonal) and tracked gradients
it is one window: all steps while a block of parameters stays in registers. A window ends where theta[t] is needed: at every step for
the other curvatures, at every use for a gradient that must be recomputed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..curvature import Curvature, NoCurvature
from ..log import EncodedVector
from ..log.record import SampleId
from ..losses import LossGradients
from ..optim import StepPlan
from ..options import Options, option
from ..replay import StepLog
from ..replay.device_panels import DevicePanels
from ..replay.state import ReplayState, zeros
from ..replay.window import Injections, run_window
from . import fisher_window
from .clipping import clip_ratio
from .course import Course, injection_sign, not_finite
from .removal import StepRemoval
from .removed_gradient import RemovedGradient

TOLERANCE_STRIDE = 16  # steps between two looks at the deviation when `tol` may end the sweep early


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Options):
    """How far and how finely a deviation is carried."""

    K: int = option(800, "steps swept after the last use", at_least=0, unit="steps")
    damping: float = option(1e-4, "lambda, added to the curvature", at_least=0)
    every: int = option(1, "steps that share one curvature product", at_least=1, unit="steps")
    tol: float | None = option(
        None, f"stop early once the deviation changes by less than this share per {TOLERANCE_STRIDE} steps", above=0
    )


@dataclass
class SweepResult:
    """delta[tau] [P], what it takes to correct a live optimizer, and what the sweep did.

    state_deviation: {state name: factual - counterfactual [P]}; skipped: per parameter, the optimizer steps that
    the counterfactual did not take;
    end: the step after the last one swept; gamma: the largest growth of ||delta|| over a step without a use (step by step sweeps).
    """

    delta: Tensor
    delta_norm: float = 0.0
    state_deviation: dict[str, Tensor] = field(default_factory=dict)
    skipped: tuple[int, ...] = ()
    end: int = 0
    products: int = 0
    gradients_computed: int = 0
    bytes_read: int = 0
    gamma: float = 1.0


def sweep(
    log: StepLog,
    removal: Mapping[int, StepRemoval],
    *,
    curvature: Curvature | None = None,
    losses: LossGradients | None = None,
    options: SweepOptions | None = None,
    keep_state: bool = False,
    advance: Callable[[int], None] = lambda elements: None,
    through: DevicePanels | None = None,
) -> SweepResult:
    """delta[tau] = theta[tau] - theta_ideal[tau] to first order in the gradient, [P].

    curvature: the mode, default none; losses: derivatives of the samples' losses, needed for untracked samples and for the modes that
    use data; keep_state: the optimizer's state deviation is wanted too; advance: called with the number of parameters done, for a
    progress bar; through: the GPU that replays the windows, None for the host.

    Raises UnsupportedOptimizerError, MissingDataError, NumericalError, LogCorruptError, SlotOverwrittenError. Nothing outside changes.
    """
    return _Sweep(
        log, removal, curvature or NoCurvature(), losses, options or SweepOptions(), keep_state, advance, through
    ).run()


class _Sweep:
    """The sweep's working state; `run` is the story, the other methods are its steps."""

    def __init__(
        self,
        log: StepLog,
        removal: Mapping[int, StepRemoval],
        curvature: Curvature,
        losses: LossGradients | None,
        options: SweepOptions,
        keep_state: bool,
        advance: Callable[[int], None],
        through: DevicePanels | None,
    ):
        self.log, self.removal, self.options, self.keep_state = log, removal, options, keep_state
        self.advance, self.through = advance, through
        self.course = course = Course(log, [removal], options.K, curvature)
        self.last = max(removal)
        self.diagonal: Tensor | None = None  # of the window at hand
        self.damping = options.damping if curvature.damped else 0.0
        self.gradient = RemovedGradient(log, removal, curvature, losses, self.damping, options.every, course.steps.stop)
        self.fisher = options.every == 1 and fisher_window.in_coefficients(log, removal, curvature, course.steps)
        self.stepwise = not (curvature.elementwise or self.fisher) or course.clipped_step_by_step
        self.recompute = {t for t, r in removal.items() if self._must_recompute(r)}
        course.choose_inputs(theta=self.stepwise or bool(self.recompute))
        self.result = SweepResult(torch.empty(0))

    def _must_recompute(self, removal: StepRemoval) -> bool:
        if removal.skip or removal.nothing_left or not self.course.curvature.injects:
            return False
        return not all(self.log.tracks(removal.step, i) for i in removal.removed)

    def run(self) -> SweepResult:
        windows = self.course.windows(self._cuts())
        state, lead = self._start(len(windows))
        before = norm = 0.0
        for window in windows:
            self.diagonal = self.course.enter(state, window)
            squares = self._window(state, window, lead)
            if not math.isfinite(squares):
                raise not_finite(window.stop)
            lead, before, norm = 0, norm, math.sqrt(squares)
            self.result.end = window.stop
            if before and len(window) == 1 and window.start not in self.removal:
                self.result.gamma = max(self.result.gamma, norm / before)
            if window.start > self.last and self._settled(before, norm):
                break
        assert state.delta is not None
        self.result.delta, self.result.delta_norm = state.delta, norm
        self.result.skipped = tuple(a - b for a, b in zip(state.taken, state.taken_counterfactual[0], strict=True))
        self.result.products, self.result.gradients_computed = self.gradient.products, self.gradient.gradients_computed
        if self.keep_state:
            self._finish_state(state)
        return self.result

    def _cuts(self) -> set[int]:
        """Where a window must end besides: theta or a whole vector of the deviation is needed there, or a look at its size."""
        steps = self.course.steps
        cuts = set(steps) if self.stepwise else set(self.recompute)
        if self.fisher and self.last + 1 < steps.stop:
            cuts.add(self.last + 1)
        if self.options.tol is not None:
            cuts |= set(range(self.last + 1, steps.stop, TOLERANCE_STRIDE))
        return cuts

    def _start(self, windows: int) -> tuple[ReplayState, int]:
        """The state before the first window, and how many steps between anchor and first use that window must begin with."""
        course = self.course
        # whether theta[first] is needed before the first window
        alone = bool(course.lead) and course.parameters and (self.stepwise or course.steps.start in self.recompute)
        state = course.start(keep=self.keep_state or windows > 1 or alone)
        state.delta = zeros(self.log.layout.size, self.log.layout.dtype)
        if not alone:
            return state, course.lead
        self._run(state, [StepPlan()] * course.lead, Injections(), course.lead)
        return state, 0

    def _settled(self, before: float, norm: float) -> bool:
        tol = self.options.tol
        if tol is None or not before:
            return False
        return norm <= tol * before if self.course.rule.linear else abs(norm - before) <= tol * before

    # -- one window ---------------------------------------------------------------------------------------------------

    def _window(self, state: ReplayState, window: range, lead: int) -> float:
        if self.fisher:
            assert state.delta is not None
            squares, read = fisher_window.propagate(self.log, self.removal, state.delta, window, self.damping)
            self.result.bytes_read += read
            self.gradient.products += len(window)
            self.advance(self.log.layout.size)
            return squares
        removal = self.removal.get(window.start)
        if removal is not None and (removal.skip or removal.nothing_left) and len(window) == 1:
            return self._run(state, [*[StepPlan()] * lead, StepPlan(skip=removal.skip, keep=0.0)], Injections(), lead)
        if self.stepwise:
            assert state.theta is not None
            assert state.delta is not None
            plan, injections = self._dense(
                window.start, self.gradient.total(window.start, state.theta, state.delta), state.theta, 0
            )
            return self._run(state, [plan], injections, 0)
        plans, injections = self._elementwise(window, state, lead)
        return self._run(state, [*[StepPlan()] * lead, *plans], injections, lead)

    def _dense(self, step: int, removed: Tensor, theta: Tensor, at: int) -> tuple[StepPlan, Injections]:
        """Plan and injection of a step whose whole removed gradient is at hand."""
        scale = self.removal[step].scale if step in self.removal else 1.0
        record = self.log[step]
        response, ratio = clip_ratio(record, scale, removed, lambda: self.gradient.gradient(step, theta))
        vector = EncodedVector(removed, torch.empty(0, dtype=torch.uint8))
        return StepPlan(keep=scale * ratio), Injections([vector], [(at, scale * response * injection_sign(record))])

    def _elementwise(self, window: range, state: ReplayState, lead: int) -> tuple[list[StepPlan], Injections]:
        """Plans for all steps of a window, and its injections: tracked ones from the log, or one recomputed at its first step."""
        plans: list[StepPlan] = []
        uses: list[tuple[int, SampleId]] = []
        table: list[tuple[int, float]] = []
        recomputed: Injections | None = None
        curvature = float(self.diagonal is not None)
        for at, t in enumerate(window, start=lead):
            if t in self.recompute:
                assert state.theta is not None
                plan, recomputed = self._dense(t, self.gradient.injection(t, state.theta), state.theta, at)
                plans.append(StepPlan(False, plan.keep, self.removal[t].scale, curvature, self.damping))
                continue
            plan, weights = self.course.tracked_step(t, self.removal.get(t), curvature, self.damping)
            plans.append(plan)
            uses += [(t, identity) for identity in weights]
            table += [(at, weight) for weight in weights.values()]
        if not uses:
            return plans, recomputed or Injections()
        source = self.log.sample_window(uses)
        if recomputed is None:
            return plans, Injections(source.vectors, table, source)
        # one payload type per call: the tracked ones of later steps are decoded beside the recomputed one
        source.verify(0, self.log.layout.size)
        plain = [EncodedVector(source.decode(i, self.log.layout.dtype), source[i].scales[:0]) for i in range(len(uses))]
        return plans, Injections([*recomputed.vectors, *plain], [*recomputed.table, *table])

    def _run(self, state: ReplayState, plans: list[StepPlan], injections: Injections, lead: int) -> float:
        if injections.source is not None:  # from the log, not recomputed
            self.result.bytes_read += sum(v.nbytes for v in injections.vectors)
        if self.course.stream:
            steps = range(state.step, state.step + len(plans))
            self.result.bytes_read += sum(v.nbytes for v in self.log.window(steps, self.log.stream).vectors)
        return run_window(
            self.log, self.course.rule, state, plans, injections,
            stream=self.course.stream, lead=lead, diagonal=None if self.stepwise else self.diagonal, advance=self.advance,
            through=self.through,
        )  # fmt: skip

    def _finish_state(self, state: ReplayState) -> None:
        """Deviations of the optimizer's state. After a truncation nothing more is injected: they only decay to tau."""
        rule, rest = self.course.rule, range(self.result.end, self.log.steps.stop)
        for index, kept in enumerate(rule.states(self.log[self.course.steps.start].groups)):
            mine, other = state.factual[index], state.counterfactual[index]
            assert mine is not None
            assert other is not None
            deviation = other if rule.linear else mine - other
            for entry in self.log.layout.entries:
                groups = [self.log[t].groups[entry.group] for t in rest]
                decay = math.prod(kept.decay(group) for group in groups)
                if decay != 1:
                    deviation[entry.begin : entry.end] *= decay
            self.result.state_deviation[kept.name] = deviation
