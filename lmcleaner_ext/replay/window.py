"""Run the replay kernel over a range of steps, panel of parameters by panel.

The CPU kernel takes the log's checksums in the pass in which it reads. For the others a panel is what one checksum chunk
holds: its bytes of every step are verified and then used while they are still in the cache. A window that is not in memory,
or does not fit, is read past the page cache, one panel ahead of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from .. import ops
from ..errors import LogCorruptError
from ..log import EncodedVector, FactoredVector, FactoredWindow, LogReader, VectorWindow
from ..ops import cpu, dispatch
from ..optim import Rule, StepPlan
from .device_panels import DevicePanels, panel_elements
from .state import ReplayState, coefficient_table

NOTHING = torch.empty(0)  # for the kernel: zeros, not wanted afterwards
CHUNK_BYTES = 1 << 20  # of one step's payload: what a checksum of the ring covers
# Per thread, where the kernel verifies: enough that threads seldom wait for each other at a panel's end, few enough for a smooth
# progress bar.
CHUNKS_PER_PANEL = 16
ENOUGH_RESIDENT = 0.5  # of a window in the page cache; below it, reading past the cache is faster
PRODUCT_BYTES = 256 << 20  # of a panel's tracked gradients that are kept as factors
FACTUAL_BYTES = 4 * 4  # per element of a panel, at most: theta, two states, the diagonal
REQUEST_BYTES = 3 * 4  # delta and two states


@dataclass(frozen=True)
class Injections:
    """Gradients taken out at single steps of a window: vectors, and (local step, weight) for each of them, by step; with several
    requests (local step, weight, request), by request and then by step."""

    vectors: Sequence[EncodedVector | FactoredVector] = ()
    table: Sequence[tuple[float, ...]] = ()
    source: VectorWindow | FactoredWindow | None = None  # where the vectors lie in a log, and are not verified yet


def run_window(
    log: LogReader,
    rule: Rule,
    state: ReplayState,
    plans: Sequence[StepPlan] | Sequence[Sequence[StepPlan]],
    injections: Injections,
    *,
    stream: bool,
    lead: int = 0,
    diagonal: Tensor | None = None,
    advance: Callable[[int], None] = lambda elements: None,
    through: DevicePanels | None = None,
) -> float:
    """Take `state` through the planned steps in place; returns the sum of delta^2 (float64; not finite after an overflow).

    plans: one per step, or, where the state is that of several requests, for each request one per step.
    The first `lead` steps are factual only. `through`: the GPU that computes; log and state stay on the host.
    Raises LogCorruptError, SlotOverwrittenError; the state is then unusable.
    """
    several = state.delta is not None and state.delta.dim() == 2
    requests: Sequence[Any] = plans if several else [plans]
    steps = range(state.step, state.step + len(requests[0]))
    groups = [group for t in steps for group in log[t].groups]
    coefficients, segments = coefficient_table(log, rule, state, steps, requests)
    kernel = rule.kernel(groups, log.gradients)
    window = log.window(steps, "gradient" if log.gradients else "update", lease=True) if stream else None
    table = torch.tensor(injections.table, dtype=torch.float64).view(-1, 3 if several else 2)
    size, dtype = log.layout.size, log.layout.dtype
    itemsize = ops.payload_dtype(log.dtype).itemsize
    chunk = CHUNK_BYTES // itemsize
    sources = [source for source in (window, injections.source) if source is not None]
    past_the_cache = through is None and window is not None and window.resident() < ENOUGH_RESIDENT
    in_the_kernel = through is None and not past_the_cache and _kernel_verifies(dtype)
    # factors are verified where they are multiplied
    checks = [source.checks for source in sources if isinstance(source, VectorWindow)] if in_the_kernel else []
    panel = chunk * CHUNKS_PER_PANEL * torch.get_num_threads() if checks else chunk
    if isinstance(injections.source, FactoredWindow):  # of which a panel is computed in memory
        panel = min(panel, max(1, PRODUCT_BYTES // (len(injections.vectors) * dtype.itemsize * chunk)) * chunk)
    if through is not None:
        panel = panel_elements(len(steps) * itemsize + FACTUAL_BYTES + len(requests) * REQUEST_BYTES, chunk)
    if past_the_cache:
        assert window is not None
        panels = window.panels()  # verified already
        unverified = [source for source in sources if source is not window]
    else:
        panels = _mapped_panels(window, len(steps), size, panel)
        unverified = sources
    read_directly = None
    if through is not None and through.direct is not None and window is not None:
        read_directly = partial(through.direct.read, window)
        window.verify(0, 0)  # the block exponents; the payloads are checked when they come back from the device
        unverified = [source for source in sources if source is not window]
    # without a deviation (it is rebuilt) it stays zero, and a panel's room for it serves the next one too
    no_delta = torch.zeros(min(panel, size) if state.delta is None else 0, dtype=dtype)
    whole = ops.ReplayWindow(
        no_delta if state.delta is None else state.delta,
        state.theta,
        [NOTHING if x is None else x for x in state.factual],
        [NOTHING if x is None else x for x in state.counterfactual],
        coefficients if several else coefficients[0],
        segments,
        (),
        cast("Sequence[EncodedVector]", injections.vectors),  # what lies in factors is made dense where it is narrowed
        table,
        diagonal,
        kernel,
        lead,
    )
    total = 0.0
    for begin, end, gradients in panels:
        part = replace(whole.narrow(begin, end), gradients=gradients)
        if state.delta is None:
            part = replace(part, delta=no_delta[: end - begin])
        if checks:
            squares = cpu.optimizer_replay_verified_(part, checks, begin // chunk, chunk)
            if squares is None:
                _name_the_damage(sources, begin, end)
            total += squares
        else:
            for source in unverified:
                source.verify(begin, end)
            if through is not None:
                through.submit(part, read=None if read_directly is None else read_directly(begin, end))
            else:
                total += float(ops.optimizer_replay_window_(part).sum())
        advance(end - begin)
    if through is not None:
        total = through.finish()
    for source in sources:
        source.check()
    state.step = steps.stop
    return total


def _mapped_panels(
    window: VectorWindow | None, steps: int, size: int, panel: int
) -> Iterator[tuple[int, int, list[EncodedVector]]]:
    """(begin, end, the logged vectors' elements [begin, end) where they are mapped); without a window they are zeros."""
    nothing = EncodedVector(NOTHING, torch.empty(0, dtype=torch.uint8))
    for begin in range(0, size, panel):
        end = min(begin + panel, size)
        yield begin, end, [nothing] * steps if window is None else [v.narrow(begin, end) for v in window.vectors]


def _kernel_verifies(dtype: torch.dtype) -> bool:
    return dispatch.select("optimizer_replay_window_", torch.device("cpu"), dtype) is cpu.optimizer_replay_window_


def _name_the_damage(sources: Sequence[VectorWindow | FactoredWindow], begin: int, end: int) -> NoReturn:
    """Raise LogCorruptError or SlotOverwrittenError for what the kernel has noticed."""
    for source in sources:
        source.verify(begin, end)
        source.check()
    raise LogCorruptError(-1, -1, f"the log changed while elements {begin} to {end} were read: run the request again")
