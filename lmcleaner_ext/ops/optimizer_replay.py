"""The optimizer run twice over a window of the log: what is replayed, and the op that replays it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ConfigurationError
from . import checks
from . import coefficients as column
from .coefficients import COLUMNS, STATE_COUNTS
from .encoding import EncodedVector, payloads
from .registry import call, compute, register_window
from .window import Window


@dataclass(frozen=True)
class ReplayWindow(Window):
    """The argument of ``optimizer_replay_window_``: n parameters, T logged steps and R requests over the same steps.

    R independent requests share the pass: the log is read and decoded once, theta and state are stepped once, and each request has
    its own row of ``delta`` and of every ``counterfactual``, its own ``coefficients`` (equal where they are the factual side's) and
    its own injections. A single request may do without the dimension R.
    """

    delta: Tensor
    """The deviation theta - theta' [n] or [R, n], updated in place, float32 or float64; each row contiguous."""
    theta: Tensor | None
    """The parameters [n], updated in place; None where no coefficient needs them."""
    state: Sequence[Tensor]
    """The optimizer's vectors [n], updated in place: those that the rule names, in its order (lmcleaner_ext/optim). An empty tensor
    begins at zero and is not wanted afterwards: nothing is read or written for it."""
    counterfactual: Sequence[Tensor]
    """The same for the counterfactual side, shaped as delta; for a linear rule the deviations, [b - b'] for "sgd"."""
    coefficients: Tensor
    """float64 [classes, T, 16] or [R, classes, T, 16] on the CPU; coefficients.py has the columns."""
    segments: Tensor
    """int64 [S, 3] on the CPU, (begin, end, class), sorted and disjoint; elements outside are untouched."""
    gradients: Sequence[EncodedVector]
    """T vectors [n] of one format: g, or for "update" u = theta[t+1] - theta[t]. Empty: zeros."""
    injections: Sequence[EncodedVector]
    """Vectors [n] of one format, in gradient units. Empty: zeros."""
    injection_table: Tensor
    """float64 [I, 2] on the CPU, (step, weight), sorted by step; where delta is [R, n], [I, 3] with the request as a third column,
    sorted by request and then by step."""
    diagonal: Tensor | None
    """h, the diagonal of the curvature [n], or None."""
    rule: str
    """A key of coefficients.STATE_COUNTS: "sgd", "update" (plain SGD from its logged updates), "adam" (L2 decay), "adamw" ..."""
    lead: int = 0
    """How many of the first steps are the same on both sides; the counterfactual begins after them."""

    UPDATED = ("delta", "theta", "state", "counterfactual")
    TABLES = ("coefficients", "segments", "injection_table")

    @property
    def requests(self) -> int:
        return self.delta.shape[0] if self.delta.dim() == 2 else 1

    def narrow(self, begin: int, end: int) -> ReplayWindow:
        """Parameters [begin, end), in the same memory; `begin` is a multiple of the block size."""
        inside = self.segments[(self.segments[:, 1] > begin) & (self.segments[:, 0] < end)].clone()
        inside[:, :2] = (inside[:, :2] - begin).clamp(0, end - begin)
        return self.mapped(lambda x: x[..., begin:end], lambda x: x.narrow(begin, end), segments=inside)

    def request(self, index: int) -> ReplayWindow:
        """Request `index` of several as a window of its own, in the same memory."""
        own = (self.injection_table[:, 2] == index).nonzero().flatten().tolist()
        return replace(
            self,
            delta=self.delta[index],
            counterfactual=[x[index] if x.numel() else x for x in self.counterfactual],
            coefficients=self.coefficients[index],
            injections=[self.injections[i] for i in own],
            injection_table=self.injection_table[own, :2],
        )


def optimizer_replay_window_(window: ReplayWindow, *, backend: str | None = None) -> Tensor:
    """Run the optimizer over T logged steps twice, as it was and without the removed gradient (docs/method.md, section 4).

        removed = (GAIN - ALPHA) g + sum of weight * injection + (CURVATURE h + DAMPING) delta
        (theta,  state)  = Opt(theta,  state,  g)                  factual
        (theta', state') = Opt(theta', state', g - removed)        counterfactual
        delta            = theta - theta'

    The capitals are columns of ``coefficients`` (coefficients.py). Elementwise, all T steps in one pass; the vectors of the window
    are updated in place.

    Args:
        backend: None for the best one.

    Returns:
        The sum of delta^2 over all n elements, float64, a scalar tensor or one number per request [R]; bitwise the same
        for any number of threads.

    Raises:
        ConfigurationError: a wrong shape, dtype, device or count; nothing has been changed.
        BackendUnavailableError: the backend asked for cannot serve this call.
    """
    return call("optimizer_replay_window_", backend, *window.flat())


def _optimizer_replay_window_(window: ReplayWindow) -> Tensor:
    _check(window)
    return compute(
        "optimizer_replay_window_", [window.delta, *payloads(window.gradients), *payloads(window.injections)], window
    )


def _fake(window: ReplayWindow) -> Tensor:
    return window.delta.new_empty(window.delta.shape[:-1], dtype=torch.float64)


register_window(ReplayWindow, _optimizer_replay_window_, _fake, "Tensor")


def _check(window: ReplayWindow) -> None:
    """Every argument of ``optimizer_replay_window_``."""
    delta, rule, state, counterfactual = window.delta, window.rule, window.state, window.counterfactual
    if delta.dim() == 2:
        checks.rows("delta", delta, delta.shape, delta)
    else:
        checks.vector("delta", delta)
    n, steps, requests = delta.shape[-1], len(window.gradients), window.requests
    if rule not in STATE_COUNTS:
        raise ConfigurationError(f"unknown rule {rule!r}; expected one of {', '.join(STATE_COUNTS)}")
    if len(state) not in STATE_COUNTS[rule] or len(counterfactual) != len(state):
        raise ConfigurationError(
            f"rule {rule!r} takes {' or '.join(map(str, STATE_COUNTS[rule]))} state vectors and as many counterfactual "
            f"ones; found {len(state)} and {len(counterfactual)}"
        )
    if window.theta is not None:
        checks.vector("theta", window.theta, n, delta)
    if window.diagonal is not None:
        checks.vector("diagonal", window.diagonal, n, delta)
    for index, x in enumerate(state):
        if x.numel():  # empty: zeros, not wanted afterwards
            checks.vector(f"state[{index}]", x, n, delta)
    for index, x in enumerate(counterfactual):
        if x.numel() and delta.dim() == 2:
            checks.rows(f"counterfactual[{index}]", x, delta.shape, delta)
        elif x.numel():
            checks.vector(f"counterfactual[{index}]", x, n, delta)

    coefficients = window.coefficients
    checks.table("coefficients", coefficients, torch.float64, COLUMNS, delta.dim() + 2)
    checks.table("segments", window.segments, torch.int64, 3, 2)
    checks.table("injection_table", window.injection_table, torch.float64, delta.dim() + 1, 2)
    if delta.dim() == 2:
        _check_one_factual_side(coefficients, requests)
    classes = coefficients.shape[-3]
    if coefficients.shape[-2] != steps or not 0 <= window.lead <= steps:
        raise ConfigurationError(
            f"{steps} gradients need as many steps of coefficients, and 0 <= lead <= {steps}; found coefficients "
            f"{list(coefficients.shape)}, lead {window.lead}"
        )
    end_before = 0
    for begin, end, parameter_class in window.segments.tolist():
        if not end_before <= begin <= end <= n or not 0 <= parameter_class < classes:
            raise ConfigurationError(
                f"segments must be sorted and disjoint in [0, {n}] with a class under {classes}; "
                f"found ({begin}, {end}, {parameter_class}) after {end_before}"
            )
        end_before = end
    checks.injections_of(window.injections, window.injection_table, steps, requests)
    checks.encoded_list("gradients", window.gradients, n, delta.device)
    checks.encoded_list("injections", window.injections, n, delta.device)


def _check_one_factual_side(coefficients: Tensor, requests: int) -> None:
    """The requests differ in what their counterfactuals do, not in what the optimizer did."""
    if coefficients.shape[0] != requests:
        raise ConfigurationError(f"{requests} requests need as many coefficient tables; found {coefficients.shape[0]}")
    columns = coefficients[
        ...,
        [column.GAIN, column.LR, column.DECAY, column.BETA1, column.BETA2, column.EPS, column.SIZE, column.ROOT],
    ]
    flags = coefficients[..., column.FLAGS].long() & (column.ABSENT | column.FIRST | column.NESTEROV)
    if bool((columns != columns[:1]).any()) or bool((flags != flags[:1]).any()):
        raise ConfigurationError(
            "the requests of one call share the factual side: the columns GAIN, LR, DECAY, BETA1, BETA2, EPS, SIZE, ROOT and the "
            "flags ABSENT, FIRST, NESTEROV must be equal in all their coefficients"
        )
