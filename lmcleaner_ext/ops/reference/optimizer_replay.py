"""The optimizer run twice over a window of the log, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .. import coefficients as column
from ..optimizer_replay import ReplayWindow
from .encoded_vector import decode


@dataclass
class _Side:
    """What one segment of the parameters looks like at one step; the tensors are views into the caller's vectors."""

    delta: Tensor  # theta - theta', [segment]
    theta: Tensor | None
    state: list[Tensor]
    counterfactual: list[Tensor]
    gradient: Tensor  # g, or the update u for the rule "update"
    injected: Tensor
    diagonal: Tensor | float
    row: list[float]  # coefficients of this class at this step
    lead: bool

    def __post_init__(self) -> None:
        flags = int(self.row[column.FLAGS])
        self.factual_only = self.lead or bool(flags & column.FACTUAL_ONLY)
        self.skip = bool(flags & column.SKIP)
        self.first = bool(flags & column.FIRST)
        self.first_counterfactual = bool(flags & column.FIRST_CF)
        self.nesterov = bool(flags & column.NESTEROV)

    @property
    def curvature_term(self) -> Tensor:
        """(CURVATURE * h + DAMPING) * delta: the curvature's product with the deviation."""
        return (self.row[column.CURVATURE] * self.diagonal + self.row[column.DAMPING]) * self.delta

    @property
    def removed(self) -> Tensor:
        """The gradient that the counterfactual does not see: g' = GAIN * g - removed."""
        share = self.row[column.GAIN] - self.row[column.ALPHA]
        return share * self.gradient + self.injected + self.curvature_term

    @property
    def theta_or_zero(self) -> Tensor | float:
        return 0.0 if self.theta is None else self.theta


def _sgd(side: _Side) -> None:
    """b <- momentum * b + (1 - dampening) * e;  the state's counterfactual entry is the deviation db = b - b'."""
    row = side.row
    lr, decay, momentum, dampening = row[column.LR], row[column.DECAY], row[column.BETA1], row[column.BETA2]
    e = row[column.GAIN] * side.gradient + decay * side.theta_or_zero
    de = side.removed + decay * side.delta
    d, dd = e, de
    if side.state:
        b = side.state[0]
        old_b = torch.zeros_like(b) if side.first else b.clone()
        b.copy_(e if side.first else momentum * b + (1 - dampening) * e)
        d = e + momentum * b if side.nesterov else b
        if not side.factual_only:
            db = side.counterfactual[0]
            if side.skip:
                db += b - old_b
            elif side.first:
                db.copy_(de)
            elif side.first_counterfactual:
                db.copy_(b - (e - de))
            else:
                db.copy_(momentum * db + (1 - dampening) * de)
            dd = de + momentum * db if side.nesterov else db
    if not side.factual_only:
        side.delta -= lr * (d if side.skip else dd)
    if side.theta is not None:
        side.theta -= lr * d


def _update(side: _Side) -> None:
    """Plain SGD replayed from the logged updates u = theta[t+1] - theta[t]."""
    row, u = side.row, side.gradient
    lr, decay = row[column.LR], row[column.DECAY]
    if not side.factual_only:
        if side.skip:
            side.delta += u
        else:
            kept = (1 - row[column.ALPHA]) * (u + lr * decay * side.theta_or_zero)
            side.delta += kept - lr * (side.injected + side.curvature_term + decay * side.delta)
    if side.theta is not None:
        side.theta += u


def _adam_step(gradient: Tensor, moments: list[Tensor], row: list[float], size: float, root: float) -> Tensor:
    (m, v), beta1, beta2 = moments, row[column.BETA1], row[column.BETA2]
    m.copy_(beta1 * m + (1 - beta1) * gradient)
    v.copy_(beta2 * v + (1 - beta2) * gradient.square())
    return size * m / (v.sqrt() * root + row[column.EPS])


def _adam(side: _Side, decoupled: bool) -> None:
    """Adam; ``decoupled`` weight decay makes it AdamW."""
    row = side.row
    coupled_decay = 0.0 if decoupled else row[column.DECAY]
    decoupled_decay = row[column.LR] * row[column.DECAY] if decoupled else 0.0
    gradient = row[column.GAIN] * side.gradient + coupled_decay * side.theta_or_zero
    seen = gradient - (side.removed + coupled_decay * side.delta)
    step = _adam_step(gradient, side.state, row, row[column.SIZE], row[column.ROOT])
    if side.factual_only:
        pass
    elif side.skip:
        side.delta -= decoupled_decay * side.theta_or_zero + step
    else:
        counterfactual_step = _adam_step(seen, side.counterfactual, row, row[column.SIZE_CF], row[column.ROOT_CF])
        side.delta.mul_(1 - decoupled_decay).sub_(step - counterfactual_step)
    if side.theta is not None:
        side.theta.mul_(1 - decoupled_decay).sub_(step)


def _rmsprop_step(gradient: Tensor, state: list[Tensor], row: list[float]) -> Tensor:
    v, alpha = state[0], row[column.BETA2]
    v.copy_(alpha * v + (1 - alpha) * gradient.square())
    step = gradient / (v.sqrt() + row[column.EPS])
    momentum = row[column.BETA1]  # a group without has no b
    return state[1].copy_(momentum * state[1] + step) if momentum else step


def _rmsprop(side: _Side) -> None:
    """v <- alpha * v + (1 - alpha) * e^2;  with momentum the state is [v, b], b <- momentum * b + e / (sqrt(v) + eps)."""
    row = side.row
    lr, decay = row[column.LR], row[column.DECAY]
    gradient = row[column.GAIN] * side.gradient + decay * side.theta_or_zero
    seen = gradient - (side.removed + decay * side.delta)
    step = _rmsprop_step(gradient, side.state, row)
    if side.skip and not side.factual_only:
        side.delta -= lr * step
    elif not side.factual_only:
        side.delta -= lr * (step - _rmsprop_step(seen, side.counterfactual, row))
    if side.theta is not None:
        side.theta -= lr * step


def _lion_step(gradient: Tensor, m: Tensor, row: list[float]) -> Tensor:
    beta1, beta2 = row[column.BETA1], row[column.BETA2]
    step = (beta1 * m + (1 - beta1) * gradient).sign()
    m.copy_(beta2 * m + (1 - beta2) * gradient)
    return step


def _lion(side: _Side) -> None:
    """The sign of beta1 * m + (1 - beta1) * g is the step; weight decay is decoupled."""
    row, gradient = side.row, side.row[column.GAIN] * side.gradient
    lr, lost = row[column.LR], row[column.LR] * row[column.DECAY]
    seen = gradient - side.removed
    step = _lion_step(gradient, side.state[0], row)
    if side.skip and not side.factual_only:
        side.delta -= lost * side.theta_or_zero + lr * step
    elif not side.factual_only:
        other = _lion_step(seen, side.counterfactual[0], row)
        side.delta.mul_(1 - lost).sub_(lr * (step - other))
    if side.theta is not None:
        side.theta.mul_(1 - lost).sub_(lr * step)


@dataclass(frozen=True)
class _Rule:
    step: Callable[[_Side], None]
    deviation: bool  # whether the counterfactual state is the deviation itself


RULES = {
    "sgd": _Rule(_sgd, deviation=True),
    "update": _Rule(_update, deviation=True),
    "adam": _Rule(partial(_adam, decoupled=False), deviation=False),
    "adamw": _Rule(partial(_adam, decoupled=True), deviation=False),
    "rmsprop": _Rule(_rmsprop, deviation=False),
    "lion": _Rule(_lion, deviation=False),
}


def _start_counterfactual(
    delta: Tensor, state: Sequence[Tensor], counterfactual: Sequence[Tensor], rule: _Rule, segments: list[list[int]]
) -> None:
    """The two sides are still one: no deviation, and the counterfactual state is the factual one."""
    for begin, end, _ in segments:
        delta[begin:end] = 0
        for own, other in zip(state, counterfactual, strict=False):
            other[begin:end] = 0 if rule.deviation else own[begin:end]


def optimizer_replay_window_(window: ReplayWindow) -> Tensor:
    """Run the optimizer twice over the window; see ``lmcleaner_ext.ops.optimizer_replay_window_``.

    Several requests are as many calls that begin at the same factual side; the last one leaves it where all end.
    """
    if window.delta.dim() == 1:
        return _one_request(window)
    squares = []
    for index in range(window.requests):
        own = window.request(index)
        if index + 1 < window.requests:
            theta = None if own.theta is None else own.theta.clone()
            own = replace(own, theta=theta, state=[x.clone() for x in own.state])
        squares.append(_one_request(own))
    return torch.stack(squares)


def _one_request(window: ReplayWindow) -> Tensor:
    delta, theta, lead, rule = window.delta, window.theta, window.lead, RULES[window.rule]
    state = [x if x.numel() else torch.zeros_like(delta) for x in window.state]
    counterfactual = [x if x.numel() else torch.zeros_like(delta) for x in window.counterfactual]
    rows = window.coefficients.tolist()  # [classes][steps][COLUMNS]
    spans = window.segments.tolist()
    injection_steps = [(int(step), weight) for step, weight in window.injection_table.tolist()]
    decoded = torch.empty_like(delta)
    gradient, injected = torch.empty_like(delta), torch.empty_like(delta)

    for t, logged in enumerate(window.gradients):
        if t == lead > 0:
            _start_counterfactual(delta, state, counterfactual, rule, spans)
        gradient.zero_()
        if logged.payload.numel():
            decode(logged, gradient)
        injected.zero_()
        for vector, (step, weight) in zip(window.injections, injection_steps, strict=True):
            if step == t >= lead:
                decode(vector, decoded)
                injected += weight * decoded
        for begin, end, parameter_class in spans:
            row = rows[parameter_class][t]
            if int(row[column.FLAGS]) & column.ABSENT:
                continue
            part = slice(begin, end)
            side = _Side(
                delta[part],
                None if theta is None else theta[part],
                [vector[part] for vector in state],
                [vector[part] for vector in counterfactual],
                gradient[part],
                injected[part],
                0.0 if window.diagonal is None else window.diagonal[part],
                row,
                lead=t < lead,
            )
            rule.step(side)
    if lead == len(window.gradients) > 0:
        _start_counterfactual(delta, state, counterfactual, rule, spans)
    return delta.double().square().sum()
