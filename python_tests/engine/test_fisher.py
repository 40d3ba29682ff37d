"""hessian_mode="fisher" in coefficients against the same request step by step."""

from __future__ import annotations

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.engine import fisher_window
from support.cases import epochs, mlp, optimizer, two_groups, warm_up_and_decay

STEPS, IDS = 30, [3, 11]


def corrections(run, monkeypatch, **options):
    """(in coefficients, step by step, how many windows went through coefficients)"""
    calls, propagate = [], fisher_window.propagate
    monkeypatch.setattr(fisher_window, "propagate", lambda *a: calls.append(a) or propagate(*a))
    options = {"hessian_mode": "fisher", "damping": 0.05, **run.options, **options}
    found = lmc.compute_correction(run.model, run.path, IDS, **options)
    monkeypatch.setattr(fisher_window, "in_coefficients", lambda *a: False)
    return found, lmc.compute_correction(run.model, run.path, IDS, **options), len(calls)


@pytest.mark.parametrize("options", [{}, {"K": 4}, {"tol": 1e-9}], ids=str)
@pytest.mark.parametrize(
    ("vectors", "decay", "dtype"),
    [
        ("auto", 0.0, "fp32"),
        ("gradient", 0.0, "fp32"),
        ("both", 0.1, "fp32"),
        ("gradient", 0.0, "fp16"),
        ("auto", 0.0, "bf16"),
    ],
)
def test_equals_step_by_step(recorded, monkeypatch, vectors: str, decay: float, dtype: str, options: dict):
    run = recorded(
        mlp(torch.float64 if dtype == "fp32" else torch.float32),
        epochs(48, 8, STEPS, lr=warm_up_and_decay(STEPS)),
        optimizer(torch.optim.SGD, lr=0.5, weight_decay=decay),
        vectors=vectors, dtype=dtype, mode="sample", track_ids=IDS, sample_capacity=100,
    )  # fmt: skip
    found, expected, windows = corrections(run, monkeypatch, **options)
    assert windows > 0
    tolerance = 1e-9 if dtype == "fp32" else 1e-5
    assert float((found - expected).norm() / expected.norm()) < tolerance
    monkeypatch.undo()
    nothing = lmc.compute_correction(run.model, run.path, IDS, hessian_mode="none", **run.options)
    assert float((found - nothing).norm() / nothing.norm()) > 1e-3


@pytest.mark.parametrize(
    ("make", "recording", "request_options"),
    [
        (optimizer(torch.optim.SGD, lr=0.1, momentum=0.9), {"vectors": "gradient"}, {}),
        (optimizer(torch.optim.SGD, lr=0.1, weight_decay=0.1), {}, {}),  # updates with decay do not give the gradient
        (two_groups(torch.optim.SGD, lr=0.1), {}, {}),
        (optimizer(torch.optim.SGD, lr=0.1), {"track_ids": IDS[:1]}, {}),
        (optimizer(torch.optim.SGD, lr=0.1), {}, {"every": 2}),
        (optimizer(torch.optim.SGD, lr=0.1), {}, {"counterfactual": "renormalize"}),
    ],
    ids=["momentum", "decayed updates", "two groups", "untracked", "every", "renormalize"],
)
def test_what_goes_step_by_step(recorded, monkeypatch, make, recording: dict, request_options: dict):
    options = {"mode": "sample", "track_ids": IDS, "sample_capacity": 100, **recording}
    run = recorded(mlp(), epochs(48, 8, 12), make, **options)
    found, expected, windows = corrections(run, monkeypatch, **request_options)
    assert windows == 0
    assert torch.equal(found, expected)


def test_clipped_steps_go_step_by_step(recorded, monkeypatch):
    schedule = epochs(48, 8, 12, clip=0.2)
    run = recorded(
        mlp(), schedule, optimizer(torch.optim.SGD, lr=0.1), mode="sample", track_ids=IDS, sample_capacity=100
    )
    assert corrections(run, monkeypatch)[2] == 0
