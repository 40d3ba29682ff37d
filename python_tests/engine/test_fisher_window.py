"""The Fisher recursion in coefficients against the same recursion vector by vector, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmcleaner_ext import ops
from lmcleaner_ext.engine.fisher_window import fisher_window_, steps_at_once


def sequential(
    v: Tensor,
    gradients: list[Tensor],
    coefficients: list[tuple[float, float]],
    removed: list[Tensor],
    table: list[tuple[int, float, int]],
) -> Tensor:
    v = v.double().clone()
    for t, (g, (lr, damping)) in enumerate(zip(gradients, coefficients, strict=True)):
        for r in range(len(v)):
            taken = sum(
                (w * removed[i] for i, (step, w, request) in enumerate(table) if (step, request) == (t, r)), 0.0
            )
            v[r] = v[r] - lr * (g * (g @ v[r]) + damping * v[r] + taken)
    return v


@settings(max_examples=40)
@given(
    steps=st.integers(0, 2 * steps_at_once(torch.device("cpu")) + 3),
    requests=st.integers(1, 3),
    uses=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=6),
    damping=st.sampled_from([0.0, 0.3, 20.0]),  # with the last one, 1 - lr damping is negative
    seed=st.integers(0, 1000),
)
def test_equals_the_recursion(steps: int, requests: int, uses: list[tuple[int, int]], damping: float, seed: int):
    generator, n = torch.Generator().manual_seed(seed), 300

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    gradients = [normal(n) * 0.1 for _ in range(steps)]
    coefficients = [(0.1 / (1 + t % 3), damping) for t in range(steps)]
    table = (
        sorted((step % steps, 0.5 + i, request % requests) for i, (step, request) in enumerate(uses)) if steps else []
    )
    removed = [normal(n) for _ in table]
    start = normal(requests, n)
    expected = sequential(start, gradients, coefficients, removed, table)
    v = start.clone()
    squares = fisher_window_(v, gradients, coefficients, removed, table)
    torch.testing.assert_close(v, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(squares, expected.square().sum(1), rtol=1e-9, atol=1e-11)
    # from updates u = -lr g
    updates = [-lr * g for g, (lr, _) in zip(gradients, coefficients, strict=True)]
    v = start.clone()
    fisher_window_(v, updates, coefficients, removed, table, scales=[-1 / lr for lr, _ in coefficients])
    torch.testing.assert_close(v, expected, rtol=1e-9, atol=1e-11)
    if requests == 1:
        v = start[0].clone()
        assert fisher_window_(v, gradients, coefficients, removed, table).shape == ()
        torch.testing.assert_close(v, expected[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_on_an_encoded_log(dtype: str):
    generator, n, steps = torch.Generator().manual_seed(0), 10_001, 20
    gradients = [ops.encode(torch.randn(n, generator=generator) * 0.02, dtype) for _ in range(steps)]
    removed = [ops.encode(torch.randn(n, generator=generator), dtype) for _ in range(2)]
    coefficients, table = [(0.1, 0.01)] * steps, [(0, 1.0, 0), (11, -0.5, 1)]
    start = torch.randn(2, n, generator=generator)
    dense, dense_removed = ([ops.decode(*x, torch.float64) for x in vectors] for vectors in (gradients, removed))
    expected = sequential(start, dense, coefficients, dense_removed, table)
    v = start.clone()
    fisher_window_(v, gradients, coefficients, removed, table)
    # an element is rounded once per vector that is added to it; the inner products' errors are far below
    assert float((v - expected).norm() / expected.norm()) < (steps + 4) * torch.finfo(torch.float32).eps
