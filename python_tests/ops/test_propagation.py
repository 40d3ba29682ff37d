"""Damped propagation with a diagonal curvature, against float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lmcleaner_ext import ops
from lmcleaner_ext.errors import BackendUnavailableError, ConfigurationError
from lmcleaner_ext.ops import coefficients as column
from support import backends
from support.backends import Backend, device_of

EPS = torch.finfo(torch.float32).eps
SIZES = (0, 1, 127, 128, 129, 256, 257, 100_000, pytest.param(10_000_019, marks=pytest.mark.slow))
BACKENDS = backends.params("reference", "cpu", "cuda", "triton")


@dataclass(frozen=True)
class Case:
    steps: int = 6
    dtype: str = "fp16"
    lr: float = 0.1
    damping: float = 1e-3
    curvature: float = 3.0  # the largest h
    magnitude: float = 1e-3
    injections: tuple[tuple[int, float], ...] = ((0, 0.5), (2, 1.0), (2, -0.25), (5, 0.1))
    missing: tuple[int, ...] = ()
    offset: int = 0  # v, h and injections begin this many elements into their memory


CASES = {
    "plain": Case(),
    "bf16": Case(dtype="bf16"),
    "fp32": Case(dtype="fp32"),
    "int8": Case(dtype="int8"),
    "fp8": Case(dtype="fp8"),
    "lr-zero": Case(lr=0.0),
    "damping-zero": Case(damping=0.0),
    "no-steps": Case(steps=0, injections=()),
    "quiet": Case(injections=()),
    "missing": Case(missing=(1, 3)),
    "expanding": Case(curvature=60.0),  # lr h up to 6: factors down to -5
    "denormal": Case(magnitude=1e-39, dtype="fp32"),
    "zeros": Case(magnitude=0.0, curvature=0.0),
    "long": Case(steps=150, curvature=0.3, injections=tuple((t, 0.1) for t in range(0, 150, 2))),
    "misaligned": Case(offset=3, dtype="bf16"),
}


NOTHING = ops.EncodedVector(torch.empty(0), torch.empty(0, dtype=torch.uint8))


def pairs(rows: Sequence[tuple[float, float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).view(-1, 2)


@dataclass
class Inputs:
    case: Case
    v: Tensor
    diagonals: list[ops.EncodedVector]
    injections: list[ops.EncodedVector]

    def run(self, dtype: torch.dtype, backend: str | None) -> tuple[Tensor, Tensor, Tensor]:
        """(v afterwards, sum of squares, largest factor)"""
        device = device_of(backend)
        memory = torch.empty(self.v.numel() + self.case.offset, dtype=dtype, device=device)
        v = memory[self.case.offset :].copy_(self.v)
        coefficients = [(self.case.lr / (1 + t), self.case.damping) for t in range(self.case.steps)]
        diagonals, injections = ([self.moved(x, device) for x in xs] for xs in (self.diagonals, self.injections))
        window = ops.PropagationWindow(v, diagonals, pairs(coefficients), injections, pairs(self.case.injections))
        squares, largest = ops.damped_propagate_window_(window, backend=backend)
        return v.cpu(), squares.cpu(), largest.cpu()

    def moved(self, vector: ops.EncodedVector, device: str) -> ops.EncodedVector:
        """On the device, as far into its memory as here."""
        payload, scales = vector
        if device == "cpu" or not payload.numel():
            return ops.EncodedVector(payload.to(device), scales.to(device))
        memory = torch.empty(len(payload) + self.case.offset, dtype=payload.dtype, device=device)
        return ops.EncodedVector(memory[self.case.offset :].copy_(payload), scales.to(device))

    def tolerance(self) -> Tensor:
        """Per element, a rounding per operation, each relative to what |v| would be had nothing cancelled."""
        travelled, table = self.v.double().abs(), self.case.injections
        for t, diagonal in enumerate(self.diagonals):
            lr = self.case.lr / (1 + t)
            h = ops.decode(*diagonal, torch.float64) if diagonal[0].numel() else 0.0
            travelled = travelled * (1 + lr * self.case.damping + lr * h) + sum(
                (abs(lr * w) * ops.decode(*self.injections[i], torch.float64).abs() for i, (s, w) in enumerate(table) if s == t),
                torch.zeros_like(travelled),
            )  # fmt: skip
        operations = 3 * self.case.steps + len(table) + 2
        return operations * EPS / 2 * travelled + operations * 2.0**-149


def build(case: Case, n: int) -> Inputs:
    generator = torch.Generator().manual_seed(n)

    def encoded(x: Tensor) -> ops.EncodedVector:
        payload, scales = ops.encode(x, case.dtype, backend="reference")
        moved = torch.empty(n + case.offset, dtype=payload.dtype)[case.offset :].copy_(payload)
        return ops.EncodedVector(moved, scales)

    v = torch.randn(n, generator=generator) * case.magnitude
    diagonals = [encoded(torch.rand(n, generator=generator) * case.curvature) for _ in range(case.steps)]
    for t in case.missing:
        diagonals[t] = NOTHING
    injections = [encoded(torch.randn(n, generator=generator) * case.magnitude) for _ in case.injections]
    return Inputs(case, v, diagonals, injections)


def agree(inputs: Inputs, backend: str) -> None:
    exact, _, exact_factor = inputs.run(torch.float64, "reference")
    v, squares, factor = inputs.run(torch.float32, backend)
    assert bool(((v.double() - exact).abs() <= inputs.tolerance()).all())
    assert squares.dtype == factor.dtype == torch.float64
    assert float(squares) == pytest.approx(float(v.double().square().sum()), rel=1e-12)
    assert float(factor) == pytest.approx(float(exact_factor), rel=4 * EPS)


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, instruction_set: str):
    agree(build(CASES[name], 1003), "cpu")


@pytest.mark.parametrize("backend", backends.params("cuda", "triton"))
@pytest.mark.parametrize("name", CASES)
def test_cases_on_a_gpu(name: str, backend: Backend):
    agree(build(CASES[name], 1003), backend.name)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes(n: int, backend: Backend):
    backend.skip_if_long(n)
    agree(build(Case(steps=3, injections=((1, 0.5),)), n), backend.name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_step(backend: Backend):
    v, h = torch.randn(1000, device=backend.device), torch.rand(1000, device=backend.device) * 9
    expected = v.double() - 0.2 * (h.double() * v.double() + 0.01 * v.double())
    squares, factor = ops.damped_propagate_(v, h, 0.2, 0.01, backend=backend.name)
    torch.testing.assert_close(v.double(), expected, rtol=1e-6, atol=1e-6)
    assert float(squares) == pytest.approx(float(expected.square().sum()), rel=1e-6)
    assert float(factor) == pytest.approx(float((1 - 0.2 * (h.double() + 0.01)).abs().max()), rel=1e-6)


def test_the_replay_of_plain_sgd_is_the_same_recursion():
    """optimizer_replay_window_ with rule "sgd", curvature and damping, in float64: written independently."""
    case, n = Case(steps=5), 700
    inputs = build(case, n)
    h = inputs.diagonals[0]
    inputs.diagonals = [h] * case.steps  # the replay knows one diagonal for all steps
    table = torch.zeros(1, case.steps, column.COLUMNS, dtype=torch.float64)
    for t in range(case.steps):
        table[0, t, column.GAIN] = table[0, t, column.ALPHA] = table[0, t, column.CURVATURE] = 1
        table[0, t, column.LR], table[0, t, column.DAMPING] = case.lr / (1 + t), case.damping
    used = [i for i, (step, _) in enumerate(case.injections) if step < case.steps]
    inputs.case = Case(steps=5, injections=tuple(case.injections[i] for i in used))
    inputs.injections = [inputs.injections[i] for i in used]
    found, squares, _ = inputs.run(torch.float64, "reference")
    delta = inputs.v.double()
    window = ops.ReplayWindow(
        delta, None, [], [], table, torch.tensor([[0, n, 0]]), [NOTHING] * case.steps, inputs.injections,
        pairs(inputs.case.injections), ops.decode(*h, torch.float64), "sgd",
    )  # fmt: skip
    expected = ops.optimizer_replay_window_(window)
    torch.testing.assert_close(found, delta, rtol=1e-12, atol=1e-18)
    assert float(squares) == pytest.approx(float(expected), rel=1e-12)


def test_same_bits_for_any_number_of_threads(instruction_set: str):
    inputs = build(Case(steps=4, injections=((1, 0.5),)), 70_001)
    outcomes, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            v, squares, factor = inputs.run(torch.float32, "cpu")
            outcomes.append([v, squares, factor])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("position", [0, 300, 999])
def test_a_nan_is_seen(position: int, backend: Backend):
    h = torch.rand(1000, device=backend.device)
    h[position] = math.nan
    squares, factor = ops.damped_propagate_(torch.ones_like(h), h, 0.1, 0.0, backend=backend.name)
    assert bool(squares.isnan())
    assert bool(factor.isnan())


# -- the ops as such ---------------------------------------------------------------------------------------------------


def test_opcheck():
    inputs = build(Case(steps=2, injections=((1, 0.5),)), 300)
    coefficients = pairs([(0.1, 0.01), (0.2, 0.0)])
    window = ops.PropagationWindow(inputs.v, inputs.diagonals, coefficients, inputs.injections, pairs([(1, 0.5)]))
    torch.library.opcheck(torch.ops.lmcleaner.damped_propagate_window_, window.flat())


def test_under_torch_compile():
    payload, scales = ops.encode(torch.rand(300), "fp16")
    coefficients, none = torch.tensor([[0.1, 0.01]], dtype=torch.float64), torch.zeros(0, 2, dtype=torch.float64)

    def step(v: Tensor) -> tuple[Tensor, Tensor]:
        v = v * 2
        squares, _ = torch.ops.lmcleaner.damped_propagate_window_(v, [payload], [scales], coefficients, [], [], none)
        return v, squares

    start = torch.randn(300)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(compiled(start), step(start), strict=True))


def test_what_is_refused():
    v = torch.zeros(300)

    def window(
        diagonals: list[Tensor], injections: list[Tensor], table: list[tuple[int, float]]
    ) -> ops.PropagationWindow:
        x, y = ([ops.EncodedVector.of(vector) for vector in vectors] for vectors in (diagonals, injections))
        return ops.PropagationWindow(v, x, pairs([(0.1, 0.0)]), y, pairs(table))

    with pytest.raises(ConfigurationError, match="v must be a contiguous vector"):
        ops.damped_propagate_(torch.zeros(600)[::2], v, 0.1, 0.0)
    with pytest.raises(ConfigurationError, match="diagonals"):
        ops.damped_propagate_(v, torch.zeros(299), 0.1, 0.0)
    with pytest.raises(ConfigurationError, match="rows of coefficients"):
        ops.damped_propagate_window_(window([v, v], [], []))
    with pytest.raises(ConfigurationError, match="these must be equal"):
        ops.damped_propagate_window_(window([v], [], [(0, 1.0)]))
    with pytest.raises(ConfigurationError, match="must be sorted by request"):
        ops.damped_propagate_window_(window([v], [v], [(1, 1.0)]))
    with pytest.raises(BackendUnavailableError, match="float64"):
        ops.damped_propagate_(v.double(), v, 0.1, 0.0, backend="cpu")
