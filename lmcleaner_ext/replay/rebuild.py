"""theta[t] and the optimizer's state at any retained step: the factual side of the replay alone."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..errors import UnsupportedOptimizerError
from ..log import LogReader
from ..log.anchors import Anchor
from ..optim import Rule, StepPlan
from .state import state_from_anchor
from .window import Injections, run_window


def rebuild_state(log: LogReader, rule: Rule | None, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """(theta[step] [P], {state name: [P]}).

    From updates: theta[anchor] + sum of the decoded updates (their error feedback keeps the sum within one quantisation
    step).  From gradients: the optimizer's own rule.  With both, theta comes from the updates.
    """
    return rebuild_from(log, rule, log.anchor_before(step), step)


def rebuild_from(log: LogReader, rule: Rule | None, anchor: Anchor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """`rebuild_state` from this anchor instead of the newest."""
    if step == anchor.step:
        state = {name: anchor.tensor(name) for name in anchor.state_names()}
        return anchor.tensor("theta").to(log.layout.dtype), state
    *_, (_, theta, state) = _walk(log, rule, anchor, range(anchor.step, step), stride=step - anchor.step)
    return theta, state


def trajectory(log: LogReader, rule: Rule | None, first: int) -> Iterator[tuple[int, Tensor]]:
    """(t, theta[t]) for the anchor at `first` and every later step, the end of the log included; theta is reused."""
    for t, theta, _ in _walk(log, rule, log.anchor_before(first), range(first, log.steps.stop), stride=1):
        yield t, theta


def _walk(
    log: LogReader, rule: Rule | None, anchor: Anchor, steps: range, stride: int
) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
    """(t, theta[t], state before t) at the anchor and after every `stride` steps."""
    updates = "update" in log.vectors
    if rule is None and not updates:
        raise UnsupportedOptimizerError(
            f"{log.manifest['optimizer']['class']} has no replay rule and this log keeps no updates: "
            'theta[t] exists at the anchors only. Record with vectors="update" or "both"'
        )
    theta = anchor.tensor("theta").to(log.layout.dtype)
    replayed = None
    if rule is not None and log.gradients:
        replayed = state_from_anchor(log, anchor, rule, parameters=True, stream=True, keep=True)
        if not updates:
            assert replayed.theta is not None
            theta = replayed.theta  # otherwise the rule's theta only serves its own L2 decay
    yield steps.start, theta, {}
    for t in range(steps.start, steps.stop, stride):
        part = range(t, min(t + stride, steps.stop))
        if updates:
            for s in part:
                theta += log[s].update()
        state: dict[str, Tensor] = {}
        if replayed is not None and rule is not None:
            run_window(log, rule, replayed, [StepPlan()] * len(part), Injections(), stream=True, lead=len(part))
            names = rule.state_names(log[t].groups)
            state = {n: tensor for n, tensor in zip(names, replayed.factual, strict=True) if tensor is not None}
        yield part.stop, theta, state


def dense_gradient(log: LogReader, step: int, theta: Tensor | None) -> Tensor:
    """g[step] [P] as the optimizer consumed it; from a plain-SGD update log as -(u / lr) - w theta."""
    record = log[step]
    if log.gradients:
        return record.gradient()
    g = record.update()
    for entry in log.layout.entries:
        group = record.groups[entry.group]
        part = g[entry.begin : entry.end]
        part.div_(-group["lr"]) if group["lr"] else part.zero_()
        if group["weight_decay"] and theta is not None:
            part -= group["weight_decay"] * theta[entry.begin : entry.end]
        if group["maximize"]:
            part.neg_()
    return g
