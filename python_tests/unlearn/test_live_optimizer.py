"""The optimizer's state carries the influence too: corrected, training goes on as if the samples had never been there."""

import copy
from dataclasses import replace

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import ConfigurationError, UnsupportedOptimizerError, WrongModelError
from support.cases import OPTIMIZERS, AdamW, counterfactual, epochs, flat, mlp, optimizer, rho, train
from support.tolerances import EXACT

TASK = mlp(hidden=6)
SCHEDULE = epochs(48, 8, 14)
STATEFUL = [name for name in OPTIMIZERS if name not in ("sgd", "sgd decay")]
# afterwards nobody trains on the forgotten ones
FORGET = [3, 17]
LATER = tuple(b for b in epochs(48, 8, 24, seed=6).batches if not set(b) & set(FORGET))[:10]


def go_on(run, model, built):
    schedule = replace(run.schedule, batches=run.schedule.batches + LATER)
    return flat(
        train(TASK, schedule, run.make_optimizer, model=model, optimizer=built, start=len(run.schedule.batches))[0]
    )


def state(model, built):
    return {
        (n, k): v.clone()
        for n, p in model.named_parameters()
        for k, v in built.state[p].items()
        if isinstance(v, torch.Tensor)
    }


@pytest.mark.parametrize("convention", ["placeholder", "renormalize", "skip"])
@pytest.mark.parametrize("level", ["sample", "batch"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_and_further_training_equal_retraining(recorded, name, level, convention):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS[name])
    ids = FORGET if level == "sample" else [4, 9]
    options = {"level": level, "counterfactual": convention}
    ideal, ideal_optimizer = run.retrained(**counterfactual(ids, options))
    trained = copy.deepcopy((run.model, run.optimizer.state_dict()))
    result = lmc.unlearn(
        run.model, run.path, ids, hessian_mode="replay", optimizer=run.optimizer, **run.options, **options
    )
    assert result.audit.optimizer_corrected == (name in STATEFUL)
    expected = state(ideal, ideal_optimizer)
    found = state(run.model, run.optimizer)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-10, msg=str(key))
    old_optimizer = run.make_optimizer(trained[0])
    old_optimizer.load_state_dict(trained[1])
    old_optimizer.base_lrs = run.optimizer.base_lrs
    goal = go_on(run, ideal, ideal_optimizer)
    assert rho(go_on(run, run.model, run.optimizer), goal, go_on(run, trained[0], old_optimizer)) < 10 * EXACT


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_without_the_correction_momentum_pulls_the_influence_back(recorded, name):
    """Exact weights with the old state end far from the goal; with the new state they stay."""
    ends = {}
    for live in (True, False):
        run = recorded(TASK, SCHEDULE, OPTIMIZERS[name])
        ideal, ideal_optimizer = run.retrained(forget=FORGET)
        start = float((run.theta - flat(ideal)).norm())
        lmc.unlearn(
            run.model, run.path, FORGET, hessian_mode="replay", optimizer=run.optimizer if live else None, **run.options
        )
        goal = go_on(run, ideal, ideal_optimizer)
        ends[live] = float((go_on(run, run.model, run.optimizer) - goal).norm()) / start
    assert ends[True] < 1e-5
    assert ends[False] > 0.05


@pytest.mark.parametrize("name", STATEFUL)
def test_undo_is_bit_exact(recorded, name):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS[name])
    theta, before = run.theta, state(run.model, run.optimizer)
    result = lmc.unlearn(
        run.model, run.path, FORGET, hessian_mode="none", counterfactual="skip", optimizer=run.optimizer
    )
    after = state(run.model, run.optimizer)
    assert not torch.equal(run.theta, theta)
    assert any(not torch.equal(after[k], before[k]) for k in before)
    result.undo(run.model)
    assert torch.equal(run.theta, theta)
    again = state(run.model, run.optimizer)
    assert again.keys() == before.keys()
    assert all(torch.equal(again[k], before[k]) for k in before)
    with pytest.raises(ConfigurationError, match="nothing to undo"):
        result.undo(run.model)


def test_undo_refuses_weights_that_changed_since(recorded):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"])
    result = lmc.unlearn(run.model, run.path, FORGET, hessian_mode="none", **run.options)
    with torch.no_grad():
        next(run.model.parameters())[0, 0] += 1e-9
    now = run.theta
    with pytest.raises(WrongModelError):
        result.undo(run.model)
    assert torch.equal(run.theta, now)


@pytest.mark.parametrize("K", [0, 2, 5])
def test_the_state_after_a_truncated_window(recorded, K):
    """Nothing is injected after the window: the state's deviation only decays, by the momentum each step."""
    identity = min(range(48), key=lambda i: max(SCHEDULE.uses([i])))
    end = max(SCHEDULE.uses([identity])) + 1 + K
    assert end < 14
    deviations = []
    for schedule in (SCHEDULE.until(end), SCHEDULE):
        run = recorded(TASK, schedule, OPTIMIZERS["momentum"])
        before = state(run.model, run.optimizer)
        lmc.unlearn(run.model, run.path, [identity], hessian_mode="none", K=K, optimizer=run.optimizer, **run.options)
        deviations.append({key: before[key] - value for key, value in state(run.model, run.optimizer).items()})
    for key, at_end in deviations[0].items():
        torch.testing.assert_close(deviations[1][key], at_end * 0.9 ** (14 - end), rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "adam"])
def test_online(recorded, name):
    """Given the TrainingLogger of a run in progress: its optimizer is corrected by itself, and the run goes on, logged."""
    run = recorded(TASK, SCHEDULE, OPTIMIZERS[name], keep_open=True)
    ideal, ideal_optimizer = run.retrained(forget=FORGET)
    result = lmc.unlearn(run.model, run.logger, FORGET, hessian_mode="replay", **run.options)
    assert result.audit.optimizer_corrected == (name in STATEFUL)
    schedule = replace(run.schedule, batches=run.schedule.batches + LATER)
    train(TASK, schedule, run.make_optimizer, model=run.model, optimizer=run.optimizer, start=14, logger=run.logger)
    run.logger.close()
    goal = go_on(run, ideal, ideal_optimizer)
    torch.testing.assert_close(run.theta, goal, rtol=0, atol=1e-8)
    log = run.log()
    assert log.steps == range(14 + len(LATER))
    for t in (13, 14, 15, 14 + len(LATER)):  # the correction is in the log: theta[t] on both sides of it
        theta = log.parameters_at(t)
        plain = flat(train(TASK, replace(schedule, batches=schedule.batches[:t]), run.make_optimizer,
                           forget=FORGET if t >= 14 else ())[0])  # fmt: skip
        torch.testing.assert_close(theta, plain, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_online_twice(recorded, name):
    """A second request reaches back across the first one's correction. Their interaction is left out: small where the optimizer is
    linear, larger for Adam, whose step is not linear in what is taken out, however small the learning rate (0.16 measured)."""
    make, bound = {
        "sgd": (optimizer(torch.optim.SGD, lr=0.02), 0.05),
        "momentum": (optimizer(torch.optim.SGD, lr=0.005, momentum=0.9), 0.05),
        "adamw": (optimizer(AdamW, lr=1e-4), 0.25),
    }[name]
    run = recorded(TASK, SCHEDULE, make, keep_open=True)
    lmc.unlearn(run.model, run.logger, FORGET, hessian_mode="replay", **run.options)
    schedule = replace(run.schedule, batches=run.schedule.batches + LATER)
    train(TASK, schedule, make, model=run.model, optimizer=run.optimizer, start=14, logger=run.logger)
    other = next(i for i in LATER[0] if schedule.uses([i])[0] < 10)
    before = run.theta
    lmc.unlearn(run.model, run.logger, [other], hessian_mode="exact", damping=0, **run.options)
    run.logger.close()
    goal = flat(train(TASK, schedule, make, forget=[*FORGET, other])[0])
    assert rho(run.theta, goal, before) < bound


def test_the_wrong_optimizer_is_refused(recorded):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"])
    theta = run.theta
    other = TASK.build()
    for wrong in (OPTIMIZERS["adamw"](other), OPTIMIZERS["sgd"](run.model)):
        with pytest.raises(ConfigurationError):
            lmc.unlearn(run.model, run.path, FORGET, hessian_mode="none", optimizer=wrong, **run.options)
    assert torch.equal(run.theta, theta)


def test_an_optimizer_without_a_rule_cannot_be_corrected(recorded):
    run = recorded(TASK, SCHEDULE, optimizer(torch.optim.RMSprop, lr=1e-3, centered=True))
    theta = run.theta
    with pytest.raises(UnsupportedOptimizerError, match="live optimizer"):
        lmc.unlearn(run.model, run.path, FORGET, optimizer=run.optimizer, **run.options)
    assert torch.equal(run.theta, theta)
