"""Every backend of `optimizer_replay_window_` against the float64 reference, to the tolerance of replay_accuracy.py."""

from __future__ import annotations

import functools

import pytest
import torch

from lmcleaner_ext import ops
from support import backends, replay_cases
from support.replay_accuracy import FEW_ULP, oracle_with_travel, worst
from support.replay_cases import Case, Inputs

CASES = replay_cases.sizes() | replay_cases.variants()


@functools.cache
def expected(name: str) -> tuple[Inputs, dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, float]]:
    """Inputs of a case, oracle, travel, and the error that each vector may have."""
    inputs = replay_cases.build(CASES[name])
    oracle, travel = oracle_with_travel(inputs)
    eager, _ = inputs.outcome(torch.float32, "reference")
    allowed = {k: 2 * worst(x, oracle[k], travel[k]) + FEW_ULP for k, x in eager.named().items()}
    return inputs, oracle, travel, allowed


def gpu_cases() -> list:
    """(backend, case) for the GPU's backends; interpreted, a third of the short cases, the others only with -m slow."""
    found = []
    for backend in backends.params("cuda", "triton"):
        interpreted = backend.values[0].device == "cpu"
        for index, (name, case) in enumerate(CASES.items()):
            always = name.startswith("adamw-") and "without-theta" not in name  # without is the CPU's kernel's matter
            later = case.steps > 20 or (index % 3 and not always) or case.n == 10_000
            marks = [*backend.marks, pytest.mark.slow] if interpreted and later else backend.marks
            found.append(pytest.param(*backend.values, name, id=f"{backend.id}-{name}", marks=marks))
    return found


def assert_as_accurate_as_float32_torch(backend: str, name: str) -> None:
    inputs, oracle, travel, allowed = expected(name)
    native, squares = inputs.outcome(torch.float32, backend)
    for vector, x in native.named().items():
        assert worst(x, oracle[vector], travel[vector]) <= allowed[vector], vector
    assert squares.dtype == torch.float64
    assert float(squares) == pytest.approx(float(native.delta.double().square().sum()), rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_cpu_is_as_accurate_as_float32_torch(name: str, instruction_set: str):
    assert_as_accurate_as_float32_torch("cpu", name)


@pytest.mark.parametrize(("backend", "name"), gpu_cases())
def test_gpu_kernels_are_as_accurate_as_float32_torch(backend: backends.Backend, name: str):
    assert_as_accurate_as_float32_torch(backend.name, name)


@pytest.mark.parametrize("name", replay_cases.variants())
def test_a_window_is_its_steps_one_by_one(name: str):
    inputs, oracle, _, _ = expected(name)
    whole, _ = inputs.outcome(torch.float64)
    for vector, x in whole.named().items():
        torch.testing.assert_close(x, oracle[vector], rtol=1e-9, atol=1e-25)


def million_element_backends() -> list:
    """Interpreted, a million elements take minutes."""
    found = backends.params("cpu", "cuda", "triton")
    return [x for x in found if (x.values[0].name, x.values[0].device) != ("triton", "cpu")]


@pytest.mark.parametrize("backend", million_element_backends())
@pytest.mark.parametrize("rule", replay_cases.RULES)
def test_a_million_elements(rule: str, backend: backends.Backend):
    inputs = replay_cases.build(Case(**{**vars(replay_cases.RULES[rule]), "n": 1_000_003, "steps": 4}))
    oracle, _ = inputs.outcome(torch.float64)
    native, _ = inputs.outcome(torch.float32, backend.name)
    for name, x in native.named().items():
        expected = oracle.named()[name]
        assert float((x - expected).norm() / expected.norm()) < 1e-5, name


@pytest.mark.parametrize("backend", backends.params("reference", "cpu", "cuda", "triton"))
@pytest.mark.parametrize("rule", replay_cases.RULES)
def test_elements_outside_the_segments_are_untouched(rule: str, backend: backends.Backend):
    case = CASES[f"{rule}-classes"]
    inputs = replay_cases.build(case)
    outside = torch.ones(case.n, dtype=torch.bool)
    for begin, end, _ in case.segments:
        outside[begin:end] = False
    vectors, _ = inputs.outcome(torch.float32, backend.name)
    for name, x in vectors.named().items():
        assert torch.equal(x[outside], inputs.start.named()[name][outside]), name


@pytest.mark.parametrize("backend", backends.params("reference", "cpu", "cuda", "triton"))
@pytest.mark.parametrize("rule", replay_cases.RULES)
def test_an_empty_state_begins_at_zero(rule: str, backend: backends.Backend):
    inputs = replay_cases.build(Case(**{**vars(replay_cases.RULES[rule]), "n": 1_001}))
    zeros, absent = (inputs.start.to(torch.float32, backend.device) for _ in range(2))
    zeros.state = [torch.zeros_like(x) for x in zeros.state]
    zeros.counterfactual = [torch.zeros_like(x) for x in zeros.counterfactual]
    absent.state = [x[:0] for x in absent.state]
    absent.counterfactual = [x[:0] for x in absent.counterfactual]
    assert torch.equal(inputs.run(zeros, backend.name), inputs.run(absent, backend.name))
    assert torch.equal(zeros.delta, absent.delta)


@pytest.mark.parametrize("rule", replay_cases.RULES)
def test_same_bits_for_any_number_of_threads(rule: str, instruction_set: str):
    inputs = replay_cases.build(Case(**{**vars(replay_cases.RULES[rule]), "n": 70_001}))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, squares_of_one = inputs.outcome(torch.float32, "cpu")
        torch.set_num_threads(3)
        three, squares_of_three = inputs.outcome(torch.float32, "cpu")
    finally:
        torch.set_num_threads(threads)
    for name, x in one.named().items():
        assert torch.equal(x, three.named()[name]), name
    assert torch.equal(squares_of_one, squares_of_three)


@pytest.mark.parametrize("theta", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("rule", replay_cases.RULES)
def test_nothing_removed_leaves_no_deviation(rule: str, damping: float, theta: bool, instruction_set: str):
    assert_nothing_removed_leaves_no_deviation("cpu", rule, damping, theta)


@pytest.mark.parametrize("backend", backends.params("cuda", "triton"))
@pytest.mark.parametrize("theta", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("rule", replay_cases.RULES)
def test_nothing_removed_leaves_no_deviation_on_a_gpu(
    rule: str, damping: float, theta: bool, backend: backends.Backend
):
    assert_nothing_removed_leaves_no_deviation(backend.name, rule, damping, theta)


def assert_nothing_removed_leaves_no_deviation(backend: str, rule: str, damping: float, theta: bool) -> None:
    """Where the counterfactual sees the same gradients, delta is zero, not a rounding error."""
    case = Case(**{**vars(replay_cases.RULES[rule]), "n": 1000, "steps": 20, "injections": (), "theta": theta})
    case = Case(**{**vars(case), "lead": 2, "decay": case.decay if theta else 0.0, "damping": damping})
    vectors, squares = replay_cases.build(case).outcome(torch.float32, backend)
    assert not vectors.delta.any()
    assert squares == 0


def test_a_gradient_that_was_never_there_makes_no_step(instruction_set: str):
    """Adam with g = m = v = 0, as for the embeddings of tokens that never occur: 0 / (0 + eps) is exactly 0."""
    inputs = replay_cases.build(Case("adamw", 300, magnitude=0.0, decay=0.0, injections=()))
    vectors, _ = inputs.outcome(torch.float32, "cpu")
    assert torch.equal(vectors.theta, inputs.start.theta)
    assert torch.equal(vectors.delta, inputs.start.delta)


@pytest.mark.parametrize("backend", backends.params("cuda", "triton"))
@pytest.mark.parametrize("rule", ["momentum", "adamw"])
def test_same_bits_at_every_call(rule: str, backend: backends.Backend):
    inputs = replay_cases.build(Case(**{**vars(replay_cases.RULES[rule]), "n": 5_001}))
    (one, squares), (other, squares_of_other) = (inputs.outcome(torch.float32, backend.name) for _ in range(2))
    for name, x in one.named().items():
        assert torch.equal(x, other.named()[name]), name
    assert torch.equal(squares, squares_of_other)


@pytest.mark.parametrize("backend", backends.params("cuda", "triton"))
def test_vectors_that_begin_anywhere(backend: backends.Backend):
    """Slices that are not aligned to 16 bytes give the same numbers as aligned ones."""
    inputs = replay_cases.build(Case("adamw", 1_500))
    aligned, squares = inputs.outcome(torch.float32, backend.name)

    def shifted(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.new_zeros(1), x]).to(backend.device)[1:]

    start = inputs.start
    moved = replay_cases.Vectors(
        shifted(start.delta),
        shifted(start.theta),
        list(map(shifted, start.state)),
        list(map(shifted, start.counterfactual)),
    )
    inputs.gradients = [ops.EncodedVector(shifted(payload), scales) for payload, scales in inputs.gradients]
    # the sum's order may follow the width of the accesses
    assert float(inputs.run(moved, backend.name)) == pytest.approx(float(squares), rel=1e-12)
    for name, x in moved.named().items():
        assert torch.equal(x.cpu(), aligned.named()[name]), name


def test_default_backend(monkeypatch):
    monkeypatch.delenv("LMCLEANER_BACKEND", raising=False)
    inputs = replay_cases.build(Case("adamw", 500))
    default, _ = inputs.outcome(torch.float32)
    native, _ = inputs.outcome(torch.float32, "cpu")
    assert torch.equal(default.delta, native.delta)
    with ops.use_backend("reference"):
        chosen, _ = inputs.outcome(torch.float32)
    reference, _ = inputs.outcome(torch.float32, "reference")
    assert torch.equal(chosen.delta, reference.delta)
