"""Every op in plain torch: the specification that the other backends are tested against.

Works on any device in float32 and float64. The other backends compute in float32 only; float64 comes here, which is
what the oracle-grade tests and logs use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import coefficients as column
from .encoding import BLOCK, EXPONENT_BIAS, SCALED, block_count, payload_dtype
from .optimizer_replay import ReplayWindow

# ---------------------------------------------------------------------------------------------------------------------
# encoded vectors
# ---------------------------------------------------------------------------------------------------------------------


def _per_element(per_block: Tensor, n: int) -> Tensor:
    """Repeat one value per block to one value per element: [ceil(n/256)] -> [n]."""
    return per_block.repeat_interleave(BLOCK)[:n]


def power_of_two(exponents: Tensor) -> Tensor:
    """2.0 ** exponents, float64, exact: the exponent goes into its bits of the IEEE format."""
    return ((exponents.to(torch.int64) + 1023) << 52).view(torch.float64)


SIGNIFICANT_BITS = {torch.float16: 11, torch.int8: 7, torch.float8_e4m3fn: 4}


def block_exponents(x: Tensor, target: torch.dtype) -> Tensor:
    """E8M0 exponent of each block: with largest magnitude m * 2^k, 1 <= m < 2, e = clamp(k - SCALED + 127, 0, 254)."""
    blocks = block_count(x.numel())
    padded = torch.zeros(blocks * BLOCK, dtype=x.dtype, device=x.device)
    padded[: x.numel()] = x.abs()
    largest = padded.view(blocks, BLOCK).amax(dim=1)  # [blocks]
    mantissa, exponent = torch.frexp(largest)  # the mantissa is in [0.5, 1): k is exponent - 1
    if target == torch.int8:
        exponent = exponent + (mantissa >= 127.5 / 128).int()  # would round to 128
    biased = (exponent - 1 - SCALED[target] + EXPONENT_BIAS).clamp(0, 254)
    return torch.where(largest == 0, EXPONENT_BIAS, biased).to(torch.int32)


def encode(x: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    """Encode ``x`` ``[P]``, rounding to nearest even: (payload, scales, whether every element decodes to a finite one)."""
    target = payload_dtype(dtype)
    if target not in SCALED:
        payload = x.to(target, copy=True)
        return payload, torch.empty(0, dtype=torch.uint8, device=x.device), bool(torch.isfinite(payload).all())
    # from the overflow on, a value rounds to 2^128, which a float32 cannot be decoded to
    overflow = 2.0**128 * (1 - 2.0 ** -(SIGNIFICANT_BITS[target] + 1))
    if not bool((x.abs() < overflow).all()):
        return x.to(target), torch.full((block_count(x.numel()),), 127, dtype=torch.uint8, device=x.device), False
    exponents = block_exponents(x, target)
    scaled = x * _per_element(power_of_two(EXPONENT_BIAS - exponents).to(x.dtype), x.numel())
    payload = (scaled.round() if target == torch.int8 else scaled).to(target)
    return payload, exponents.to(torch.uint8), True


def decode(payload: Tensor, scales: Tensor, out: Tensor) -> None:
    """out[i] = payload[i] * 2 ** (scales[i // 256] - 127), in the dtype of ``out`` (float32 or float64)."""
    out.copy_(payload)
    if scales.numel():
        exponents = scales.to(torch.int32) - EXPONENT_BIAS
        # in float64: 2^-127 and 2^127 are both exact there, so the one rounding is the one into `out`
        out.copy_(out.double() * _per_element(power_of_two(exponents), out.numel()))


def encode_difference_(theta: Tensor, shadow: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    """Encode q = Q(theta - shadow) and advance shadow by what q decodes to (error feedback, docs/method.md, section 7)."""
    payload, scales, finite = encode(theta - shadow, dtype)
    if finite:
        decoded = torch.empty_like(shadow)
        decode(payload, scales, decoded)
        shadow += decoded
    return payload, scales, finite


def dot(payload_a: Tensor, scales_a: Tensor, payload_b: Tensor, scales_b: Tensor) -> Tensor:
    """Inner product of two encoded vectors, accumulated in float64."""
    a = torch.empty(payload_a.shape, dtype=torch.float64, device=payload_a.device)
    b = torch.empty_like(a)
    decode(payload_a, scales_a, a)
    decode(payload_b, scales_b, b)
    return torch.dot(a, b)


# ---------------------------------------------------------------------------------------------------------------------
# optimizer replay
# ---------------------------------------------------------------------------------------------------------------------


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


def _start_counterfactual(
    delta: Tensor, state: Sequence[Tensor], counterfactual: Sequence[Tensor], rule: str, segments: list[list[int]]
) -> None:
    """The two sides are still one: no deviation, and the counterfactual state is the factual one."""
    for begin, end, _ in segments:
        delta[begin:end] = 0
        for own, other in zip(state, counterfactual, strict=False):
            other[begin:end] = 0 if rule == "sgd" else own[begin:end]


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
    delta, theta, lead, rule = window.delta, window.theta, window.lead, window.rule
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
            decode(*logged, gradient)
        injected.zero_()
        for vector, (step, weight) in zip(window.injections, injection_steps, strict=True):
            if step == t >= lead:
                decode(*vector, decoded)
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
            if rule == "sgd":
                _sgd(side)
            elif rule == "update":
                _update(side)
            else:
                _adam(side, decoupled=rule == "adamw")
    if lead == len(window.gradients) > 0:
        _start_counterfactual(delta, state, counterfactual, rule, spans)
    return delta.double().square().sum()
