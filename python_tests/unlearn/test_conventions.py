"""hessian_mode="replay" is the engine with true gradients: against real retraining by torch.optim it must be exact.

Every optimizer, counterfactual convention and level, in float64, with schedules, clipping, accumulation and several epochs.
"""

import pytest
import torch

import lmcleaner_ext as lmc
from support.cases import OPTIMIZERS, SGD, Adam, AdamW, Schedule, counterfactual, epochs, flat, mlp, optimizer, rho
from support.tolerances import EXACT

TASK = mlp(hidden=6)
EPOCHS = epochs(48, 8, 14, lr=lambda t: min(1, (t + 1) / 3) * (1 - t / 20))  # every sample twice or three times
CONVENTIONS = ("placeholder", "renormalize", "skip")
VARIANTS = OPTIMIZERS | {
    "sgd maximize": optimizer(SGD, lr=0.02, maximize=True, weight_decay=0.1),
    "momentum maximize": optimizer(SGD, lr=0.02, momentum=0.9, maximize=True, weight_decay=0.1),
    "adamw maximize": optimizer(AdamW, lr=1e-3, maximize=True, weight_decay=0.1),
    "adam no decay": optimizer(Adam, lr=1e-3, betas=(0.8, 0.95), eps=1e-4),
}


def check(run, ids, bound=EXACT, **options):
    """The weights after a real `unlearn`, against the counterfactual run."""
    ideal = flat(run.retrained(**counterfactual(ids, options))[0])
    trained = run.theta
    assert float((trained - ideal).norm()) > 1e-6  # the request matters
    lmc.unlearn(run.model, run.path, ids, hessian_mode="replay", **{**run.options, **options})
    assert rho(run.theta, ideal, trained) < bound


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", VARIANTS)
def test_samples(recorded, name, convention):
    check(recorded(TASK, EPOCHS, VARIANTS[name]), [3, 17, 30], counterfactual=convention)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", VARIANTS)
def test_batches(recorded, name, convention):
    check(recorded(TASK, EPOCHS, VARIANTS[name]), [4, 9], level="batch", counterfactual=convention)


@pytest.mark.parametrize("level", ["sample", "batch"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "dampening", "adam", "adamw"])
def test_the_very_first_step(recorded, name, level):
    """Skipped at t = 0 the counterfactual's momentum starts a step later, and its step counter is one behind for ever."""
    run = recorded(TASK, EPOCHS, VARIANTS[name])
    ids = [0] if level == "batch" else [run.schedule.batches[0][0]]
    check(run, ids, level=level, counterfactual="skip")


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("vectors", ["update", "gradient", "both"])
def test_sgd_from_either_vector(recorded, vectors, convention):
    check(recorded(TASK, EPOCHS, VARIANTS["sgd decay"], vectors=vectors), [3, 17], counterfactual=convention)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", ["sgd decay", "momentum", "adamw"])
def test_clipping(recorded, name, convention):
    """The counterfactual gradient has another norm, hence another clip factor. Every step is clipped, or some, or the factor leaves 1."""
    clipped = set()
    for bound in (0.1, 0.62):
        schedule = epochs(48, 8, 14, clip=bound)
        run = recorded(TASK, schedule, VARIANTS[name])
        log = run.log()
        clipped.add(sum(log[t].clip_factor < 1 for t in log.steps))
        check(run, [3, 17, 30], counterfactual=convention)
    assert 14 in clipped
    assert min(clipped) < 14


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_accumulation(recorded, name):
    check(recorded(TASK, epochs(48, 8, 12, micro_batches=4), VARIANTS[name]), [3, 17], counterfactual="placeholder")


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_sample_drawn_twice_in_a_batch(recorded, convention):
    schedule = Schedule(((1, 2, 2, 3), (2, 4, 5, 6), (7, 7, 8, 9), (2, 2, 2, 1)) * 2)
    for ids in ([2], [7, 1]):
        check(recorded(TASK, schedule, VARIANTS["adamw"]), ids, counterfactual=convention)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", ["sgd decay", "momentum", "adam", "adamw"])
def test_a_sample_in_every_batch(recorded, name, convention):
    """Under "skip" nothing is left of the run: theta_ideal is theta[0]."""
    schedule = Schedule(tuple((0, *batch[1:]) for batch in epochs(48, 6, 10).batches))
    run = recorded(TASK, schedule, VARIANTS[name])
    if convention == "skip":
        lmc.unlearn(run.model, run.path, [0], hessian_mode="none", counterfactual="skip", **run.options)
        torch.testing.assert_close(run.theta, run.start, rtol=0, atol=1e-13)
    else:
        check(run, [0], counterfactual=convention)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", ["sgd decay", "momentum", "adam", "adamw"])
def test_batch_size_one(recorded, name, convention):
    """Nothing remains of the batch: the counterfactual gradient is exactly zero, and Adam must not divide rounding by rounding."""
    schedule = Schedule(tuple((t % 7,) for t in range(18)))
    check(recorded(TASK, schedule, VARIANTS[name]), [3], counterfactual=convention)


@pytest.mark.parametrize("name", ["adam no decay", "adamw"])
def test_forgetting_from_the_first_step_on_with_nothing_left(recorded, name):
    """m' = v' = 0 exactly: Adam's step is 0 / (0 + eps) = 0, whatever the logged gradient was rounded to."""
    schedule = Schedule(((0,), (0,), (1,), (2,)))
    run = recorded(TASK, schedule, VARIANTS[name], dtype="fp16")
    ideal = flat(run.retrained(forget={0})[0])
    deviation = lmc.compute_correction(run.model, run.path, [0], hessian_mode="none", **run.options)
    assert rho(run.theta - deviation, ideal, run.theta) < 0.2
    after_two = Schedule(schedule.batches[:2])
    run = recorded(TASK, after_two, VARIANTS["adam no decay"], dtype="fp16")
    lmc.unlearn(run.model, run.path, [0], hessian_mode="none", counterfactual="placeholder", **run.options)
    # fp16 gradients replay the factual side to their own precision
    assert float((run.theta - run.start).norm()) <= 2e-3 * float((run.log().parameters_at(2) - run.start).norm())


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", ["sgd decay", "adamw"])
def test_all_samples(recorded, name, convention):
    """Placeholder: only weight decay remains. The others: no step is taken."""
    run = recorded(TASK, EPOCHS, VARIANTS[name])
    ideal = flat(run.retrained(forget=set(range(48)), convention=convention)[0])
    assert torch.equal(ideal, run.start) == (convention != "placeholder")
    check(run, list(range(48)), counterfactual=convention)


@pytest.mark.parametrize("name", ["sgd decay", "momentum", "adamw"])
def test_custom_weights_of_the_samples(tmp_path, name):
    """A token-normalised loss: each sample has its own share, and the retraining oracle uses the same shares."""
    run_model = TASK.build()
    built = VARIANTS[name](run_model)
    shares = {i: (1 + i % 5) / 20 for i in range(48)}
    batches = epochs(48, 6, 10).batches

    def loop(model, built, drop, log=None):
        for ids in batches:
            kept = [i for i in ids if i not in drop]
            built.zero_grad()
            if log is not None:
                log.batch(ids, weights=[shares[i] for i in ids])
            w = torch.tensor([shares[i] for i in kept], dtype=torch.float64)
            (TASK.losses(model, TASK.data(kept)) * w).sum().backward()
            built.step()
        return flat(model)

    with lmc.TrainingLogger(tmp_path / "log", run_model, built, dtype="fp32", durability="process") as log:
        trained = loop(run_model, built, set(), log)
    other = TASK.build()
    ideal = loop(other, VARIANTS[name](other), {3, 17})
    lmc.unlearn(run_model, tmp_path / "log", [3, 17], hessian_mode="replay", data=TASK.data, loss_fn=TASK.loss_fn)
    assert rho(flat(run_model), ideal, trained) < EXACT


def test_a_parameter_without_gradient_in_some_steps(tmp_path):
    """It is left alone on both sides: no decay, no step count; a skipped step in which it was absent does not count for it."""
    for make in (VARIANTS["adamw"], VARIANTS["momentum"], VARIANTS["adam"]):
        for convention in CONVENTIONS:
            folder = tmp_path / f"{id(make)}-{convention}"
            _absent(folder, make, convention)


class _Sides(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.side = TASK.build(), torch.nn.Linear(10, 4, dtype=torch.float64)
        with torch.no_grad():
            self.side.weight.fill_(0.1)
            self.side.bias.zero_()

    def forward(self, x):
        """Samples whose first coordinate is positive go through `side` as well; a batch of none leaves it without gradient."""
        out, chosen = self.body(x), x[:, 0] > 0
        if chosen.any():
            out = out + torch.where(chosen[:, None], self.side(x), 0.0)
        return out


def _absent(folder, make, convention):
    x = TASK.data(list(range(48)))["inputs"][:, 0]
    positive, negative = [i for i in range(48) if x[i] > 0], [i for i in range(48) if x[i] <= 0]
    batches = [negative[:4], positive[:4], negative[4:8], positive[4:8], negative[:4], positive[:4]]

    def loop(model, built, drop, log=None):
        for ids in batches:
            kept = [i for i in ids if i not in drop]
            if len(kept) < len(ids) and convention == "skip":
                continue
            built.zero_grad(set_to_none=True)
            if log is not None:
                log.batch(ids)
            scale = 1 / len(kept) if convention == "renormalize" else 1 / len(ids)
            (TASK.losses(model, TASK.data(kept)).sum() * scale).backward()
            built.step()
        return flat(model)

    model = _Sides()
    built = make(model)
    with lmc.TrainingLogger(folder, model, built, dtype="fp32", durability="process") as log:
        trained = loop(model, built, set(), log)
    assert lmc.StepLog.open(folder)[0].absent == (4, 5)
    other = _Sides()
    other_optimizer = make(other)
    drop = {negative[0], positive[5]}
    ideal = loop(other, other_optimizer, drop)
    lmc.unlearn(
        model,
        folder,
        drop,
        hessian_mode="replay",
        counterfactual=convention,
        data=TASK.data,
        loss_fn=TASK.loss_fn,
        optimizer=built,
    )
    assert rho(flat(model), ideal, trained) < EXACT
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for name, value in other_optimizer.state[q].items():
            torch.testing.assert_close(built.state[p][name], value, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [optimizer(torch.optim.RMSprop, lr=1e-3, momentum=0.5, centered=True), optimizer(Adam, lr=1e-3, amsgrad=True)],
)
def test_optimizers_without_a_rule_are_retrained(recorded, make):
    """They can be logged, and served from the data alone."""
    run = recorded(TASK, EPOCHS, make)
    with pytest.raises(lmc.errors.UnsupportedOptimizerError):
        lmc.unlearn(run.model, run.path, [3], hessian_mode="none", **run.options)
    check(run, [3, 17])
