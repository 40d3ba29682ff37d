"""Several independent requests in one sweep over the log: what the weights would be without each of them.

Every request has its own deviation and counterfactual optimizer; the log and the factual side are read and stepped once. It
serves what the log alone can serve: no curvature or a diagonal, tracked samples and whole steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ..curvature import Curvature, NoCurvature
from ..errors import ConfigurationError
from ..log.record import SampleId
from ..optim import StepPlan
from ..replay import StepLog
from ..replay.device_panels import DevicePanels
from ..replay.state import ReplayState
from ..replay.window import Injections, run_window
from .course import Course, not_finite
from .removal import StepRemoval
from .sweep import SweepOptions


def sweep_requests(
    log: StepLog,
    removals: Sequence[Mapping[int, StepRemoval]],
    *,
    curvature: Curvature | None = None,
    options: SweepOptions | None = None,
    advance: Callable[[int], None] = lambda elements: None,
    through: DevicePanels | None = None,
) -> Tensor:
    """delta[tau] of each request as `sweep` gives it for that request alone, [requests, P]; none of the removals is empty.

    curvature: an elementwise mode, default none. Each request is truncated K steps after its own last use. Raises as `sweep` does, and
    ConfigurationError where the deviation has to be taken step by step (clipped runs with a diagonal or from updates).
    """
    options, curvature = options or SweepOptions(), curvature or NoCurvature()
    course = Course(log, removals, options.K, curvature)
    if course.clipped_step_by_step:
        raise ConfigurationError(
            "this run was clipped, and with a diagonal or from updates its counterfactual clip factors are known only step by step: "
            "call compute_correction for one request after the other"
        )
    course.choose_inputs()
    windows, lead = course.windows(), course.lead
    state = course.start(keep=len(windows) > 1)
    state.split(len(removals), log.layout)
    for window in windows:
        h = course.enter(state, window)
        damping = options.damping if curvature.damped else 0.0
        plans, injections = _plans(course, window, lead, float(h is not None), damping)
        squares = run_window(
            log, course.rule, state, plans, injections,
            stream=course.stream, lead=lead, diagonal=h, advance=advance, through=through,
        )  # fmt: skip
        if not math.isfinite(squares):
            raise not_finite(window.stop, f" of request {_overflown(state)}")
        lead = 0
    assert state.delta is not None
    return state.delta


def _plans(
    course: Course, window: range, lead: int, curvature: float, damping: float
) -> tuple[list[list[StepPlan]], Injections]:
    """Each request's plans for a window that begins with `lead` factual steps, and all their injections."""
    plans: list[list[StepPlan]] = []
    uses: list[tuple[int, SampleId]] = []
    table: list[tuple[float, ...]] = []
    for request, (removal, end) in enumerate(zip(course.removals, course.ends, strict=True)):
        own = [StepPlan()] * lead
        for at, t in enumerate(window, start=lead):
            if t >= end:
                own.append(StepPlan(frozen=True))
                continue
            plan, weights = course.tracked_step(t, removal.get(t), curvature, damping)
            own.append(plan)
            uses += [(t, identity) for identity in weights]
            table += [(at, weight, request) for weight in weights.values()]
        plans.append(own)
    if not uses:
        return plans, Injections()
    source = course.log.sample_window(uses)
    return plans, Injections(source.vectors, table, source)


def _overflown(state: ReplayState) -> str:
    assert state.delta is not None
    bad = [str(r) for r, delta in enumerate(state.delta) if not math.isfinite(float(delta.double().square().sum()))]
    return ", ".join(bad)
