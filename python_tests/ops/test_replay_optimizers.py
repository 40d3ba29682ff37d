"""The reference of `optimizer_replay_window_` against torch.optim itself, run twice in float64.

Both runs are given their gradients: the factual one g[t], the counterfactual one g[t] less what was removed. The op sees
the log of the factual run only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lmcleaner_ext import ops
from lmcleaner_ext.ops import coefficients as column
from support.lion import Lion
from support.replay_cases import NO_SCALES, Case, coefficient_table

N, STEPS = 40, 12
HALF = N // 2  # two parameters, in two groups: classes 0 and 1
TOLERANCE = {"rtol": 1e-12, "atol": 1e-14}

OPTIMIZERS: dict[str, tuple[Case, type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (Case("sgd", N, momentum=0.0, decay=0.0), torch.optim.SGD, {}),
    "sgd-decay": (Case("sgd", N, momentum=0.0, decay=0.1), torch.optim.SGD, {"weight_decay": 0.1}),
    "sgd-maximize": (Case("sgd", N, momentum=0.0, decay=0.1, gain=-1.0), torch.optim.SGD, {"weight_decay": 0.1, "maximize": True}),
    "momentum": (Case("sgd", N, momentum=0.9, decay=0.1), torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "dampening": (Case("sgd", N, momentum=0.8, dampening=0.3, decay=0.0), torch.optim.SGD, {"momentum": 0.8, "dampening": 0.3}),
    "nesterov": (Case("sgd", N, momentum=0.9, decay=0.1), torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": (Case("adam", N, decay=0.1), torch.optim.Adam, {"weight_decay": 0.1}),
    "adam-maximize": (Case("adam", N, decay=0.1, gain=-1.0), torch.optim.Adam, {"weight_decay": 0.1, "maximize": True}),
    "adamw": (Case("adamw", N, decay=0.1, betas=(0.8, 0.95)), torch.optim.AdamW, {"weight_decay": 0.1, "betas": (0.8, 0.95)}),
    "rmsprop": (Case("rmsprop", N, momentum=0.0, decay=0.1, betas=(0.0, 0.9)), torch.optim.RMSprop, {"weight_decay": 0.1, "alpha": 0.9}),
    "rmsprop-momentum": (Case("rmsprop", N, momentum=0.8, decay=0.0, betas=(0.0, 0.99)), torch.optim.RMSprop, {"momentum": 0.8}),
    "rmsprop-maximize": (
        Case("rmsprop", N, momentum=0.8, decay=0.1, gain=-1.0, betas=(0.0, 0.99)), torch.optim.RMSprop,
        {"momentum": 0.8, "weight_decay": 0.1, "maximize": True},
    ),
    "lion": (Case("lion", N, decay=0.1, betas=(0.8, 0.95)), Lion, {"weight_decay": 0.1, "betas": (0.8, 0.95)}),
    "update": (Case("update", N, decay=0.1), torch.optim.SGD, {"weight_decay": 0.1}),
}  # fmt: skip


class Run:
    """A real optimizer over two parameters; `step` takes the gradient of both, [N]."""

    def __init__(self, start: Tensor, kind: type[torch.optim.Optimizer], lr: float, options: dict[str, Any]):
        self.parameters = [torch.nn.Parameter(x.clone()) for x in (start[:HALF], start[HALF:])]
        groups = [{"params": [self.parameters[0]], "lr": lr}, {"params": [self.parameters[1]], "lr": lr / 2}]
        self.optimizer = kind(groups, lr=lr, **options)

    def step(self, gradient: Tensor) -> None:
        for parameter, part in zip(self.parameters, (gradient[:HALF], gradient[HALF:]), strict=True):
            parameter.grad = part.clone()
        self.optimizer.step()

    @property
    def theta(self) -> Tensor:
        return torch.cat([p.detach() for p in self.parameters]).clone()

    def state(self, name: str) -> Tensor:
        return torch.cat([self.optimizer.state[p][name] for p in self.parameters])


def state_names(case: Case) -> tuple[str, ...]:
    if case.rule.startswith("adam"):
        return ("exp_avg", "exp_avg_sq")
    if case.rule == "rmsprop":
        return ("square_avg", "momentum_buffer")[: case.states]
    if case.rule == "lion":
        return ("exp_avg",)
    return ("momentum_buffer",) if case.states else ()


@pytest.mark.parametrize("convention", ["placeholder", "renormalize", "skip"])
@pytest.mark.parametrize("lead", [0, 4])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_runs_of_torch_optim(optimizer: str, lead: int, convention: str):
    case, kind, options = OPTIMIZERS[optimizer]
    removals = {5: (0.7,), 6: (0.3, -0.2), 11: (1.0,)} | ({} if lead else {0: (1.0,), 2: (0.5,)})  # step -> weights
    skip = convention == "skip"
    keep = 1.25 if convention == "renormalize" else 1.0
    nesterov = column.NESTEROV if options.get("nesterov") else 0
    first_of_counterfactual = next(t for t in range(STEPS) if not (skip and t in removals))
    flags = {
        (c, t): nesterov
        | (column.SKIP if skip and t in removals else 0)
        | (column.FIRST if t == 0 else 0)
        | (column.FIRST_CF if t == first_of_counterfactual else 0)
        for c in (0, 1)
        for t in range(STEPS)
    }
    injected = () if skip else tuple((t, w) for t, weights in removals.items() for w in weights)
    injected = tuple(sorted(injected, key=lambda pair: pair[0]))
    case = replace(
        case, steps=STEPS, lead=lead, keep=keep, flags=flags, injections=injected, lr=0.01, taken=0,
        segments=((0, HALF, 0), (HALF, N, 1)),
    )  # fmt: skip

    generator = torch.Generator().manual_seed(1)
    start = torch.randn(N, generator=generator, dtype=torch.float64)
    gradients = torch.randn(STEPS, N, generator=generator, dtype=torch.float64)
    vectors = torch.randn(len(injected), N, generator=generator, dtype=torch.float64)
    factual, counterfactual = Run(start, kind, case.lr, options), Run(start, kind, case.lr, options)
    stream = []
    for t in range(STEPS):
        before = factual.theta
        factual.step(gradients[t])
        stream.append(factual.theta - before if case.rule == "update" else gradients[t])
        if skip and t in removals:
            continue
        removed = sum((w * vectors[i] for i, (step, w) in enumerate(injected) if step == t), torch.zeros(N).double())
        share = keep if t in {step for step, _ in injected} else 1.0
        # the op's injections are in the units of GAIN * g
        counterfactual.step(share * gradients[t] - case.gain * removed)

    begin = torch.full((N,), 7.0, dtype=torch.float64) if lead else torch.zeros(N, dtype=torch.float64)
    delta, theta = begin.clone(), start.clone()
    state = [torch.zeros(N, dtype=torch.float64) for _ in state_names(case)]
    other = [begin.clone() for _ in state_names(case)]  # with a lead: overwritten when the counterfactual begins
    window = ops.ReplayWindow(
        delta,
        theta,
        state,
        other,
        coefficient_table(case),
        torch.tensor(case.segments),
        [ops.EncodedVector(x, NO_SCALES) for x in stream],
        [ops.EncodedVector(x, NO_SCALES) for x in vectors],
        torch.tensor(injected, dtype=torch.float64).view(-1, 2),
        None,
        case.rule,
        lead,
    )
    squares = ops.optimizer_replay_window_(window)
    torch.testing.assert_close(theta, factual.theta, **TOLERANCE)
    torch.testing.assert_close(delta, factual.theta - counterfactual.theta, **TOLERANCE)
    torch.testing.assert_close(squares, delta.square().sum(), **TOLERANCE)
    for own, their, name in zip(state, other, state_names(case), strict=True):
        torch.testing.assert_close(own, factual.state(name), **TOLERANCE)
        deviation = factual.state(name) - counterfactual.state(name)
        torch.testing.assert_close(own - their if case.rule != "sgd" else their, deviation, **TOLERANCE)


def test_curvature_changes_the_gradient_that_the_counterfactual_sees():
    """g' = g - (CURVATURE h + DAMPING) delta, by hand for one step of SGD: delta <- delta - lr (c h + lambda) delta."""
    delta = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    h = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    case = Case("sgd", 3, steps=1, momentum=0.0, decay=0.0, lr=0.1, curvature=2.0, damping=0.3, injections=())
    expected = delta - 0.1 * (2.0 * h + 0.3) * delta
    empty = torch.empty(0, 2, dtype=torch.float64)
    segments = torch.tensor([[0, 3, 0]])
    gradient = [ops.EncodedVector(torch.ones(3).double(), NO_SCALES)]
    window = ops.ReplayWindow(delta, None, [], [], coefficient_table(case), segments, gradient, [], empty, h, "sgd")
    ops.optimizer_replay_window_(window)
    torch.testing.assert_close(delta, expected, **TOLERANCE)
