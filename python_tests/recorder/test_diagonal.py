"""TrainingLogger(diag_hessian=...): the average is that of the gradients, and hessian_mode="diag" takes it from the log."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lmcleaner_ext as lmc
from lmcleaner_ext.curvature.diagonal import DIAGONAL, DIAGONAL_UPDATES, LoggedDiagonal
from lmcleaner_ext.errors import ConfigurationError, MissingDataError
from lmcleaner_ext.recorder.diagonal_average import BETA
from support.cases import Recording, epochs, flat, mlp, optimizer, train

STEPS, BATCH = 40, 8
sgd = optimizer(torch.optim.SGD, lr=0.1)


def averages(run: Recording, factor: float) -> dict[int, Tensor]:
    """{step: sum over earlier s of (1 - BETA) BETA^(step - 1 - s) factor (g[s] / c[s])^2}, float64, for every step."""
    log, h, found = run.log(), torch.zeros_like(run.theta, dtype=torch.float64), {}
    for t in log.steps:
        h = BETA * h + (1 - BETA) * factor * (log[t].gradient().double() / log[t].clip_factor).square()
        found[t + 1] = h
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize(("kind", "factor"), [("fisher", 1), ("gauss_newton", BATCH)])
def test_anchors_keep_the_average(recorded, kind: str, factor: float, clip: float | None, dtype: torch.dtype):
    schedule = epochs(48, BATCH, STEPS, clip=clip)
    run = recorded(mlp(dtype), schedule, sgd, vectors="both", diag_hessian=kind, anchor_every=15)
    expected = averages(run, factor)
    anchors = [a for a in run.log().anchors() if a.step]
    assert [a.step for a in anchors] == [15, 30, STEPS]  # the last one when the log was closed
    for anchor in anchors:
        assert int(anchor.tensor(DIAGONAL_UPDATES)) == anchor.step
        h = anchor.tensor(DIAGONAL).double()
        # every step rounds by at most 2^-10, upwards as often as downwards
        assert bool(((h - expected[anchor.step]).abs() <= 0.01 * expected[anchor.step] + 1e-9 * h.max()).all())
        assert float(h.sum() / expected[anchor.step].sum()) == pytest.approx(1, abs=1e-3)


def test_training_and_vectors_are_unchanged(recorded):
    schedule = epochs(48, BATCH, 20)
    with_h, without = (
        recorded(mlp(torch.float32), schedule, sgd, diag_hessian=kind, dtype="fp16") for kind in ("fisher", None)
    )
    assert torch.equal(with_h.theta, without.theta)
    assert torch.equal(with_h.log()[7].update(), without.log()[7].update())
    assert not [a for a in without.log().anchors() if DIAGONAL in a.names()]
    rebuilt, state = with_h.log().state_at(15)
    assert torch.equal(rebuilt, without.log().parameters_at(15))
    assert not state  # h is no optimizer state


@pytest.mark.parametrize("optimizer_kind", [torch.optim.SGD, torch.optim.AdamW])
def test_diag_takes_h_from_the_log(recorded, optimizer_kind):
    """With one average for all steps: the same as passing it."""
    make = optimizer(optimizer_kind, lr=0.01)
    run = recorded(mlp(), epochs(48, BATCH, STEPS), make, diag_hessian="gauss_newton", anchor_every=400)
    h = LoggedDiagonal(run.log()).at(0)
    options = {**run.options, "damping": 0.01}
    found = lmc.compute_correction(run.model, run.path, [3], hessian_mode="diag", **options)
    given = lmc.compute_correction(run.model, run.path, [3], hessian_mode="diag", diagonal=h, **options)
    nothing = lmc.compute_correction(run.model, run.path, [3], hessian_mode="none", **run.options)
    assert torch.equal(found, given)
    assert not torch.allclose(found, nothing, rtol=1e-3)


@pytest.mark.parametrize("clip", [None, 0.3])
def test_h_changes_at_the_anchors(recorded, clip: float | None):
    """Several averages: the recursion by hand, in float64."""
    schedule = epochs(48, BATCH, STEPS, clip=clip)
    run = recorded(mlp(), schedule, sgd, vectors="both", diag_hessian="fisher", anchor_every=15)
    logged, log = LoggedDiagonal(run.log()), run.log()
    assert logged.steps == [15, 30, STEPS]
    assert torch.equal(logged.at(14), logged.at(0))
    assert not torch.equal(logged.at(15), logged.at(14))
    assert torch.equal(logged.at(30), logged.at(39))
    if clip is not None:  # the clip factor answers to delta: the sweep goes step by step, with the same h
        found = lmc.compute_correction(run.model, run.path, [3], hessian_mode="diag", **run.options)
        assert bool(found.isfinite().all())
        return
    delta, model = torch.zeros_like(run.theta), run.task.build()
    for t, draws in enumerate(schedule.batches):
        removed = (logged.at(t) + 0.02) * delta
        if 3 in draws:
            torch.nn.utils.vector_to_parameters(log.parameters_at(t), model.parameters())
            loss = run.task.losses(model, run.task.data([3])).sum() * draws.count(3) / BATCH
            removed += flat_gradient(loss, model)
        delta -= 0.1 * removed
    found = lmc.compute_correction(run.model, run.path, [3], hessian_mode="diag", damping=0.02, **run.options)
    torch.testing.assert_close(found, delta, rtol=1e-6, atol=1e-9)


def flat_gradient(loss: Tensor, model: torch.nn.Module) -> Tensor:
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_a_resumed_run_goes_on_with_the_average(recorded):
    schedule = epochs(48, BATCH, STEPS)
    options = {"diag_hessian": "fisher", "vectors": "both", "anchor_every": 400}
    run = recorded(mlp(), schedule.until(25), sgd, **options)
    resumed = lmc.TrainingLogger(
        run.path, run.model, run.optimizer, resume=True, diag_hessian="fisher", loss_fn=run.task.loss_fn
    )
    with resumed:
        train(run.task, schedule, sgd, model=run.model, optimizer=run.optimizer, logger=resumed, start=25)
    last = run.log().anchors()[-1]
    assert (last.step, int(last.tensor(DIAGONAL_UPDATES))) == (STEPS, STEPS)
    expected = averages(run, 1)[STEPS]
    assert bool(((last.tensor(DIAGONAL).double() - expected).abs() <= 0.01 * expected + 1e-9 * expected.max()).all())
    assert torch.equal(flat(run.model), last.tensor("theta"))
    with pytest.raises(ConfigurationError, match="diag_hessian='fisher', found None"):
        lmc.TrainingLogger(run.path, run.model, run.optimizer, resume=True)
    lmc.TrainingLogger(run.path, run.model, run.optimizer, resume=True, diag_hessian="fisher").close()  # not locked


def test_without_a_recorded_diagonal(recorded):
    run = recorded(mlp(), epochs(48, BATCH, 10), sgd)
    with pytest.raises(MissingDataError, match="diag_hessian"):
        lmc.compute_correction(run.model, run.path, [3], hessian_mode="diag", **run.options)
