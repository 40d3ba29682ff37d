"""optimizer_replay_window_: one program takes a tile through all steps with its state in registers.

A tile is the part of a run of 1024 parameters that belongs to one class; what no segment covers belongs to class -1 and
is only summed. The formulas are those of reference/optimizer_replay.py, in its order of operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import coefficients as column
from ..optimizer_replay import ReplayWindow
from .launch import (
    OPTIONS,
    TILE,
    TILE_BLOCKS,
    addresses,
    aligned,
    first_of_each_step,
    format_of,
    load_listed,
    on,
    present,
    scaled,
    tile_columns,
)

# Columns of the kernel's own table, float32: differences such as 1 - beta2 are taken in float64 before.
FLAGS, GAIN, SHARE, CURVATURE, DAMPING, LR, DECAY, LOST = (tl.constexpr(i) for i in range(8))
BETA1, REST1, BETA2, REST2, EPS, SIZE, ROOT, SIZE_CF, ROOT_CF = (tl.constexpr(i) for i in range(8, 17))
COLUMNS = tl.constexpr(17)

ABSENT, SKIP, NESTEROV = tl.constexpr(column.ABSENT), tl.constexpr(column.SKIP), tl.constexpr(column.NESTEROV)
FIRST, FIRST_CF = tl.constexpr(column.FIRST), tl.constexpr(column.FIRST_CF)
FACTUAL_ONLY = tl.constexpr(column.FACTUAL_ONLY)
START = tl.constexpr(column.START)


@triton.jit
def _removed(row, g, injected, curvature, delta):
    """The gradient that the counterfactual does not see."""
    return tl.load(row + SHARE) * g + injected + curvature * delta


@triton.jit
def _sgd(row, flags, delta, theta, b, db, g, injected, curvature, MOMENTUM: tl.constexpr):
    lr, decay = tl.load(row + LR), tl.load(row + DECAY)
    e = tl.load(row + GAIN) * g + decay * theta
    de = _removed(row, g, injected, curvature, delta) + decay * delta
    d, dd = e, de
    if MOMENTUM:
        momentum, undampened = tl.load(row + BETA1), tl.load(row + REST2)
        first = (flags & FIRST) != 0
        old_b = tl.where(first, 0.0, b)
        b = tl.where(first, e, momentum * b + undampened * e)
        later = tl.where((flags & FIRST_CF) != 0, b - (e - de), momentum * db + undampened * de)
        stepped = tl.where(first, de, later)
        stepped = tl.where((flags & SKIP) != 0, db + (b - old_b), stepped)
        db = tl.where((flags & FACTUAL_ONLY) != 0, db, stepped)
        nesterov = (flags & NESTEROV) != 0
        d = tl.where(nesterov, e + momentum * b, b)
        dd = tl.where(nesterov, de + momentum * db, db)
    moved = delta - lr * tl.where((flags & SKIP) != 0, d, dd)
    return tl.where((flags & FACTUAL_ONLY) != 0, delta, moved), theta - lr * d, b, db


@triton.jit
def _update(row, flags, delta, theta, u, injected, curvature):
    """Plain SGD replayed from its logged updates u."""
    lr, decay = tl.load(row + LR), tl.load(row + DECAY)
    kept = tl.load(row + SHARE) * (u + tl.load(row + LOST) * theta)
    moved = delta + (kept - lr * (injected + curvature * delta + decay * delta))
    moved = tl.where((flags & SKIP) != 0, delta + u, moved)
    return tl.where((flags & FACTUAL_ONLY) != 0, delta, moved), theta + u


@triton.jit
def _adam_step(row, g, m, v, size, root):
    m = tl.load(row + BETA1) * m + tl.load(row + REST1) * g
    v = tl.load(row + BETA2) * v + tl.load(row + REST2) * (g * g)
    return m, v, tl.div_rn(size * m, tl.sqrt_rn(v) * root + tl.load(row + EPS))


@triton.jit
def _adam(row, flags, delta, theta, m, v, m_cf, v_cf, g, injected, curvature):
    """Adam with coupled weight decay (DECAY) or, as AdamW, with a decoupled one (LOST); the other is zero."""
    decay, lost = tl.load(row + DECAY), tl.load(row + LOST)
    keep = 1.0 - lost
    gradient = tl.load(row + GAIN) * g + decay * theta
    seen = gradient - (_removed(row, g, injected, curvature, delta) + decay * delta)
    m, v, step = _adam_step(row, gradient, m, v, tl.load(row + SIZE), tl.load(row + ROOT))
    if (flags & (SKIP | FACTUAL_ONLY)) == 0:
        m_cf, v_cf, step_cf = _adam_step(row, seen, m_cf, v_cf, tl.load(row + SIZE_CF), tl.load(row + ROOT_CF))
        delta = keep * delta - (step - step_cf)
    elif (flags & FACTUAL_ONLY) == 0:
        delta = delta - (lost * theta + step)
    return delta, keep * theta - step, m, v, m_cf, v_cf


@triton.jit
def _rmsprop_step(row, g, v, b, MOMENTUM: tl.constexpr):
    v = tl.load(row + BETA2) * v + tl.load(row + REST2) * (g * g)
    step = tl.div_rn(g, tl.sqrt_rn(v) + tl.load(row + EPS))
    if MOMENTUM:
        momentum = tl.load(row + BETA1)
        if momentum != 0:  # a group without has no b
            b = momentum * b + step
            step = b
    return v, b, step


@triton.jit
def _rmsprop(row, flags, delta, theta, v, b, v_cf, b_cf, g, injected, curvature, MOMENTUM: tl.constexpr):
    lr, decay = tl.load(row + LR), tl.load(row + DECAY)
    gradient = tl.load(row + GAIN) * g + decay * theta
    seen = gradient - (_removed(row, g, injected, curvature, delta) + decay * delta)
    v, b, step = _rmsprop_step(row, gradient, v, b, MOMENTUM)
    if (flags & (SKIP | FACTUAL_ONLY)) == 0:
        v_cf, b_cf, step_cf = _rmsprop_step(row, seen, v_cf, b_cf, MOMENTUM)
        delta = delta - lr * (step - step_cf)
    elif (flags & FACTUAL_ONLY) == 0:
        delta = delta - lr * step
    return delta, theta - lr * step, v, b, v_cf, b_cf


@triton.jit
def _lion_step(row, g, m):
    blend = tl.load(row + BETA1) * m + tl.load(row + REST1) * g
    step = tl.where(blend > 0.0, 1.0, tl.where(blend < 0.0, -1.0, 0.0))
    return tl.load(row + BETA2) * m + tl.load(row + REST2) * g, step


@triton.jit
def _lion(row, flags, delta, theta, m, m_cf, g, injected, curvature):
    lr, lost = tl.load(row + LR), tl.load(row + LOST)
    gradient = tl.load(row + GAIN) * g
    seen = gradient - _removed(row, g, injected, curvature, delta)
    m, step = _lion_step(row, gradient, m)
    if (flags & (SKIP | FACTUAL_ONLY)) == 0:
        m_cf, step_cf = _lion_step(row, seen, m_cf)
        delta = (1.0 - lost) * delta - lr * (step - step_cf)
    elif (flags & FACTUAL_ONLY) == 0:
        delta = delta - (lost * theta + lr * step)
    return delta, (1.0 - lost) * theta - lr * step, m, m_cf


@triton.jit
def _step(row, flags, delta, theta, a, b, a_cf, b_cf, g, injected, curvature, RULE: tl.constexpr):
    """One step of a rule: (delta, theta, state, counterfactual state)."""
    if RULE == "sgd":
        delta, theta, _, _ = _sgd(row, flags, delta, theta, a, a_cf, g, injected, curvature, False)
    elif RULE == "momentum":
        delta, theta, a, a_cf = _sgd(row, flags, delta, theta, a, a_cf, g, injected, curvature, True)
    elif RULE == "update":
        delta, theta = _update(row, flags, delta, theta, g, injected, curvature)
    elif RULE == "lion":
        delta, theta, a, a_cf = _lion(row, flags, delta, theta, a, a_cf, g, injected, curvature)
    elif RULE == "rmsprop":
        delta, theta, a, b, a_cf, b_cf = _rmsprop(
            row, flags, delta, theta, a, b, a_cf, b_cf, g, injected, curvature, False
        )
    elif RULE == "rmsprop_momentum":
        delta, theta, a, b, a_cf, b_cf = _rmsprop(
            row, flags, delta, theta, a, b, a_cf, b_cf, g, injected, curvature, True
        )
    else:
        delta, theta, a, b, a_cf, b_cf = _adam(row, flags, delta, theta, a, b, a_cf, b_cf, g, injected, curvature)
    return delta, theta, a, b, a_cf, b_cf


@dataclass(frozen=True)
class _Rule:
    step: str  # of _step
    deviation: bool  # whether the counterfactual state is the deviation itself
    coupled: bool = True  # whether DECAY is read
    decoupled: bool = True  # whether LOST is read


RULES: dict[tuple[str, int], _Rule] = {
    ("sgd", 0): _Rule("sgd", deviation=True),
    ("sgd", 1): _Rule("momentum", deviation=True),
    ("update", 0): _Rule("update", deviation=True),
    ("adam", 2): _Rule("adam", deviation=False, decoupled=False),
    ("adamw", 2): _Rule("adam", deviation=False, coupled=False),
    ("lion", 1): _Rule("lion", deviation=False, coupled=False),
    ("rmsprop", 1): _Rule("rmsprop", deviation=False),
    ("rmsprop", 2): _Rule("rmsprop_momentum", deviation=False),
}
"""By the window's rule and its number of state vectors."""


@triton.jit
def _start(a, b, DEVIATION: tl.constexpr):
    """The two sides are still one: (delta, counterfactual state)."""
    if DEVIATION:
        return tl.zeros_like(a), tl.zeros_like(a), tl.zeros_like(b)
    else:
        return tl.zeros_like(a), a, b


@triton.jit
def _load(vector, index, mask):
    """Zeros for a vector that is not there."""
    if vector is None:
        return tl.zeros(index.shape, tl.float32)
    else:
        return tl.load(vector + index, mask=mask, other=0.0)


@triton.jit
def _store(vector, index, values, mask):
    if vector is not None:
        tl.store(vector + index, values, mask=mask)


@triton.jit(do_not_specialize=["blocks", "segment_count", "steps", "lead"])
def replay_kernel(delta_, theta_, state0, state1, other0, other1, diagonal, coefficients, segments, first_tiles,
                  payloads, scales, injection_payloads, injection_scales, injection_begin, injection_weight, tile_sums,
                  blocks, segment_count, steps, lead,
                  RULE: tl.constexpr, DEVIATION: tl.constexpr, FORMAT: tl.constexpr, SCALED: tl.constexpr, INJECTION_FORMAT: tl.constexpr,
                  INJECTION_SCALED: tl.constexpr, ALIGNED: tl.constexpr, STORE_FACTUAL: tl.constexpr,
                  TILE_BLOCKS: tl.constexpr):  # fmt: skip
    # the segment of this tile: the last one whose first tile is not after it
    program = tl.program_id(0)
    low, high = 0, segment_count
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(first_tiles + middle) <= program:
            low = middle
        else:
            high = middle
    begin, end = tl.load(segments + 3 * low), tl.load(segments + 3 * low + 1)
    parameter_class = tl.load(segments + 3 * low + 2)
    tile = begin // (TILE_BLOCKS * 256) + (program - tl.load(first_tiles + low))
    if ALIGNED:
        begin, end = tl.multiple_of(begin, 8), tl.multiple_of(end, 8)
    index = tile_columns(tile, TILE_BLOCKS)
    mask = (index >= begin) & (index < end)

    delta, theta = _load(delta_, index, mask), _load(theta_, index, mask)
    a, b = _load(state0, index, mask), _load(state1, index, mask)
    a_cf, b_cf = _load(other0, index, mask), _load(other1, index, mask)
    h = _load(diagonal, index, mask)
    own_steps = tl.where(parameter_class < 0, 0, steps)
    # Two steps ahead, so that the memory is kept busy while a step is computed.
    g = load_listed(payloads, scales, 0, own_steps, index, mask, tile, blocks, FORMAT, ALIGNED, SCALED, TILE_BLOCKS)
    g_next = load_listed(
        payloads, scales, 1, own_steps, index, mask, tile, blocks, FORMAT, ALIGNED, SCALED, TILE_BLOCKS
    )
    t = 0
    while t < own_steps:
        g_after = load_listed(
            payloads, scales, t + 2, own_steps, index, mask, tile, blocks, FORMAT, ALIGNED, SCALED, TILE_BLOCKS
        )
        row = coefficients + (parameter_class * steps + t) * COLUMNS
        flags = tl.load(row + FLAGS).to(tl.int32)
        if (flags & START) != 0:
            delta, a_cf, b_cf = _start(a, b, DEVIATION)
        if (flags & ABSENT) == 0:
            injected = tl.zeros_like(delta)
            if (flags & FACTUAL_ONLY) == 0:
                j, stop = tl.load(injection_begin + t), tl.load(injection_begin + t + 1)
                while j < stop:
                    vector = load_listed(injection_payloads, injection_scales, j, j + 1, index, mask, tile, blocks,
                                       INJECTION_FORMAT, ALIGNED, INJECTION_SCALED, TILE_BLOCKS)  # fmt: skip
                    injected += tl.load(injection_weight + j) * vector
                    j += 1
            curvature = tl.load(row + CURVATURE) * h + tl.load(row + DAMPING)
            delta, moved, a, b, a_cf, b_cf = _step(
                row, flags, delta, theta, a, b, a_cf, b_cf, g, injected, curvature, RULE
            )
            if theta_ is not None:  # else it counts as zero throughout
                theta = moved
        g, g_next = g_next, g_after
        t += 1
    if (lead > 0) & (lead == own_steps):
        delta, a_cf, b_cf = _start(a, b, DEVIATION)

    _store(delta_, index, delta, mask)
    if STORE_FACTUAL:  # for another request it begins again
        _store(theta_, index, theta, mask)
        _store(state0, index, a, mask)
        _store(state1, index, b, mask)
    _store(other0, index, a_cf, mask)
    _store(other1, index, b_cf, mask)
    wide = delta.to(tl.float64)
    tl.store(tile_sums + program, tl.sum(tl.sum(wide * wide, axis=1), axis=0))


def _kernel_table(coefficients: Tensor, rule: _Rule, lead: int) -> Tensor:
    """float32 [classes, steps, COLUMNS] from the table of ops/coefficients.py."""
    get = coefficients.unbind(-1)
    flags = get[column.FLAGS].to(torch.int64)
    flags[:, :lead] = (flags[:, :lead] & ~column.SKIP) | FACTUAL_ONLY.value
    if 0 < lead < flags.shape[1]:
        flags[:, lead] |= START.value
    lost = get[column.LR] * get[column.DECAY]
    zero = torch.zeros_like(lost)
    return torch.stack(
        [
            flags.double(), get[column.GAIN], get[column.GAIN] - get[column.ALPHA], get[column.CURVATURE],
            get[column.DAMPING], get[column.LR], get[column.DECAY] if rule.coupled else zero,
            lost if rule.decoupled else zero, get[column.BETA1], 1 - get[column.BETA1], get[column.BETA2],
            1 - get[column.BETA2], get[column.EPS], get[column.SIZE], get[column.ROOT], get[column.SIZE_CF],
            get[column.ROOT_CF],
        ],
        dim=-1,
    ).float()  # fmt: skip


def _pieces(segments: Tensor, n: int) -> tuple[Tensor, Tensor, int]:
    """(segments and, with class -1, the gaps between them [S, 3]; the first tile of each; the number of tiles)."""
    pieces, at = [], 0
    for begin, end, parameter_class in segments.tolist():
        if begin > at:
            pieces.append((at, begin, -1))
        if end > begin:
            pieces.append((begin, end, parameter_class))
        at = max(at, end)
    if at < n:
        pieces.append((at, n, -1))
    table = torch.tensor(pieces, dtype=torch.int64).view(-1, 3)
    counts = (table[:, 1] + TILE - 1).div(TILE, rounding_mode="floor") - table[:, 0].div(TILE, rounding_mode="floor")
    last = counts.cumsum(0)
    return table, last - counts, int(last[-1]) if len(last) else 0


def optimizer_replay_window_(window: ReplayWindow) -> Tensor:
    """Several requests are as many launches."""
    if window.delta.dim() == 1:
        return _one(window, store_factual=True)
    squares = torch.empty(window.requests, dtype=torch.float64, device=window.delta.device)
    for r in range(window.requests):
        squares[r] = _one(window.request(r), store_factual=r + 1 == window.requests)
    return squares


def _one(window: ReplayWindow, store_factual: bool) -> Tensor:
    delta, theta, diagonal, steps = window.delta, window.theta, window.diagonal, len(window.gradients)
    n, device, rule = delta.numel(), delta.device, RULES[window.rule, len(window.state)]
    pieces, first_tiles, tile_count = _pieces(window.segments, n)
    tile_sums = torch.empty(tile_count, dtype=torch.float64, device=device)
    if not tile_count:
        return tile_sums.sum()
    states = [present(x) for x in (*window.state, None, None)][:2]
    others = [present(x) for x in (*window.counterfactual, None, None)][:2]
    injection_begin = first_of_each_step(window.injection_table, steps)
    gradients, gradient_scales = ([v[i] for v in window.gradients] for i in range(2))
    injections, injection_scales = ([v[i] for v in window.injections] for i in range(2))
    vectors = [delta, theta, diagonal, *states, *others, *gradients, *injections]
    with on(device):
        replay_kernel[(tile_count,)](
            delta, theta, *states, *others, diagonal,
            _kernel_table(window.coefficients, rule, window.lead).to(device),
            pieces.to(device), first_tiles.to(device), addresses(gradients, device),
            addresses(gradient_scales, device), addresses(injections, device), addresses(injection_scales, device),
            injection_begin.to(device), window.injection_table[:, 1].float().to(device), tile_sums,
            triton.cdiv(n, 256), len(pieces), steps, window.lead,
            RULE=rule.step, DEVIATION=rule.deviation,
            FORMAT=format_of(gradients), SCALED=scaled(gradient_scales),
            INJECTION_FORMAT=format_of(injections), INJECTION_SCALED=scaled(injection_scales),
            ALIGNED=aligned(vectors, pieces[:, :2].flatten().tolist()), STORE_FACTUAL=store_factual,
            TILE_BLOCKS=TILE_BLOCKS, **OPTIONS,
        )  # fmt: skip
    return tile_sums.sum()
