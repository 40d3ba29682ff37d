"""Vectors that a 32-bit index does not reach. What an op makes of the last elements equals what it makes of them alone."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from lmcleaner_ext import ops
from lmcleaner_ext.ops import coefficients as column
from support import backends

PATTERN = 1 << 20
N = (1 << 31) + 3 * ops.BLOCK + 5
TAIL = (1 << 31) - ops.BLOCK  # a scale block before the end of the reach
BYTES = 7 * N  # the most that a test holds

pytestmark = pytest.mark.slow


def params() -> list:
    return [p for p in backends.params("cpu", "cuda", "triton") if p.id != "triton" or torch.cuda.is_available()]


def repeated(device: str) -> Tensor:
    """Random numbers that repeat after PATTERN elements."""
    if device == "cpu" and os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") < BYTES:
        pytest.skip(f"needs {BYTES / 1e9:.0f} GB of free memory")
    pattern = torch.randn(PATTERN, generator=torch.Generator().manual_seed(0)).to(device)
    out = torch.empty(N, device=device)
    for begin in range(0, N, PATTERN):
        out[begin : begin + PATTERN] = pattern[: min(PATTERN, N - begin)]
    return out


def sum_of_squares(x: Tensor) -> float:
    """In float64, piece by piece."""
    return sum(float(piece.double().square().sum()) for piece in x.split(1 << 27))


@pytest.mark.parametrize("backend", params())
def test_encodings(backend: backends.Backend):
    x = repeated(backend.device)
    tail = x[TAIL:].clone()
    payload, scales = ops.encode(x, "int8", backend=backend.name)
    alone, alone_scales = ops.encode(tail, "int8", backend=backend.name)
    assert torch.equal(payload[TAIL:], alone)
    assert torch.equal(scales[TAIL // ops.BLOCK :], alone_scales)
    ops.decode(payload, scales, out=x, backend=backend.name)
    assert torch.equal(x[TAIL:], ops.decode(alone, alone_scales, backend=backend.name))
    expected = sum_of_squares(x)
    found = float(ops.dot((payload, scales), (payload, scales), backend=backend.name))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("backend", params())
def test_propagation(backend: backends.Backend):
    v = repeated(backend.device)
    log = [ops.encode(v, "int8", backend=backend.name)]
    tail, of_tail = v[TAIL:].clone(), [vector.narrow(TAIL, len(v)) for vector in log]
    coefficients = torch.tensor([[1e-2, 1e-3]], dtype=torch.float64)
    none = torch.empty(0, 2, dtype=torch.float64)
    window = ops.PropagationWindow(v, log, coefficients, [], none)
    squares, _ = ops.damped_propagate_window_(window, backend=backend.name)
    ops.damped_propagate_window_(ops.PropagationWindow(tail, of_tail, coefficients, [], none), backend=backend.name)
    assert torch.equal(v[TAIL:], tail)
    assert float(squares) == pytest.approx(sum_of_squares(v), rel=1e-6)


@pytest.mark.parametrize("backend", params())
def test_replay(backend: backends.Backend):
    delta = repeated(backend.device)
    log = ops.encode(delta, "int8", backend=backend.name)
    tail, of_tail = delta[TAIL:].clone(), log.narrow(TAIL, len(delta))
    coefficients = torch.zeros(1, 1, column.COLUMNS, dtype=torch.float64)
    coefficients[..., column.GAIN] = 1.0  # ALPHA 0: the counterfactual does not see this gradient
    coefficients[..., column.LR] = 1e-2

    def replay(x: Tensor, log: ops.EncodedVector) -> Tensor:
        none = torch.empty(0, 2, dtype=torch.float64)
        segments = torch.tensor([[0, x.numel(), 0]])
        window = ops.ReplayWindow(x, None, [], [], coefficients, segments, [log], [], none, None, "sgd")
        return ops.optimizer_replay_window_(window, backend=backend.name)

    before = tail.clone()
    squares = replay(delta, log)
    replay(tail, of_tail)
    assert not torch.equal(tail, before)
    assert torch.equal(delta[TAIL:], tail)
    assert float(squares) == pytest.approx(sum_of_squares(delta), rel=1e-6)
