"""The residual against numpy in long double, and its refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcleaner_ext.errors import ConfigurationError, NumericalError
from lmcleaner_ext.evaluation import residual
from lmcleaner_ext.evaluation.residual import CHUNK


def oracle(hat, ideal, trained):
    hat, ideal, trained = (tensor.double().numpy().astype(np.longdouble) for tensor in (hat, ideal, trained))
    return float(np.sqrt(((hat - ideal) ** 2).sum() / ((trained - ideal) ** 2).sum()))


@given(st.integers(1, 300), st.integers(0, 2**31), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
@settings(max_examples=30)
def test_against_long_double(size, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(size, generator=generator).to(dtype) for _ in range(3)]
    assert residual(*vectors) == pytest.approx(oracle(*vectors), rel=1e-13)


def test_meaning():
    ideal, trained = torch.zeros(5), torch.ones(5)
    assert residual(trained, ideal, trained) == 1.0
    assert residual(ideal, ideal, trained) == 0.0
    assert residual(2 * trained, ideal, trained) == 2.0


def test_small_differences_of_large_numbers_survive():
    """Neighbouring float32 numbers: their squared distances, 1e-14, must not drown in a sum over many elements."""
    ideal = torch.ones(CHUNK + 17)
    trained = torch.nextafter(ideal, torch.tensor(2.0))
    hat = ideal.clone()
    hat[-1] = trained[-1]
    assert residual(hat, ideal, trained) == pytest.approx(math.sqrt(1 / (CHUNK + 17)), rel=1e-12)


def test_parameters_may_require_gradients():
    ideal = torch.zeros(3, requires_grad=True)
    assert residual(torch.full((3,), 0.5, requires_grad=True), ideal, torch.ones(3)) == pytest.approx(0.5)


def test_refusals():
    one = torch.ones(3)
    with pytest.raises(ConfigurationError, match="0/0: the forgotten samples took part in no step"):
        residual(torch.zeros(3), one, one.clone())
    with pytest.raises(ConfigurationError, match=r"found shapes \[3\] and \[2\]"):
        residual(one, torch.zeros(2), one)
    with pytest.raises(ConfigurationError, match="expected two flat tensors"):
        residual(one[None], one[None], one[None])
    for bad in (math.nan, math.inf):
        with pytest.raises(NumericalError, match="NaN or an infinity"):
            residual(torch.tensor([1.0, bad]), torch.zeros(2), torch.ones(2))
