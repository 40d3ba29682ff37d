"""A mode owns itself: what serving it takes is said by its class, and the rest of the package asks."""

from __future__ import annotations

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.curvature import MODES, REGISTRY, Curvature, curvature_mode
from lmcleaner_ext.errors import ConfigurationError
from lmcleaner_ext.unlearn.deviations import MODES as TOGETHER
from lmcleaner_ext.unlearn.options import RequestOptions


def test_the_modes_are_the_registry():
    assert MODES == ("none", "diag", "fisher", "ggn", "exact", "replay")
    assert TOGETHER == ("auto", "none", "diag")
    for name in MODES:
        assert curvature_mode(name).name == name
        assert RequestOptions(hessian_mode=name).hessian_mode == name
    with pytest.raises(ConfigurationError, match="found 'magic'"):
        curvature_mode("magic")


@pytest.mark.parametrize(
    ("name", "needs_data", "passes", "damped", "elementwise", "injects", "retrains"),
    [
        ("none", False, 0, False, True, True, False),
        ("diag", False, 0, True, True, True, False),
        ("fisher", False, 0, True, False, True, False),
        ("ggn", True, 3, True, False, True, False),
        ("exact", True, 3, True, False, True, False),
        ("replay", True, 1, False, False, False, True),
    ],
)
def test_what_a_mode_takes(name, needs_data, passes, damped, elementwise, injects, retrains):
    mode = REGISTRY[name]
    assert (mode.needs_data, mode.passes, mode.damped) == (needs_data, passes, damped)
    assert (mode.elementwise, mode.injects, mode.retrains) == (elementwise, injects, retrains)


def test_a_new_mode_is_a_class_in_the_registry(recorded, monkeypatch):
    """A file with a class and a line in the registry: the sweep takes it as it is. Here C = 2 I, beside diag with h = 2."""
    from support.cases import OPTIMIZERS, epochs, mlp

    class Twice(Curvature):
        name = "twice"

        def product(self, view, v):
            return 2 * v

    run = recorded(mlp(hidden=4), epochs(24, 8, 6), OPTIMIZERS["sgd"])
    h = torch.full((run.log().layout.size,), 2.0, dtype=torch.float64)
    expected = lmc.compute_correction(run.model, run.path, [3], hessian_mode="diag", diagonal=h, **run.options)
    monkeypatch.setitem(REGISTRY, "exact", Twice)
    found = lmc.compute_correction(run.model, run.path, [3], hessian_mode="exact", **run.options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15)
