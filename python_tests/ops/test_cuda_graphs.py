"""The ops that do not wait for the device, captured in a CUDA graph: a replay computes what a call computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lmcleaner_ext import ops
from support import backends
from support.replay_cases import RULES, build, moved

GPU = backends.params("cuda")
N, STEPS = 10_003, 70  # tables of more than one parcel

Start = dict[str, Tensor]
"""What an op changes, by name; a run of it takes these tensors and returns what the op returns."""


def _encoded(count: int) -> list[ops.EncodedVector]:
    generator = torch.Generator().manual_seed(0)
    vectors = [ops.encode(torch.randn(N, generator=generator) * 1e-2, "fp16") for _ in range(count)]
    return [moved(vector, "cuda") for vector in vectors]


def _replay(rule: str) -> tuple[Start, Callable[[Start], object]]:
    inputs = build(replace(RULES[rule], n=N, steps=STEPS))
    vectors = inputs.start.to(torch.float32, "cuda")
    gradients = [moved(vector, "cuda") for vector in inputs.gradients]
    injections = [moved(vector, "cuda") for vector in inputs.injections]

    def run(start: Start) -> object:
        window = ops.ReplayWindow(
            start["delta"], start.get("theta"), [x for k, x in start.items() if k.startswith("state")],
            [x for k, x in start.items() if k.startswith("counterfactual")], inputs.coefficients, inputs.segments,
            gradients, injections, inputs.injection_table, None, inputs.case.rule,
        )  # fmt: skip
        return ops.optimizer_replay_window_(window, backend="cuda")

    return vectors.named(), run


def _propagate() -> tuple[Start, Callable[[Start], object]]:
    log, coefficients = _encoded(STEPS), torch.tensor([[1e-2, 1e-3]] * STEPS, dtype=torch.float64)
    none = torch.empty(0, 2, dtype=torch.float64)
    return {"v": torch.randn(N, device="cuda")}, lambda start: ops.damped_propagate_window_(
        ops.PropagationWindow(start["v"], log, coefficients, [], none), backend="cuda"
    )


def _gram() -> tuple[Start, Callable[[Start], object]]:
    log = _encoded(40)
    return {}, lambda start: ops.gram(log, backend="cuda")


CASES = {
    "adamw": lambda: _replay("adamw"),
    "momentum": lambda: _replay("momentum"),
    "propagate": _propagate,
    "gram": _gram,
}


@pytest.mark.parametrize("backend", GPU)
@pytest.mark.parametrize("case", CASES)
def test_replayed_graph_equals_a_call(case: str, backend: backends.Backend):
    start, run = CASES[case]()
    expected_start = {name: x.clone() for name, x in start.items()}
    expected = run(expected_start)

    held = {name: x.clone() for name, x in start.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a first call outside of the capture, as torch asks for
        run({name: x.clone() for name, x in start.items()})
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        returned = run(held)
    for _ in range(2):
        for name, x in start.items():
            held[name].copy_(x)
        graph.replay()
        torch.cuda.synchronize()
        for name, x in held.items():
            assert torch.equal(x, expected_start[name]), name
        for found, wanted in zip(_list(returned), _list(expected), strict=True):
            assert torch.equal(found, wanted)


def _list(x: object) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else list(x)  # type: ignore[call-overload]
