"""Run the replay kernel over a range of steps, panel of parameters by panel.

A panel is what one checksum chunk holds: its bytes of every step are verified and then used while they are still in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..log import EncodedVector, StepLog
from ..optim import Rule, StepPlan
from .panel_stream import PanelStream, panel_elements
from .state import ReplayState, coefficient_table

NOTHING = torch.empty(0)  # for the kernel: zeros, not wanted afterwards
PANEL_BYTES = 1 << 20  # of one step's payload: the ring's checksum chunk
STATE_BYTES = 7 * 4  # per element of a panel, at most: delta, theta, two states on both sides, the diagonal


@dataclass(frozen=True)
class Injections:
    """Gradients taken out at single steps of a window: vectors, and (local step, weight) for each of them, by step."""

    vectors: Sequence[EncodedVector] = ()
    table: Sequence[tuple[int, float]] = ()
    verify: Callable[[int, int], None] | None = None


def run_window(
    log: StepLog,
    rule: Rule,
    state: ReplayState,
    plans: Sequence[StepPlan],
    injections: Injections,
    *,
    stream: bool,
    lead: int = 0,
    diagonal: Tensor | None = None,
    advance: Callable[[int], None] = lambda elements: None,
    through: PanelStream | None = None,
) -> float:
    """Take `state` through len(plans) steps in place; returns the sum of delta^2 (float64; not finite after an overflow).

    The first `lead` steps are factual only. `through`: the GPU that computes; log and state stay on the host.
    Raises LogCorruptError, SlotOverwrittenError; the state is then unusable.
    """
    steps = range(state.step, state.step + len(plans))
    groups = [group for t in steps for group in log[t].groups]
    coefficients, segments = coefficient_table(log, rule, state, steps, plans)
    kernel = rule.kernel(groups, log.gradients)
    window = log.window(steps, "gradient" if log.gradients else "update", lease=True) if stream else None
    nothing = EncodedVector(NOTHING, torch.empty(0, dtype=torch.uint8))
    table = torch.tensor(injections.table, dtype=torch.float64).view(-1, 2)
    size, dtype = log.layout.size, log.layout.dtype
    itemsize = ops.payload_dtype(log.dtype).itemsize
    panel = PANEL_BYTES // itemsize
    if through is not None:
        panel = panel_elements(len(plans) * itemsize + STATE_BYTES, panel)
    no_delta = torch.zeros(min(panel, size), dtype=dtype)  # a rebuild has no deviation: it stays zero
    total = 0.0
    for begin in range(0, size, panel):
        end = min(begin + panel, size)
        if window is not None:
            window.verify(begin, end)
        if injections.verify is not None:
            injections.verify(begin, end)
        gradients = [v.narrow(begin, end) for v in window.vectors] if window is not None else [nothing] * len(plans)
        removed = [v.narrow(begin, end) for v in injections.vectors]
        arguments = (
            no_delta[: end - begin] if state.delta is None else state.delta[begin:end],
            None if state.theta is None else state.theta[begin:end],
            [NOTHING if x is None else x[begin:end] for x in state.factual],
            [NOTHING if x is None else x[begin:end] for x in state.counterfactual],
            coefficients,
            _clip_segments(segments, begin, end),
            [v.payload for v in gradients],
            [v.scales for v in gradients],
            [v.payload for v in removed],
            [v.scales for v in removed],
            table,
            None if diagonal is None else diagonal[begin:end],
            kernel,
            lead,
        )
        if through is not None:
            through.submit(*arguments)
        else:
            total += float(ops.optimizer_replay_window_(*arguments))
        advance(end - begin)
    if through is not None:
        total = through.finish()
    if window is not None:
        window.check()
    state.step = steps.stop
    return total


def _clip_segments(segments: Tensor, begin: int, end: int) -> Tensor:
    """The segments' parts within [begin, end), counted from `begin`."""
    inside = segments[(segments[:, 1] > begin) & (segments[:, 0] < end)].clone()
    inside[:, :2] = (inside[:, :2] - begin).clamp(0, end - begin)
    return inside
