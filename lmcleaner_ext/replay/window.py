"""Run the replay kernel over a range of steps, panel of parameters by panel: a source (panels.py) gives them, a runner computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol, cast

import torch
from torch import Tensor

from .. import ops
from .._native import CHUNK
from ..errors import LogCorruptError
from ..log import EncodedVector, FactoredVector, FactoredWindow, LogReader, VectorWindow
from ..ops import cpu, dispatch
from ..optim import Rule, StepPlan
from .device_panels import DevicePanels, panel_elements
from .panels import Mapped, Panel, Source, source_of
from .state import ReplayState
from .table import coefficient_table

Vectors = VectorWindow | FactoredWindow
NOTHING = torch.empty(0)  # for the kernel: zeros, not wanted afterwards
CHUNK_BYTES: int = CHUNK  # of one step's payload
# Per thread, where the kernel verifies: enough that threads seldom wait for each other at a panel's end, few enough for a smooth
# progress bar.
CHUNKS_PER_PANEL = 16
PRODUCT_BYTES = 256 << 20  # of a panel's tracked gradients that are kept as factors
FACTUAL_BYTES = 4 * 4  # per element of a panel, at most: theta, two states, the diagonal
REQUEST_BYTES = 3 * 4  # delta and two states


@dataclass(frozen=True)
class Injections:
    """Gradients taken out at single steps of a window: vectors, and (local step, weight) for each of them, by step; with several
    requests (local step, weight, request), by request and then by step."""

    vectors: Sequence[EncodedVector | FactoredVector] = ()
    table: Sequence[tuple[float, ...]] = ()
    source: Vectors | None = None  # where the vectors lie in a log, and are not verified yet


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
    coefficients, segments = coefficient_table(log, rule, state, steps, requests)
    window = log.window(steps, log.stream, lease=True) if stream else None
    direct = None if through is None else through.direct
    source = source_of(window, len(steps), host=through is None, direct=direct)
    runner = _runner(log, source, injections, len(steps), len(requests), through)
    size, dtype = log.layout.size, log.layout.dtype
    # without a deviation (it is rebuilt) it stays zero, and a panel's room for it serves the next one too
    no_delta = torch.zeros(min(runner.elements, size) if state.delta is None else 0, dtype=dtype)
    whole = ops.ReplayWindow(
        no_delta if state.delta is None else state.delta,
        state.theta,
        [NOTHING if x is None else x for x in state.factual],
        [NOTHING if x is None else x for x in state.counterfactual],
        coefficients if several else coefficients[0],
        segments,
        (),
        cast("Sequence[EncodedVector]", injections.vectors),  # what lies in factors is made dense where it is narrowed
        torch.tensor(injections.table, dtype=torch.float64).view(-1, 3 if several else 2),
        diagonal,
        rule.kernel([group for t in steps for group in log[t].groups], log.gradients),
        lead,
    )
    for panel in source.panels(size, runner.elements):
        part = replace(whole.narrow(panel.begin, panel.end), gradients=panel.gradients)
        if state.delta is None:
            part = replace(part, delta=no_delta[: panel.end - panel.begin])
        runner.run(part, panel)
        advance(panel.end - panel.begin)
    squares = runner.finish()
    for used in (window, injections.source):
        if used is not None:
            used.check()
    state.step = steps.stop
    return squares


class _Runner(Protocol):
    elements: int
    """Of a panel."""

    def run(self, part: ops.ReplayWindow, panel: Panel) -> None:
        """Replay a panel's part of the window, with numbers that are verified before they are used."""

    def finish(self) -> float:
        """The sum of delta^2 over all parts."""


class _Host:
    """The best kernel for the host's memory. A panel is what one checksum covers: verified, then used while it is in the cache."""

    def __init__(self, unverified: Sequence[Vectors], chunk: int):
        self.elements, self._unverified, self._squares = chunk, unverified, 0.0

    def run(self, part: ops.ReplayWindow, panel: Panel) -> None:
        for vectors in self._unverified:
            vectors.verify(panel.begin, panel.end)
        self._squares += float(ops.optimizer_replay_window_(part).sum())

    def finish(self) -> float:
        return self._squares


class _VerifyingHost:
    """The CPU kernel, which takes the checksums in the pass in which it reads. Factors are verified where they are multiplied."""

    def __init__(self, vectors: Sequence[Vectors], chunk: int, itemsize: int):
        self.elements = chunk * CHUNKS_PER_PANEL * torch.get_num_threads()
        self._vectors, self._chunk, self._squares = vectors, chunk, 0.0
        self._checks = [window.checks for window in vectors if isinstance(window, VectorWindow)]
        for window in vectors:
            if isinstance(window, FactoredWindow):  # of which a panel is computed in memory
                limit = PRODUCT_BYTES // (len(window) * itemsize * chunk)
                self.elements = min(self.elements, max(1, limit) * chunk)

    def run(self, part: ops.ReplayWindow, panel: Panel) -> None:
        squares = cpu.optimizer_replay_verified_(part, self._checks, panel.begin // self._chunk, self._chunk)
        if squares is None:
            _name_the_damage(self._vectors, panel.begin, panel.end)
        self._squares += squares

    def finish(self) -> float:
        return self._squares


class _Device:
    """A GPU: panels of a size that suits its memory flow through it."""

    def __init__(self, unverified: Sequence[Vectors], elements: int, through: DevicePanels):
        self.elements, self._unverified, self._through = elements, unverified, through

    def run(self, part: ops.ReplayWindow, panel: Panel) -> None:
        for vectors in self._unverified:
            vectors.verify(panel.begin, panel.end)
        self._through.submit(part, read=panel.read)

    def finish(self) -> float:
        return self._through.finish()


def _runner(
    log: LogReader, source: Source, injections: Injections, steps: int, requests: int, through: DevicePanels | None
) -> _Runner:
    itemsize = ops.payload_dtype(log.dtype).itemsize
    chunk = CHUNK_BYTES // itemsize
    unverified: list[Vectors] = [*source.unverified, *([] if injections.source is None else [injections.source])]
    if through is not None:
        per_element = steps * itemsize + FACTUAL_BYTES + requests * REQUEST_BYTES
        return _Device(unverified, panel_elements(per_element, chunk), through)
    mapped = isinstance(source, Mapped) and any(isinstance(vectors, VectorWindow) for vectors in unverified)
    if mapped and _kernel_verifies(log.layout.dtype):
        return _VerifyingHost(unverified, chunk, log.layout.dtype.itemsize)
    return _Host(unverified, chunk)


def _kernel_verifies(dtype: torch.dtype) -> bool:
    return dispatch.select("optimizer_replay_window_", torch.device("cpu"), dtype) is cpu.optimizer_replay_window_


def _name_the_damage(vectors: Sequence[Vectors], begin: int, end: int) -> NoReturn:
    """Raise LogCorruptError or SlotOverwrittenError for what the kernel has noticed."""
    for window in vectors:
        window.verify(begin, end)
        window.check()
    raise LogCorruptError(-1, -1, f"the log changed while elements {begin} to {end} were read: run the request again")
