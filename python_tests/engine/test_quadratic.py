"""A quadratic loss: the gradient is linear, so the method is exact and every error has a closed form."""

import math

import pytest
import torch

import lmcleaner_ext as lmc
from support.cases import SGD, Schedule, flat, optimizer, quadratic, rho

LR, STEPS, USE = 0.5, 200, 3
EIGENVALUES = torch.linspace(0.2, 1.0, 8)  # I - lr A: 0.9 ... 0.5
GAMMA = 1 - LR * 0.2

ONE_USE = Schedule(tuple((0, 1) if t == USE else (2 + t % 5, 8 + t % 7) for t in range(STEPS)))


@pytest.fixture
def run(recorded):
    return recorded(quadratic(EIGENVALUES), ONE_USE, optimizer(SGD, lr=LR))


def test_the_whole_window_equals_retraining(run):
    ideal = flat(run.retrained(forget={0})[0])
    deviation = lmc.compute_correction(run.model, run.path, [0], hessian_mode="exact", damping=0, **run.options)
    torch.testing.assert_close(run.theta - deviation, ideal, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [optimizer(SGD, lr=0.2, momentum=0.8), optimizer(SGD, lr=0.2, momentum=0.8, nesterov=True,
                                                                                 weight_decay=0.1)])  # fmt: skip
def test_momentum_too(recorded, make):
    schedule = ONE_USE.until(60)
    run = recorded(quadratic(EIGENVALUES), schedule, make)
    ideal = flat(run.retrained(forget={0})[0])
    deviation = lmc.compute_correction(run.model, run.path, [0], hessian_mode="exact", damping=0, **run.options)
    assert float((run.theta - ideal).norm()) > 1e-6
    torch.testing.assert_close(run.theta - deviation, ideal, rtol=0, atol=1e-10)


def test_the_truncation_error_falls_as_gamma_to_the_window(run):
    """delta is frozen after K steps, and the true one has decayed to nothing by then: the error is |(I - lr A)^K delta_0|."""
    ideal = flat(run.retrained(forget={0})[0])
    windows = [60, 70, 80, 90, 100, 110]
    errors = []
    for K in windows:
        deviation = lmc.compute_correction(
            run.model, run.path, [0], hessian_mode="exact", damping=0, K=K, **run.options
        )
        errors.append(math.log(float((run.theta - deviation - ideal).norm())))
    n, mean_k, mean_e = len(windows), sum(windows) / len(windows), sum(errors) / len(errors)
    covariance = sum((k - mean_k) * (e - mean_e) for k, e in zip(windows, errors, strict=True)) / n
    slope = covariance / (sum((k - mean_k) ** 2 for k in windows) / n)
    assert slope == pytest.approx(math.log(GAMMA), rel=0.05)


def test_the_window_counts_steps_after_the_last_use(recorded):
    """K = 0 is the injected gradient step alone; K = 1 has gone through one contraction more."""
    task = quadratic(EIGENVALUES)
    run = recorded(task, ONE_USE.until(20), optimizer(SGD, lr=LR))
    at_use = run.log().parameters_at(USE)
    model = task.build()
    with torch.no_grad():
        model.w.copy_(at_use)
    (gradient,) = torch.autograd.grad(task.losses(model, task.data([0])).sum(), [model.w])
    injected = -LR / 2 * gradient
    hessian = torch.autograd.functional.hessian(
        lambda w: torch.func.functional_call(_Losses(model, task), {"model.w": w}, (task.data([4]),)), at_use
    )
    contraction = torch.eye(len(at_use), dtype=torch.float64) - LR * hessian

    for K, expected in [(0, injected), (1, contraction @ injected), (2, contraction @ contraction @ injected)]:
        deviation = lmc.compute_correction(
            run.model, run.path, [0], hessian_mode="exact", damping=0, K=K, **run.options
        )
        torch.testing.assert_close(deviation, expected, rtol=1e-9, atol=0)


class _Losses(torch.nn.Module):
    def __init__(self, model, task):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch):
        return self.task.losses(self.model, batch).sum()


def test_damping_adds_to_the_curvature(recorded):
    """lambda on top of the true curvature: delta[tau] = prod (I - lr (A + lambda I)) delta_0."""
    task = quadratic(torch.full((6,), 0.3))
    run = recorded(task, ONE_USE.until(30), optimizer(SGD, lr=LR))
    one = lmc.compute_correction(run.model, run.path, [0], hessian_mode="exact", damping=0, **run.options)
    two = lmc.compute_correction(run.model, run.path, [0], hessian_mode="exact", damping=0.1, **run.options)
    steps = 30 - USE - 1
    factor = ((1 - LR * 0.4) / (1 - LR * 0.3)) ** steps
    torch.testing.assert_close(two, factor * one, rtol=1e-6, atol=0)


def test_no_curvature_has_nothing_to_damp(run):
    none = [
        lmc.compute_correction(run.model, run.path, [0], hessian_mode="none", damping=d, **run.options)
        for d in (0, 0.5)
    ]
    assert torch.equal(*none)
    ideal = flat(run.retrained(forget={0})[0])
    # without curvature a contribution never decays: worse than nothing here
    assert rho(run.theta - none[0], ideal, run.theta) > 1


def test_a_diagonal_curvature_is_exact_where_the_hessian_is_diagonal(recorded):
    task = quadratic(torch.full((6,), 0.3))  # A = 0.3 I
    run = recorded(task, ONE_USE.until(40), optimizer(SGD, lr=LR))
    ideal = flat(run.retrained(forget={0})[0])
    h = torch.full((6,), 0.3, dtype=torch.float64)
    assert run.residual([0], "diag", ideal=ideal, diagonal=h, damping=0) < 1e-6
    assert run.residual([0], "diag", ideal=ideal, diagonal=0.9 * h, damping=0) > 0.1
