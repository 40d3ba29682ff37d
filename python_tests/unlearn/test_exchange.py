"""`exchange`: weights and correction change places, in one pass on the CPU in float32 and by torch elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lmcleaner_ext.layout import ParameterLayout
from lmcleaner_ext.unlearn.correction import exchange

SIZES = (1, 15, 16, 17, 16383, 16384, 16385, 100_003)


def parameters(dtype: torch.dtype) -> nn.ParameterList:
    generator = torch.Generator().manual_seed(0)
    return nn.ParameterList(nn.Parameter(torch.randn(n, generator=generator).to(dtype)) for n in SIZES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_change_places_and_back(dtype: torch.dtype) -> None:
    model = parameters(dtype)
    layout = ParameterLayout.of(model)
    theta = layout.flatten(layout.parameters(model))
    v = torch.randn(layout.size, generator=torch.Generator().manual_seed(1)).to(dtype)
    corrected, buffer = theta - v, v.clone()
    before, after = exchange(model, buffer, layout)
    assert torch.equal(layout.flatten(layout.parameters(model)), corrected)
    assert torch.equal(buffer, theta)
    assert before == pytest.approx(float(theta.double().norm()), rel=1e-12)
    assert after == pytest.approx(float(corrected.double().norm()), rel=1e-12)


def test_a_norm_does_not_depend_on_the_threads() -> None:
    norms = []
    for threads in (1, 2):
        model = parameters(torch.float32)
        layout = ParameterLayout.of(model)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            norms.append(exchange(model, torch.full((layout.size,), 1e-3), layout))
        finally:
            torch.set_num_threads(before)
    assert norms[0] == norms[1]


def test_a_million_equal_weights_lose_nothing() -> None:
    model = nn.ParameterList([nn.Parameter(torch.full((1 << 22,), 0.1))])
    layout = ParameterLayout.of(model)
    before, _ = exchange(model, torch.zeros(layout.size), layout)
    assert before == pytest.approx(math.sqrt(1 << 22) * float(torch.tensor(0.1)), rel=1e-12)
