"""verify against the tests' own retraining; plan against what then really happens."""

import json
import math
from itertools import product

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import ConfigurationError, UnknownSampleError, WrongModelError
from support.cases import OPTIMIZERS, counterfactual, epochs, flat, mlp, optimizer, rho

TASK = mlp(hidden=6)
SCHEDULE = epochs(48, 8, 14)
IDS = [3, 17]


# Every optimizer, and every counterfactual for a state of one vector and of two; all of them meet in test_conventions.py.
@pytest.mark.parametrize(
    ("name", "level", "convention"),
    sorted(
        {(name, "sample", "placeholder") for name in OPTIMIZERS}
        | set(product(["momentum", "adamw"], ["sample", "batch"], ["placeholder", "renormalize", "skip"]))
    ),
)
def test_verify_retrains_the_same_counterfactual(recorded, name, level, convention):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS[name])
    ids = IDS if level == "sample" else [4, 9]
    options = {"level": level, "counterfactual": convention}
    ideal = flat(run.retrained(**counterfactual(ids, options))[0])
    theta = run.theta
    report = lmc.verify(
        run.model, run.path, ids, modes=("none", "exact", "replay"), noise_floor=True, **run.options, **options
    )
    assert torch.equal(run.theta, theta)
    assert report.distance == pytest.approx(float((theta - ideal).norm()), rel=1e-6)
    assert report.noise_floor < 1e-6
    for mode in ("none", "exact", "replay"):
        mine = run.residual(ids, mode, ideal=ideal, **options)
        assert report[mode].residual == pytest.approx(mine, rel=1e-4, abs=1e-7)
        assert report[mode].error is None
        assert report[mode].harmful == (mine >= 1)
    assert report["replay"].residual < 1e-6
    assert report.steps == 14


@pytest.mark.parametrize("clip", [0.1, 0.62])
def test_verify_with_clipping_and_absolute_start(recorded, clip):
    run = recorded(TASK, epochs(48, 8, 14, clip=clip), OPTIMIZERS["momentum"])
    ideal = flat(run.retrained(forget=IDS)[0])
    report = lmc.verify(run.model, run.path, IDS, modes=("none",), **run.options)
    assert report.distance == pytest.approx(float((run.theta - ideal).norm()), rel=1e-6)


def test_the_kl_ratio(recorded):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"])
    ideal = flat(run.retrained(forget=IDS)[0])
    estimate = run.theta - lmc.compute_correction(run.model, run.path, IDS, hessian_mode="none", **run.options)

    def log_p(theta):
        model = TASK.build()
        torch.nn.utils.vector_to_parameters(theta, model.parameters())
        with torch.no_grad():
            return model(TASK.data(IDS)["inputs"]).log_softmax(-1)

    def kl(p, q):
        return float((log_p(p).exp() * (log_p(p) - log_p(q))).sum())

    report = lmc.verify(run.model, run.path, IDS, modes=("none",), **run.options)
    assert report["none"].kl_ratio == pytest.approx(kl(ideal, estimate) / kl(ideal, run.theta), rel=1e-5)
    bare = lmc.verify(run.model, run.path, IDS, modes=("none",), data=TASK.data, loss_fn=TASK.losses)
    assert bare["none"].kl_ratio is None  # losses alone show no distribution


def test_a_mode_that_fails_is_reported(recorded):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"])
    report = lmc.verify(run.model, run.path, IDS, modes=("none", "diag"), **run.options)
    assert report["diag"].error.startswith("MissingDataError")
    assert math.isnan(report["diag"].residual)
    assert "diag" in str(report)
    assert json.loads(report.to_json())["modes"][0]["mode"] == "none"


def test_an_optimizer_without_a_rule_can_be_verified(recorded):
    run = recorded(TASK, SCHEDULE, optimizer(torch.optim.Adagrad, lr=1e-2))
    report = lmc.verify(run.model, run.path, IDS, modes=("none", "replay"), **run.options)
    ideal = flat(run.retrained(forget=IDS)[0])
    assert report.distance == pytest.approx(float((run.theta - ideal).norm()), rel=1e-5)
    assert report["none"].error is not None


def test_verify_after_the_ring_wrapped(recorded):
    """Retraining starts at the oldest anchor that is left; the request lies in the window."""
    run = recorded(TASK, epochs(48, 8, 40), OPTIMIZERS["adamw"], capacity=24, anchor_every=8)
    log = run.log()
    assert log.steps.start > 8
    with pytest.raises(lmc.errors.ExpiredStepError):  # used in the first epoch too
        lmc.verify(run.model, run.path, [run.schedule.batches[20][0]], **run.options)
    report = lmc.verify(run.model, run.path, [25], level="batch", modes=("none", "replay"), **run.options)
    ideal = flat(run.retrained(drop_batches={25}, convention="skip")[0])
    assert report.distance == pytest.approx(float((run.theta - ideal).norm()), rel=1e-6)
    assert report["replay"].residual < 1e-6


def test_float32_retraining_has_a_noise_floor(recorded):
    run = recorded(mlp(torch.float32), epochs(48, 8, 30, micro_batches=2), OPTIMIZERS["adamw"])
    report = lmc.verify(run.model, run.path, IDS, modes=("replay",), noise_floor=True, **run.options)
    assert 0 < report.noise_floor < 1e-2
    assert report["replay"].residual < 100 * report.noise_floor


def test_verify_refusals(recorded):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"])
    with pytest.raises(ConfigurationError, match="no ids"):
        lmc.verify(run.model, run.path, [], **run.options)
    with pytest.raises(UnknownSampleError):
        lmc.verify(run.model, run.path, [99], **run.options)
    with pytest.raises(WrongModelError):
        lmc.verify(mlp(hidden=7).build(), run.path, IDS, **run.options)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_plan_says_what_then_happens(recorded, name):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS[name])
    theta = run.theta
    options = {**run.options, "K": 5, "every": 2}
    plan = lmc.plan(run.model, run.path, IDS, **options)
    assert torch.equal(run.theta, theta)
    assert plan.automatic == lmc.unlearn(run.model, run.path, IDS, dry_run=True, **options).audit.mode
    assert plan.uses == len(run.schedule.uses(IDS))
    assert not plan["diag"].possible
    assert "diagonal" in plan["diag"].reason
    for mode in ("none", "fisher", "ggn", "exact", "replay"):
        audit = lmc.unlearn(run.model, run.path, IDS, hessian_mode=mode, dry_run=True, **options).audit
        planned = plan[mode]
        assert planned.possible
        assert planned.steps == max(audit.tz) + 1 + audit.K_used - min(audit.tz)
        if mode != "replay":
            assert planned.products == audit.products
        assert planned.seconds is None or planned.seconds >= 0
    assert json.loads(plan.to_json())["automatic"] == plan.automatic
    assert "auto" in str(plan)


def test_a_plan_without_data(recorded):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"], mode="sample", track_ids=IDS)
    plan = lmc.plan(None, run.path, IDS)
    assert [m.mode for m in plan.modes if m.possible] == ["none", "fisher"]
    assert plan["exact"].reason.startswith("MissingDataError")
    assert plan["none"].passes == 0
    with pytest.raises(UnknownSampleError):
        lmc.plan(None, run.path, [99])
    empty = lmc.plan(None, run.path, [])
    assert empty.uses == 0


def test_a_plan_of_dropped_batches(recorded):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"])
    plan = lmc.plan(None, run.path, [4], level="batch")
    assert plan["none"].possible
    assert plan.relearn == len(set(run.schedule.batches[4]))


def test_the_residual_is_the_tests_own(recorded):
    """verify's figure and the formula of docs/method.md, section 2, on three vectors."""
    a, b, c = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert lmc.evaluation.residual(a, b, c) == pytest.approx(rho(a, b, c), rel=1e-12)
