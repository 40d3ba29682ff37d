"""gram, combine, scale_sample_grads and diag_hessian_update_ of the GPU's backends, against float64 or the reference's bits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lmcleaner_ext import ops
from lmcleaner_ext.errors import NumericalError
from support import backends
from support.backends import Backend

GPU = backends.params("cuda", "triton")
EPS = torch.finfo(torch.float32).eps
SIZES = (0, 1, 255, 257, 5_003)


def encoded(count: int, n: int, dtype: str, device: str, offset: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(n)
    found = []
    for _ in range(count):
        payload, scales = ops.encode(torch.randn(n, generator=generator), dtype, backend="reference")
        moved = torch.empty(n + offset, dtype=payload.dtype, device=device)[offset:].copy_(payload)
        found.append((moved, scales.to(device)))
    return found


def doubles(vectors: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([ops.decode(p.cpu(), s.cpu(), torch.float64) for p, s in vectors])


@pytest.mark.parametrize("backend", GPU)
@pytest.mark.parametrize("dtype", ["fp16", "mixed"])
@pytest.mark.parametrize(("count", "n"), [(1, 1), (3, 257), (17, 300), pytest.param(35, 5_000, marks=pytest.mark.slow)])
def test_gram(count: int, n: int, dtype: str, backend: Backend):
    vectors = encoded(count, n, "fp16" if dtype == "mixed" else dtype, backend.device)
    if dtype == "mixed":
        vectors += encoded(2, n, "fp32", backend.device)
    found = ops.gram(vectors, backend=backend.name).cpu()
    exact = doubles(vectors) @ doubles(vectors).T
    norms = exact.diagonal().sqrt()
    assert found.dtype == torch.float64
    assert bool(((found - exact).abs() <= 64 * EPS * norms[:, None] * norms).all())
    assert torch.equal(found, found.T)
    assert torch.equal(found, ops.gram(vectors, backend=backend.name).cpu())
    assert torch.equal(found[:1], ops.gram(vectors, rows=1, backend=backend.name).cpu())


@pytest.mark.parametrize("backend", GPU)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("requests", [1, 5])
def test_combine(requests: int, n: int, backend: Backend):
    vectors = encoded(6, n, "fp16", backend.device, offset=3)
    coefficients = torch.randn(requests, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = ops.combine(vectors, coefficients, backend=backend.name).cpu()
    exact = coefficients @ doubles(vectors)
    bound = 8 * EPS * (coefficients.abs() @ doubles(vectors).abs())
    assert bool(((found - exact).abs() <= bound).all())


@pytest.mark.parametrize("backend", GPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scale_sample_grads(dtype: torch.dtype, backend: Backend):
    grads = torch.randn(7, 1_003, generator=torch.Generator().manual_seed(2)).to(dtype).to(backend.device)
    weights = torch.rand(7, device=backend.device)
    total, norms = ops.scale_sample_grads(grads, weights, 20.0, backend=backend.name)
    exact = grads.double().norm(dim=1)
    factors = weights.double() * (20.0 / exact).clamp(max=1)
    torch.testing.assert_close(norms, exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(total.double(), factors @ grads.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", GPU)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("seed", [None, 3, 2**62 + 5])
@pytest.mark.parametrize("kind", ["fisher", "hutchinson"])
def test_diagonal(kind: str, seed: int | None, n: int, backend: Backend):
    """The reference's own number, or the next one of eleven bits where a last bit decides."""
    generator = torch.Generator().manual_seed(n)
    g = torch.randn(n, generator=generator) * 1e-3
    probe = torch.randn(n, generator=generator).sign() if kind == "hutchinson" else None
    start = ops.encode(torch.randn(n, generator=generator).square() * 1e-6, "fp16")
    expected = tuple(x.clone() for x in start)
    ops.diag_hessian_update_(expected, g, 0.9, kind, probe=probe, seed=seed, backend="reference")
    h = tuple(x.to(backend.device, copy=True) for x in start)
    moved = None if probe is None else probe.to(backend.device)
    fits = ops.diag_hessian_update_(h, g.to(backend.device), 0.9, kind, probe=moved, seed=seed, backend=backend.name)
    assert bool(fits)
    found, wanted = (ops.decode(p.cpu(), s.cpu(), torch.float64) for p, s in (h, expected))
    assert bool(((found - wanted).abs() <= 2.0**-10 * wanted.abs() + 1e-12).all())
    if n > 1000:
        assert float((found != wanted).double().mean()) < 0.01


@pytest.mark.parametrize("backend", GPU)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diagonal_that_does_not_fit_is_told(value: float, backend: Backend):
    g = torch.ones(700, device=backend.device)
    g[300] = value
    h = tuple(x.to(backend.device) for x in ops.encode(torch.zeros(700), "fp16"))
    if backend.device == "cpu":
        with pytest.raises(NumericalError):
            ops.diag_hessian_update_(h, g, 0.9, backend=backend.name)
    else:
        assert not bool(ops.diag_hessian_update_(h, g, 0.9, backend=backend.name))
