"""SGD without curvature is linear in what is removed: two requests add up to their union."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lmcleaner_ext as lmc
from support.cases import OPTIMIZERS, epochs, mlp, record

SAMPLES = 24
LINEAR = ("sgd", "sgd decay", "momentum", "nesterov", "dampening")


@pytest.fixture(scope="module")
def runs():
    """One short run per optimizer, read many times."""
    with tempfile.TemporaryDirectory() as folder:
        schedule = epochs(SAMPLES, 6, 12)
        yield {
            n: record(Path(folder) / n.replace(" ", ""), mlp(samples=SAMPLES, hidden=5), schedule, OPTIMIZERS[n])
            for n in LINEAR
        }


@pytest.mark.parametrize("name", LINEAR)
@settings(max_examples=15)
@given(st.data())
def test_disjoint_requests_add_up(runs, name, data):
    run = runs[name]
    ids = data.draw(st.lists(st.integers(0, SAMPLES - 1), min_size=2, max_size=8, unique=True))
    cut = data.draw(st.integers(1, len(ids) - 1))

    def correction(part):
        return lmc.compute_correction(run.model, run.path, part, hessian_mode="none", **run.options)

    union = correction(ids)
    torch.testing.assert_close(
        correction(ids[:cut]) + correction(ids[cut:]), union, rtol=1e-9, atol=1e-9 * float(union.abs().max())
    )


@settings(max_examples=10)
@given(st.lists(st.integers(0, SAMPLES - 1), min_size=2, max_size=8, unique=True), st.randoms())
def test_the_order_of_the_ids_does_not_matter(runs, ids, random):
    run = runs["momentum"]
    shuffled = list(ids)
    random.shuffle(shuffled)
    first, second = (
        lmc.compute_correction(run.model, run.path, i, hessian_mode="none", **run.options) for i in (ids, shuffled)
    )
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)
