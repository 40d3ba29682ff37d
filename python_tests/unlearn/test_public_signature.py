"""The keywords of `unlearn` and its kin are the fields of their options classes, and those that the project has promised."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import ConfigurationError
from lmcleaner_ext.unlearn.options import RequestOptions, UnlearnOptions

PROMISED = {
    "level": "sample", "hessian_mode": "auto", "K": 800, "damping": 1e-4, "every": 1, "tol": None, "counterfactual": None, "data": None,
    "loss_fn": None, "optimizer": None, "epsilon": None, "delta": None, "sensitivity": None, "noise": "isotropic", "seed": None,
    "backend": None, "dry_run": False, "progress": None, "audit_log": None, "diagonal": None, "micro_batch": 8, "keep_deviation": False,
    "allow_changed_weights": False,
}  # fmt: skip


def keywords(function) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    assert not [p for p in parameters if p.kind is p.VAR_KEYWORD]
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_unlearn_has_the_promised_keywords():
    assert keywords(lmc.unlearn) == PROMISED


@pytest.mark.parametrize(
    ("function", "options", "without"),
    [
        (lmc.unlearn, UnlearnOptions, set()),
        (lmc.plan, RequestOptions, set()),
        (lmc.compute_correction, RequestOptions, set()),
        (lmc.verify, RequestOptions, {"hessian_mode"}),
        (lmc.deviations, RequestOptions, {"every", "tol", "micro_batch"}),
    ],
)
def test_every_option_is_a_keyword_with_its_default_and_its_help(function, options, without):
    shown, text = keywords(function), re.sub(r"\s+", " ", function.__doc__)
    for f in fields(options):
        assert (f.name in shown) == (f.name not in without)
        if f.name not in without:
            assert shown[f.name] == f.default
            assert f" {f.name}: " in text
            assert f.metadata["help"] in text


@pytest.mark.parametrize("kind", [lmc.LMCleanerSampleLevel, lmc.LMCleanerBatchLevel])
def test_the_unlearners_take_what_unlearn_takes(kind):
    for function in (kind, kind.__call__, kind.unlearn):
        assert keywords(function) == {name: default for name, default in PROMISED.items() if name != "level"}


def test_a_keyword_that_is_none(tmp_path):
    for function in (lmc.unlearn, lmc.plan, lmc.compute_correction, lmc.verify):
        with pytest.raises(TypeError, match=rf"{function.__name__}.*'dampng'"):
            function(None, tmp_path, [1], data=None, dampng=1)
    with pytest.raises(TypeError, match="every"):
        lmc.deviations(None, tmp_path, [[1]], every=2)
    with pytest.raises(TypeError, match="dampng"):
        lmc.LMCleanerSampleLevel(tmp_path, dampng=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"K": "many"}, "K is a whole number >= 0, found 'many'"),
        ({"K": True}, "K is a whole number"),
        ({"K": 1.5}, "K is a whole number"),
        ({"every": 0}, "every is a whole number >= 1, found 0"),
        ({"tol": 0.0}, "tol is a finite number > 0, found 0.0"),
        ({"damping": float("inf")}, "damping is a finite number >= 0"),
        ({"level": None}, "level is one of 'sample', 'batch', found None"),
        ({"dry_run": "no"}, "dry_run is True or False, found 'no'"),
        ({"seed": 1.5}, "seed is a whole number"),
    ],
)
def test_a_value_that_a_field_does_not_take(wrong, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        UnlearnOptions(**wrong)


def test_a_default_stands_once_in_the_package():
    """A second place that says 800, 1e-4 or 8 of these options would sooner or later say another number."""
    text = [path.read_text() for path in sorted(Path(lmc.__file__).parent.rglob("*.py"))]
    for pattern, name in (
        (r"\b800\b", "K"),
        (r"damping\W[^\n]*\b1e-4\b", "damping"),
        (r"micro_batch\W[^\n]*\b8\b", "micro_batch"),
    ):
        assert sum(len(re.findall(pattern, one)) for one in text) == 1, name
