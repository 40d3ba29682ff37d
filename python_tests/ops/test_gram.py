"""gram, combine and scale_sample_grads: many vectors at once, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lmcleaner_ext import ops
from lmcleaner_ext.errors import BackendUnavailableError, ConfigurationError

EPS = torch.finfo(torch.float32).eps
SIZES = (0, 1, 127, 128, 129, 256, 257, 100_000, pytest.param(10_000_019, marks=pytest.mark.slow))
BACKENDS = ("reference", "cpu")
FORMATS = ("fp16", "bf16", "fp32", "int8", "fp8")


def vectors(count: int, n: int, formats: tuple[str, ...] = FORMATS, offset: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(n + count)
    found = []
    for k in range(count):
        x = torch.randn(n, generator=generator) * 10.0 ** (k % 7 - 5)
        payload, scales = ops.encode(x, formats[k % len(formats)], backend="reference")
        found.append((torch.empty(n + offset, dtype=payload.dtype)[offset:].copy_(payload), scales))
    return found


def dense(encoded: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([ops.decode(*x, torch.float64) for x in encoded])


def check(encoded: list[tuple[Tensor, Tensor]], backend: str) -> None:
    u = dense(encoded)
    products = ops.gram(encoded, backend=backend)
    assert products.dtype == torch.float64
    assert torch.equal(products, products.T)
    for rows in {1, (len(encoded) + 1) // 2}:
        assert torch.equal(ops.gram(encoded, rows, backend=backend), products[:rows])
    # 64 fused products per lane at most, a tree of lanes, then double
    assert bool(((products - u @ u.T).abs() <= 70 * EPS / 2 * (u.abs() @ u.abs().T)).all())

    c = torch.randn(3, len(encoded), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, bound = ops.combine(encoded, c, backend=backend), (len(encoded) + 2) * EPS / 2 * (c.abs() @ u.abs())
    assert found.dtype == torch.float32
    assert bool(((found - c @ u).abs() <= bound + 2.0**-149).all())
    out = torch.ones(3, u.shape[1])
    assert ops.combine(encoded, c, out, backend=backend) is out
    assert bool(((out - (1 + c @ u)).abs() <= bound + (len(encoded) + 2) * EPS / 2).all())
    assert torch.equal(ops.combine(encoded, c[1], backend=backend), found[1])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 33])
def test_any_number_of_vectors(count: int, instruction_set: str):
    check(vectors(count, 1003), "cpu")


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes(backend: str, n: int, dtype: str):
    check(vectors(3, n, (dtype,)), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_misaligned(backend: str):
    check(vectors(5, 1003, offset=1), backend)


def test_errors_do_not_grow_with_the_size():
    """Sums of 4 million equal products: float32 alone would be off by far more."""
    x = torch.full((1 << 22,), 0.1)
    exact = float(x[0].double() ** 2) * (1 << 22)
    assert float(ops.gram([x, x], backend="cpu")[0, 1]) == pytest.approx(exact, rel=20 * EPS)


def test_same_bits_for_any_number_of_threads(instruction_set: str):
    encoded, c = vectors(5, 70_001), torch.randn(2, 5)
    grads, outcomes, threads = torch.randn(4, 70_001), [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            outcomes.append(
                [ops.gram(encoded), ops.combine(encoded, c), *ops.scale_sample_grads(grads, torch.ones(4), 1.0)]
            )
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


# -- per-sample gradients ----------------------------------------------------------------------------------------------


def check_samples(grads: Tensor, weights: Tensor, clip: float, backend: str | None) -> None:
    found, norms = ops.scale_sample_grads(grads, weights, clip, backend=backend)
    g, w = grads.double(), weights.double()
    exact_norms = g.square().sum(1).sqrt()
    exact = w * torch.where(exact_norms > clip, clip / exact_norms, 1.0)
    assert norms.dtype == torch.float64
    torch.testing.assert_close(norms, exact_norms, rtol=1e-12, atol=0)
    bound = (len(grads) + 2) * torch.finfo(found.dtype).eps / 2 * (exact.abs() @ g.abs())
    assert bool(((found - exact @ g).abs() <= bound + 2.0**-149 * (1 + len(grads))).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("clip", [0.5, 1e3, math.inf])
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_samples(batch: int, clip: float, dtype: torch.dtype, instruction_set: str):
    generator = torch.Generator().manual_seed(batch)
    grads = torch.randn(batch, 1003, generator=generator).to(dtype)
    check_samples(grads, torch.randn(batch, generator=generator), clip, "cpu")


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sample_sizes(backend: str, n: int):
    check_samples(torch.randn(3, n), torch.rand(3), 1.0, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("magnitude", [0.0, 1e-40, 1e-25, 1e18])
def test_extreme_samples(magnitude: float, backend: str):
    """Squares under and over float32's range are no difficulty in double; a zero gradient has the factor one."""
    check_samples(torch.randn(3, 700) * magnitude, torch.tensor([1.0, 0.0, -2.0]), 1e-3, backend)


def test_float64_samples():
    check_samples(torch.randn(3, 700, dtype=torch.float64), torch.rand(3), 1.0, None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_shows_in_its_norm(backend: str):
    grads = torch.ones(3, 700)
    grads[1, 300] = math.nan
    assert ops.scale_sample_grads(grads, torch.ones(3), 1.0, backend=backend)[1].isnan().tolist() == [
        False,
        True,
        False,
    ]


# -- the ops as such ---------------------------------------------------------------------------------------------------


def test_opcheck_and_compile():
    payloads, scales = map(list, zip(*vectors(3, 300), strict=True))
    grads, weights = torch.randn(3, 300), torch.rand(3)
    torch.library.opcheck(torch.ops.lmcleaner.gram, (payloads, scales, 2))
    torch.library.opcheck(torch.ops.lmcleaner.combine_, (torch.zeros(2, 300), payloads, scales, torch.rand(2, 3)))
    torch.library.opcheck(torch.ops.lmcleaner.scale_sample_grads, (grads, weights, 1.0))

    def step(g: Tensor) -> Tensor:
        total, norms = torch.ops.lmcleaner.scale_sample_grads(g * 2, weights, 1.0)
        return total / norms.sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(grads), step(grads))


def test_what_is_refused():
    grads, weights, x = torch.zeros(3, 300), torch.ones(3), torch.zeros(300)
    with pytest.raises(ConfigurationError, match="contiguous matrix"):
        ops.scale_sample_grads(torch.zeros(300, 3).T, weights)
    with pytest.raises(ConfigurationError, match="one number per sample"):
        ops.scale_sample_grads(grads, torch.ones(2))
    with pytest.raises(ConfigurationError, match="clip must be positive"):
        ops.scale_sample_grads(grads, weights, 0.0)
    with pytest.raises(ConfigurationError, match="one or more vectors"):
        ops.gram([])
    with pytest.raises(ConfigurationError, match=r"vectors\[1\]"):
        ops.gram([x, torch.zeros(299)])
    with pytest.raises(ConfigurationError, match="contiguous"):
        ops.gram([torch.zeros(600)[::2]])
    with pytest.raises(ConfigurationError, match="1 to 2; found 3"):
        ops.gram([x, x], rows=3)
    with pytest.raises(ConfigurationError, match="coefficients must be"):
        ops.combine([x], torch.ones(1, 2))
    with pytest.raises(ConfigurationError, match="out must be"):
        ops.combine([x], torch.ones(1), torch.zeros(600)[::2])
    with pytest.raises(BackendUnavailableError, match="float64"):
        ops.gram([x.double()], backend="cpu")
