"""diag_hessian_update_: the running average of the curvature's diagonal, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lmcleaner_ext import ops
from lmcleaner_ext.errors import ConfigurationError, NumericalError

SIZES = (0, 1, 127, 128, 129, 256, 257, 100_000, pytest.param(10_000_019, marks=pytest.mark.slow))
BACKENDS = ("reference", "cpu")
KINDS = {"fisher": {}, "gauss_newton": {"batch_size": 8}, "hutchinson": {}}


def block_largest(x: Tensor) -> Tensor:
    padded = torch.zeros(ops.block_count(len(x)) * ops.BLOCK, dtype=x.dtype)
    padded[: len(x)] = x.abs()
    return padded.view(-1, ops.BLOCK).amax(1).repeat_interleave(ops.BLOCK)[: len(x)]


def agrees(found: tuple[Tensor, Tensor], exact: Tensor, operands: Tensor, by_chance: bool) -> None:
    """Eleven bits per element, or as many of the block's largest as subnormal numbers keep; three float32 roundings."""
    decoded = ops.decode(*found, torch.float64)
    relative = 2.0**-10 if by_chance else 2.0**-11
    bound = 1.01 * relative * exact.abs() + 2.0**-38 * block_largest(exact) + 2.0**-22 * operands + 2.0**-140
    assert bool(((decoded - exact).abs() <= bound).all())


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("magnitude", [1.0, 1e-4, 1e-15, 1e-21, 0.0])
def test_kinds(kind: str, magnitude: float, seed: int | None, instruction_set: str):
    check("cpu", kind, 1003, magnitude, seed)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes(backend: str, n: int):
    if backend == "reference" and n > 1_000_000:
        pytest.skip("the reference makes its random numbers in a Python loop over blocks")
    for seed in (None, 7):
        check(backend, "fisher", n, 1e-3, seed, offset=1)


def check(backend: str, kind: str, n: int, magnitude: float, seed: int | None, offset: int = 0) -> None:
    generator = torch.Generator().manual_seed(n)
    g = torch.randn(n + offset, generator=generator)[offset:] * magnitude
    probe = torch.randn(n, generator=generator).sign() if kind == "hutchinson" else None
    payload, scales = ops.encode(torch.randn(n, generator=generator).square() * magnitude**2, "fp16")
    h = (torch.empty(n + offset, dtype=torch.float16)[offset:].copy_(payload), scales)
    estimate = g.double() * (g.double() if probe is None else probe.double()) * KINDS[kind].get("batch_size", 1)
    before = ops.decode(*h, torch.float64)
    exact = 0.9 * before + 0.1 * estimate
    fits = ops.diag_hessian_update_(h, g, 0.9, kind, probe=probe, seed=seed, backend=backend, **KINDS[kind])
    assert bool(fits)
    agrees(h, exact, 0.9 * before.abs() + 0.1 * estimate.abs(), seed is not None)
    expected_scales = ops.encode(ops.decode(*h), "fp16")[1]
    assert int((h[1].int() - expected_scales.int()).abs().max() if n else 0) <= 1  # the largest may round up to a power


def test_rounding_by_chance_is_the_same_on_every_backend(instruction_set: str):
    """beta = 0 and a power of two: nothing rounds before the encoding, so the bits must agree."""
    g, one = torch.randn(1003), torch.ones(1003)
    found = [ops.encode(torch.zeros(1003), "fp16") for _ in BACKENDS]
    for h, backend in zip(found, BACKENDS, strict=True):
        ops.diag_hessian_update_(h, g, 0.0, "hutchinson", probe=one, seed=11, backend=backend)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rounding_by_chance_reaches_what_rounding_to_nearest_does_not(backend: str):
    """A constant gradient at beta = 0.999: to nearest, the average stops short; by chance, it is right on average."""
    n, steps = 4096, 4000
    errors = {}
    for by_chance in (False, True):
        h, g = ops.encode(torch.zeros(n), "fp16"), torch.full((n,), 1.3)
        for step in range(steps if backend == "cpu" else 400):
            ops.diag_hessian_update_(h, g, 0.999, seed=step if by_chance else None, backend=backend)
        limit = 1.3**2 * (1 - 0.999 ** (step + 1))
        errors[by_chance] = abs(float(ops.decode(*h).double().mean()) / limit - 1)
    assert errors[True] < 2e-3
    if backend == "cpu":
        assert errors[False] > 0.05


@pytest.mark.parametrize("seed", [None, 1])
def test_same_bits_for_any_number_of_threads(seed: int | None, instruction_set: str):
    g, outcomes, threads = torch.randn(70_001), [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            h = ops.encode(torch.ones(70_001), "fp16")
            ops.diag_hessian_update_(h, g, 0.9, seed=seed, backend="cpu")
            outcomes.append(h)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_is_refused(backend: str, value: float):
    g = torch.ones(700)
    g[600] = value
    for seed in (None, 1):
        with pytest.raises(NumericalError, match="diagonal"):
            ops.diag_hessian_update_(ops.encode(torch.zeros(700), "fp16"), g, 0.9, seed=seed, backend=backend)


def test_opcheck_and_compile():
    payload, scales = ops.encode(torch.rand(300), "fp16")
    g = torch.randn(300)
    for seed in (None, 5):
        torch.library.opcheck(torch.ops.lmcleaner.diag_hessian_update_, (payload, scales, g, g.clone(), 0.9, 0.1, seed))

    def step(h: Tensor, exponents: Tensor) -> Tensor:
        torch.ops.lmcleaner.diag_hessian_update_(h, exponents, g, g, 0.9, 0.1, None)
        return h * 2

    expected = step(payload.clone(), scales.clone())
    assert torch.equal(torch.compile(step, backend="aot_eager", fullgraph=True)(payload, scales), expected)


def test_what_is_refused():
    h, g = ops.encode(torch.zeros(300), "fp16"), torch.zeros(300)
    with pytest.raises(ConfigurationError, match="contiguous"):
        ops.diag_hessian_update_(h, torch.zeros(600)[::2], 0.9)
    with pytest.raises(ConfigurationError, match="gradient"):
        ops.diag_hessian_update_(h, torch.zeros(299), 0.9)
    with pytest.raises(ConfigurationError, match="block-scaled fp16"):
        ops.diag_hessian_update_(ops.encode(g, "bf16"), g, 0.9)
    with pytest.raises(ConfigurationError, match="kind is one of"):
        ops.diag_hessian_update_(h, g, 0.9, "kfac")
    with pytest.raises(ConfigurationError, match="needs the probe"):
        ops.diag_hessian_update_(h, g, 0.9, "hutchinson")
