"""Lion, recognised by its name: rebuilt, removed from and corrected, against Lion itself in float64.

Its step is lr sign(...) in every element: what a removal changes is which signs flip, and a flip is either right or off by 2 lr.
"""

from dataclasses import replace

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import UnsupportedOptimizerError
from support.cases import (
    MakeOptimizer,
    counterfactual,
    epochs,
    flat,
    mlp,
    optimizer,
    rho,
    train,
    two_groups,
    warm_up_and_decay,
)
from support.lion import Lion
from support.optimizer_oracles import state_of, trajectory, two_runs
from support.tolerances import EXACT, FINE_TUNING

CONVENTIONS = ("placeholder", "renormalize", "skip")
FORGET = [3, 17]
TASK = mlp(hidden=6)
SCHEDULE = epochs(48, 8, 14, lr=lambda t: 1 / (1 + 0.1 * t))
# afterwards nobody trains on the forgotten ones
LATER = tuple(b for b in epochs(48, 8, 24, seed=6).batches if not set(b) & set(FORGET))[:10]

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "plain": optimizer(Lion, lr=1e-3),
    "decay": optimizer(Lion, lr=1e-3, weight_decay=0.1),
    "other betas": optimizer(Lion, lr=1e-3, betas=(0.5, 0.8), weight_decay=0.05),
    "two groups": two_groups(Lion, lr=1e-3, weight_decay=0.1),
    "decay per initial rate": optimizer(Lion, lr=1e-3, weight_decay=1e-4, decoupled_weight_decay=True),
}


# -- the state at every step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectors", ["auto", "both"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_retained_step_is_rebuilt(recorded, name, vectors):
    schedule = epochs(48, 8, 24, lr=lambda t: 1 / (1 + 0.1 * t))
    run = recorded(TASK, schedule, OPTIMIZERS[name], anchor_every=10, vectors=vectors)
    thetas, states = trajectory(TASK, schedule, OPTIMIZERS[name])
    log = run.log()
    assert log.rule is not None
    for t in [*log.steps, 24]:
        theta, state = log.state_at(t)
        torch.testing.assert_close(theta, thetas[t], rtol=0, atol=1e-12)
        assert set(states[t]) == set(state)
        if not state:
            continue
        torch.testing.assert_close(state["exp_avg"], states[t]["exp_avg"], rtol=1e-10, atol=1e-14)


def test_the_recorder_keeps_gradients(recorded):
    """An update is a sign: vectors="auto" must not take the updates of an optimizer with state."""
    log = recorded(TASK, SCHEDULE, OPTIMIZERS["plain"]).log()
    assert log.vectors == ("gradient",)


# -- the deviation, by its definition ----------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_deviation_is_that_of_two_real_runs(recorded, name, convention):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS[name])
    assert_is_that_of_two_runs(run, FORGET, convention, "none")


@pytest.mark.parametrize("name", ["plain", "decay"])
def test_with_the_exact_curvature_too(recorded, name):
    assert_is_that_of_two_runs(recorded(TASK, SCHEDULE, OPTIMIZERS[name]), FORGET, "placeholder", "exact")


def assert_is_that_of_two_runs(run, ids, convention, mode):
    expected, state_expected = two_runs(run, ids, convention, exact=mode == "exact")
    before = state_of(run.model, run.optimizer)
    result = lmc.unlearn(
        run.model, run.path, ids, hessian_mode=mode, damping=0, counterfactual=convention, optimizer=run.optimizer,
        keep_deviation=True, **run.options,
    )  # fmt: skip
    torch.testing.assert_close(result.deviation, expected, rtol=1e-8, atol=1e-10 * float(expected.norm()))
    after = state_of(run.model, run.optimizer)
    for key, gap in state_expected.items():
        torch.testing.assert_close(before[key] - after[key], gap, rtol=1e-7, atol=1e-9 * float(gap.norm()))


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_use_in_the_last_step_alone_is_one_real_step(recorded, name, convention):
    """No step after it could respond: the log's gradients give the difference of the two steps, 0 or 2 lr in every element."""
    schedule = replace(SCHEDULE.until(6), lr=lambda t: 1.0)  # one epoch
    run = recorded(TASK, schedule, OPTIMIZERS[name])
    ids = [schedule.batches[-1][2]]
    assert schedule.uses(ids) == [5]
    deviation = lmc.compute_correction(
        run.model, run.path, ids, hessian_mode="none", counterfactual=convention, **run.options
    )
    ideal = flat(run.retrained(**counterfactual(ids, {"counterfactual": convention}))[0])
    torch.testing.assert_close(deviation, run.theta - ideal, rtol=0, atol=1e-13)
    if convention != "skip":
        rates = {group["lr"] for group in run.optimizer.param_groups}
        flips = (deviation.abs() > 1e-12).nonzero()[:, 0]
        assert 0 < len(flips) < len(deviation)
        assert all(any(abs(abs(float(deviation[i])) - 2 * lr) < 1e-12 for lr in rates) for i in flips)


@pytest.mark.parametrize("level", ["sample", "batch"])
@pytest.mark.parametrize("name", ["plain", "decay"])
def test_the_very_first_step_skipped(recorded, name, level):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS[name])
    ids = [0] if level == "batch" else [SCHEDULE.batches[0][0]]
    assert run.residual(ids, "replay", level=level, counterfactual="skip") < EXACT


@pytest.mark.parametrize("name", ["plain", "decay"])
def test_nothing_left_of_the_run_leaves_the_start(recorded, name):
    schedule = replace(SCHEDULE, batches=tuple((0, *batch[1:]) for batch in epochs(48, 6, 10).batches))
    run = recorded(TASK, schedule, OPTIMIZERS[name])
    lmc.unlearn(run.model, run.path, [0], hessian_mode="none", counterfactual="skip", **run.options)
    torch.testing.assert_close(run.theta, run.start, rtol=0, atol=1e-13)


def test_an_element_that_loses_its_only_gradient_makes_no_step(recorded):
    """sign(0) = 0, and the rounding of g less all of g must not become a whole step: nothing remains of these batches."""
    schedule = replace(SCHEDULE, batches=tuple((t % 7,) for t in range(18)))
    run = recorded(TASK, schedule, OPTIMIZERS["plain"])
    assert run.residual([3], "replay") < EXACT
    first = recorded(TASK, schedule.until(1), OPTIMIZERS["plain"], dtype="fp16")
    lmc.unlearn(first.model, first.path, [0], hessian_mode="none", **first.options)
    torch.testing.assert_close(first.theta, first.start, rtol=0, atol=1e-13)


# -- real retraining ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["sample", "batch"])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_true_gradients_it_is_retraining(recorded, name, convention, level):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS[name])
    ids = FORGET if level == "sample" else [4, 9]
    assert run.residual(ids, "replay", level=level, counterfactual=convention) < EXACT


FINE_TUNE = epochs(160, 8, 60, lr=warm_up_and_decay(60))
SAMPLES = [0, 1, 2, 3]


def test_fine_tuning_a_llama(llama, recorded):
    """Measured: none 0.095, exact 0.005 (0.056 and 2e-5 at lr 1e-5): the first-order response misses a few signs.

    Both sides step by lr in every element, so they part by at most 2 lr per step.
    """
    lr = 3e-5
    run = recorded(llama.task(), FINE_TUNE, optimizer(Lion, lr=lr, weight_decay=0.01))
    ideal = flat(run.retrained(forget=SAMPLES)[0])
    deviation = lmc.compute_correction(run.model, run.path, SAMPLES, hessian_mode="none", **run.options)
    assert rho(run.theta - deviation, ideal, run.theta) <= 0.12
    assert run.residual(SAMPLES, "exact", ideal=ideal) <= FINE_TUNING[3e-4, "exact"]
    reach = sum(2 * lr * FINE_TUNE.lr(t) for t in range(FINE_TUNE.uses(SAMPLES)[0], 60))
    assert 0 < float(deviation.abs().max()) <= reach


def test_through_the_fp16_log_in_float32(llama, recorded):
    """A rounded gradient flips signs where momentum and gradient nearly cancel, on both sides alike."""
    run = recorded(llama.task(torch.float32), FINE_TUNE, optimizer(Lion, lr=3e-5), dtype="fp16", anchor_every=200)
    assert run.residual(SAMPLES, "none") <= FINE_TUNING[3e-4, "none"]


# -- a live optimizer --------------------------------------------------------------------------------------------------


def go_on(run, model, built):
    schedule = replace(run.schedule, batches=run.schedule.batches + LATER)
    return flat(train(TASK, schedule, run.make_optimizer, model=model, optimizer=built, start=14)[0])


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_and_further_training_are_those_of_retraining(recorded, name, convention):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS[name])
    ideal, ideal_optimizer = run.retrained(**counterfactual(FORGET, {"counterfactual": convention}))
    trained = run.theta
    result = lmc.unlearn(
        run.model, run.path, FORGET, hessian_mode="replay", counterfactual=convention, optimizer=run.optimizer,
        **run.options,
    )  # fmt: skip
    assert result.audit.optimizer_corrected
    expected, found = state_of(ideal, ideal_optimizer), state_of(run.model, run.optimizer)
    assert found.keys() == expected.keys() == {"exp_avg"}
    torch.testing.assert_close(found["exp_avg"], expected["exp_avg"], rtol=1e-6, atol=1e-10)
    goal = go_on(run, ideal, ideal_optimizer)
    assert float((go_on(run, run.model, run.optimizer) - goal).norm()) < 10 * EXACT * float((trained - goal).norm())


def test_without_the_correction_momentum_pulls_the_influence_back(recorded):
    ends = {}
    for live in (True, False):
        run = recorded(TASK, SCHEDULE, OPTIMIZERS["plain"])
        ideal, ideal_optimizer = run.retrained(forget=FORGET)
        start = float((run.theta - flat(ideal)).norm())
        live_optimizer = run.optimizer if live else None
        lmc.unlearn(run.model, run.path, FORGET, hessian_mode="replay", optimizer=live_optimizer, **run.options)
        goal = go_on(run, ideal, ideal_optimizer)
        ends[live] = float((go_on(run, run.model, run.optimizer) - goal).norm()) / start
    assert ends[True] < 1e-5
    assert ends[False] > 0.05


@pytest.mark.parametrize("K", [0, 2, 5])
def test_the_state_after_a_truncated_window(recorded, K):
    """Nothing is injected after the window: the deviation only decays, by betas[1], which makes the average (betas[0] makes the step)."""
    identity = min(range(48), key=lambda i: max(SCHEDULE.uses([i])))
    end = max(SCHEDULE.uses([identity])) + 1 + K
    assert end < 14
    deviations = []
    for schedule in (SCHEDULE.until(end), SCHEDULE):
        run = recorded(TASK, schedule, optimizer(Lion, lr=1e-3, betas=(0.6, 0.8)))
        before = state_of(run.model, run.optimizer)["exp_avg"]
        lmc.unlearn(run.model, run.path, [identity], hessian_mode="none", K=K, optimizer=run.optimizer, **run.options)
        deviations.append(before - state_of(run.model, run.optimizer)["exp_avg"])
    assert float(deviations[0].norm()) > 0
    torch.testing.assert_close(deviations[1], deviations[0] * 0.8 ** (14 - end), rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("name", ["plain", "decay"])
def test_online(recorded, name):
    """Given the TrainingLogger of a run in progress: its optimizer is corrected by itself, and the run goes on, logged."""
    run = recorded(TASK, SCHEDULE, OPTIMIZERS[name], keep_open=True)
    ideal, ideal_optimizer = run.retrained(forget=FORGET)
    assert lmc.unlearn(run.model, run.logger, FORGET, hessian_mode="replay", **run.options).audit.optimizer_corrected
    schedule = replace(run.schedule, batches=run.schedule.batches + LATER)
    train(TASK, schedule, run.make_optimizer, model=run.model, optimizer=run.optimizer, start=14, logger=run.logger)
    run.logger.close()
    torch.testing.assert_close(run.theta, go_on(run, ideal, ideal_optimizer), rtol=0, atol=1e-8)
    log = run.log()
    for t in (13, 14, 15, 14 + len(LATER)):  # the correction is in the log: theta[t] on both sides of it
        forget = FORGET if t >= 14 else ()
        plain = flat(train(TASK, schedule.until(t), run.make_optimizer, forget=forget)[0])
        torch.testing.assert_close(log.parameters_at(t), plain, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["plain", "decay"])
def test_undo_is_bit_exact(recorded, name):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS[name])
    theta, before = run.theta, state_of(run.model, run.optimizer)["exp_avg"].clone()
    result = lmc.unlearn(
        run.model, run.path, FORGET, hessian_mode="none", counterfactual="skip", optimizer=run.optimizer
    )
    assert not torch.equal(run.theta, theta)
    result.undo(run.model)
    assert torch.equal(run.theta, theta)
    assert torch.equal(state_of(run.model, run.optimizer)["exp_avg"], before)


# -- what has no rule --------------------------------------------------------------------------------------------------


class CautiousLion(Lion):
    """Another optimizer under another name: the rule goes by the name, not by the base class."""


class Sign(Lion):
    """One that calls itself Lion but keeps other hyper-parameters."""

    def __init__(self, params, lr=1e-4):
        super().__init__(params, lr)
        for group in self.param_groups:
            group["cautious"] = True


Sign.__name__ = Sign.__qualname__ = "Lion"


@pytest.mark.parametrize("kind", [CautiousLion, Sign])
def test_another_optimizer_is_not_taken_for_lion(recorded, kind):
    """A wrong rule would give wrong weights in silence."""
    run = recorded(TASK, SCHEDULE, optimizer(kind, lr=1e-3))
    assert run.log().rule is None
    with pytest.raises(UnsupportedOptimizerError):
        lmc.unlearn(run.model, run.path, FORGET, hessian_mode="none", **run.options)
