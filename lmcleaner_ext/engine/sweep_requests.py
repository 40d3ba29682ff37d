"""Several independent requests in one sweep over the log: what the weights would be without each of them.

Every request has its own deviation and counterfactual optimizer; the log and the factual side are read and stepped once. It
serves what the log alone can serve: no curvature or a diagonal, tracked samples and whole steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from torch import Tensor

from ..curvature.diagonal import LoggedDiagonal
from ..errors import ConfigurationError, NumericalError, UnsupportedOptimizerError
from ..log.record import SampleId
from ..optim import StepPlan
from ..replay import StepLog
from ..replay.device_panels import DevicePanels
from ..replay.state import ReplayState, state_from_anchor
from ..replay.window import Injections, run_window
from .removal import StepRemoval
from .sweep import SweepOptions, tracked_step


def sweep_requests(
    log: StepLog,
    removals: Sequence[Mapping[int, StepRemoval]],
    *,
    diagonal: Tensor | LoggedDiagonal | None = None,
    options: SweepOptions | None = None,
    advance: Callable[[int], None] = lambda elements: None,
    through: DevicePanels | None = None,
) -> Tensor:
    """delta[tau] of each request as `sweep` gives it for that request alone, [requests, P]; none of the removals is empty.

    Each is truncated K steps after its own last use. Raises as `sweep` does, and ConfigurationError where the deviation has to be
    taken step by step (clipped runs with a diagonal or from updates).
    """
    options, rule = options or SweepOptions(), log.rule
    if rule is None:
        raise UnsupportedOptimizerError(f"{log.manifest['optimizer']['class']} has no replay rule")
    first = min(min(removal) for removal in removals)
    ends = [min(log.steps.stop, max(removal) + 1 + options.K) for removal in removals]
    steps = range(first, max(ends))
    clipped = any(log[t].max_norm is not None for t in steps)
    if clipped and (diagonal is not None or not log.gradients):
        raise ConfigurationError(
            "this run was clipped, and with a diagonal or from updates its counterfactual clip factors are known only step by step: "
            "call compute_correction for one request after the other"
        )
    groups = [group for t in steps for group in log[t].groups]
    kinds = [StepPlan(skip=r.skip, keep=0.0 if r.nothing_left else r.scale) for x in removals for r in x.values()]
    kinds += [StepPlan(keep=0.5)] * clipped  # the ratio of the clip factors is not 1
    parameters = rule.needs_parameters(groups, kinds, log.gradients)
    stream = parameters or rule.needs_stream(groups, kinds)

    corrections = {a.step: a for a in log.anchors() if a.corrected and first < a.step < steps.stop}
    cuts = {first, steps.stop, *corrections}
    if isinstance(diagonal, LoggedDiagonal):
        cuts |= {t for t in diagonal.steps if first < t < steps.stop}
    windows = [range(a, b) for a, b in pairwise(sorted(cuts))]

    anchor = log.anchor_before(first)
    state = state_from_anchor(log, anchor, rule, parameters=parameters, stream=stream, keep=len(windows) > 1)
    state.split(len(removals), log.layout)
    lead = first - anchor.step if stream else 0
    if not stream:
        state.count(log, first)
    for window in windows:
        if window.start in corrections:
            state.rebase(corrections[window.start], rule.state_names(log[window.start].groups), rule.name)
        h = diagonal.at(window.start) if isinstance(diagonal, LoggedDiagonal) else diagonal
        damping = 0.0 if h is None else options.damping
        plans, injections = _plans(log, removals, ends, window, lead, float(h is not None), damping)
        squares = run_window(
            log, rule, state, plans, injections, stream=stream, lead=lead, diagonal=h, advance=advance, through=through
        )
        if not math.isfinite(squares):
            raise NumericalError(
                f"the deviation of {_not_finite(state)} is not finite by step {window.stop}: nothing was changed. Use a larger "
                'damping, a smaller K, or hessian_mode="none"'
            )
        lead = 0
    assert state.delta is not None
    return state.delta


def _plans(
    log: StepLog,
    removals: Sequence[Mapping[int, StepRemoval]],
    ends: Sequence[int],
    window: range,
    lead: int,
    curvature: float,
    damping: float,
) -> tuple[list[list[StepPlan]], Injections]:
    """Each request's plans for a window that begins with `lead` factual steps, and all their injections."""
    gain = -1.0 if log[window.start].groups[0].get("maximize") else 1.0
    plans: list[list[StepPlan]] = []
    uses: list[tuple[int, SampleId]] = []
    table: list[tuple[float, ...]] = []
    for request, (removal, end) in enumerate(zip(removals, ends, strict=True)):
        own = [StepPlan()] * lead
        for at, t in enumerate(window, start=lead):
            if t >= end:
                own.append(StepPlan(frozen=True))
                continue
            plan, weights = tracked_step(log, t, removal.get(t), curvature, damping)
            own.append(plan)
            uses += [(t, identity) for identity in weights]
            table += [(at, weight * gain, request) for weight in weights.values()]
        plans.append(own)
    if not uses:
        return plans, Injections()
    source = log.sample_window(uses)
    return plans, Injections(source.vectors, table, source)


def _not_finite(state: ReplayState) -> str:
    assert state.delta is not None
    bad = [str(r) for r, delta in enumerate(state.delta) if not math.isfinite(float(delta.double().square().sum()))]
    return f"request {', '.join(bad)}"
