"""Each step's gradient, hyper-parameters, ids and weights, against what the loop itself knows."""

import inspect
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import ConfigurationError
from lmcleaner_ext.optim.describe import rule_of, step_groups
from lmcleaner_ext.recorder.options import RecordingOptions
from support.cases import OPTIMIZERS, SGD, Adam, AdamW, epochs, flat, mlp, optimizer, two_groups

VARIANTS = OPTIMIZERS | {
    "sgd maximize": optimizer(SGD, lr=0.01, maximize=True, weight_decay=0.1),
    "momentum maximize": optimizer(SGD, lr=0.01, momentum=0.9, maximize=True),
    "adam maximize": optimizer(Adam, lr=1e-3, weight_decay=0.1, maximize=True),
    "adamw fused": optimizer(AdamW, lr=3e-3, fused=True),
    "adamw foreach": optimizer(AdamW, lr=3e-3, foreach=True),
    "sgd fused": two_groups(SGD, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "adamw tensor lr": optimizer(AdamW, lr=torch.tensor(3e-3, dtype=torch.float64)),
}
TASK = mlp(hidden=5)


@pytest.fixture
def log_dir(tmp_path):
    return tmp_path / "log"


def logger(log_dir, model, built, **options):
    return lmc.TrainingLogger(log_dir, model, built, **{"dtype": "fp32", "durability": "process"} | options)


def backward(model, ids, share=None):
    (TASK.losses(model, TASK.data(ids)).sum() * (1 / len(ids) if share is None else share)).backward()


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_and_hyper_parameters(log_dir, name):
    """With a torch scheduler: the rate on record is the one that the step used, not the one set after it."""
    model = TASK.build()
    built = VARIANTS[name](model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(built, 0.7)
    gradients, rates, decays, thetas = [], [], [], [flat(model)]
    with logger(log_dir, model, built, vectors="both") as log:
        for ids in epochs(48, 8, 6).batches:
            log.batch(ids)
            backward(model, list(ids))
            gradients.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
            rates.append([float(g["lr"]) for g in built.param_groups])
            decays.append([g["weight_decay"] for g in built.param_groups])
            built.step()
            scheduler.step()
            built.zero_grad()
            thetas.append(flat(model))
    read = lmc.StepLog.open(log_dir)
    assert read.rule is not None
    for t in range(6):
        assert torch.equal(read[t].gradient(), gradients[t])
        torch.testing.assert_close(read[t].update(), thetas[t + 1] - thetas[t], rtol=0, atol=1e-15)
        assert list(read[t].lr) == rates[t]
        assert [g["weight_decay"] for g in read[t].groups] == decays[t]
    assert rates[1][0] != rates[0][0]


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "int8", "fp8"])
def test_precision(log_dir, dtype):
    """One rounding of each vector, and nothing lost at gradients of 1e-9."""
    task = mlp(torch.float32)
    model = task.build()
    built = torch.optim.AdamW(model.parameters())
    with logger(log_dir, model, built, dtype=dtype) as log:
        log.batch([0])
        (1e-9 * task.losses(model, task.data([0])).sum()).backward()
        g = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
        built.step()
    found = lmc.StepLog.open(log_dir)[0].gradient()
    relative = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp8": 2.0**-4}.get(dtype, 0.0)
    block_floor = {"fp16": 2.0**-38, "fp8": 2.0**-17, "int8": 1 / 127.5}.get(dtype, 0.0) * float(g.abs().max())
    assert ((found - g).abs() <= relative * g.abs() + block_floor).all()
    assert float(g.abs().max()) < 1e-8


def test_accumulation_collects_all_micro_batches(log_dir):
    model = TASK.build()
    built = torch.optim.AdamW(model.parameters())
    with logger(log_dir, model, built) as log:
        for piece in ([1, 2, 3], [4, 5]):
            log.batch(piece, batch_id="first")
            backward(model, piece, 1 / 5)
        built.step()
        built.zero_grad()
        log.batch(torch.tensor([7, 7]), weights=torch.tensor([0.5, 0.25]))
        backward(model, [7, 7], 0.375)
        built.step()
    read = lmc.StepLog.open(log_dir)
    assert read[0].sample_ids == (1, 2, 3, 4, 5)
    assert read[0].weights.tolist() == [0.2] * 5
    assert read[0].batch_id == "first"
    assert read[1].sample_ids == (7, 7)
    assert read[1].weights.tolist() == [0.5, 0.25]
    assert read[1].batch_id == 1
    assert read.find([7]) == {7: [1]}


def test_weights_for_all_micro_batches_or_none(log_dir):
    model = TASK.build()
    with logger(log_dir, model, torch.optim.AdamW(model.parameters())) as log:
        log.batch([1], weights=[1.0])
        with pytest.raises(ConfigurationError, match="all or none"):
            log.batch([2])
    with pytest.raises(ConfigurationError, match="one weight per id"):
        log.batch([1, 2], weights=[1.0])


def test_bad_batches_are_refused_and_forgotten(log_dir):
    model = TASK.build()
    built = torch.optim.AdamW(model.parameters())
    with logger(log_dir, model, built) as log:
        log.batch([1], batch_id="first", loss_normalizer=torch.tensor(4))
        for wrong in (
            {"sample_ids": [1.5]},
            {"sample_ids": [2], "batch_id": 0.5},
            {"sample_ids": [2], "weights": [None]},
            {"sample_ids": [2], "batch_id": "other", "loss_normalizer": "four"},
        ):
            with pytest.raises(ConfigurationError):
                log.batch(**wrong)
        with pytest.raises(ConfigurationError, match="max_norm is a number"):
            log.record_clip(1.0, None)
        backward(model, [1])
        built.step()
    record = lmc.StepLog.open(log_dir)[0]
    assert (record.sample_ids, record.batch_id, record.loss_normalizer) == ((1,), "first", 4)


@pytest.mark.parametrize("ids", [["a", "b"], [1, "1"], torch.tensor([3, 4]), np.array([5, 6]), (2**62, -5), []])
def test_ids_of_every_kind(log_dir, ids):
    model = TASK.build()
    built = torch.optim.AdamW(model.parameters())
    with logger(log_dir, model, built) as log:
        log.batch(ids)
        backward(model, [0, 1])
        built.step()
    read = lmc.StepLog.open(log_dir)
    expected = tuple(ids.tolist()) if hasattr(ids, "tolist") else tuple(ids)
    assert read[0].sample_ids == expected
    assert read.find(list(expected)) == {i: [0] for i in expected}


class Branches(nn.Module):
    """`side` takes part in some steps only; `frozen` never; `tied` is `first` under a second name."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.frozen = nn.Parameter(torch.randn(10, 10, generator=generator, dtype=torch.float64), requires_grad=False)
        self.first = nn.Parameter(torch.randn(10, 10, generator=generator, dtype=torch.float64) / 3)
        self.side = nn.Parameter(torch.randn(10, 4, generator=generator, dtype=torch.float64) / 3)
        self.tied = self.first
        self.last = nn.Parameter(torch.randn(10, 4, generator=generator, dtype=torch.float64) / 3)
        self.with_side = True

    def forward(self, x):
        h = torch.tanh(torch.tanh(x @ self.frozen @ self.first) @ self.tied)
        return h @ self.last + (h @ self.side if self.with_side else 0.0)


@pytest.mark.parametrize("name", ["adamw", "momentum", "nesterov", "sgd decay", "adam"])
def test_frozen_tied_and_absent_parameters(log_dir, name):
    """A parameter without a gradient is left alone by the optimizer: no decay, no momentum, no step count. The rebuilt run agrees."""
    model = Branches()
    built = OPTIMIZERS[name](model)
    thetas = [flat(model)]
    with logger(log_dir, model, built, anchor_every=100) as log:
        for t, ids in enumerate(epochs(48, 8, 9).batches):
            model.with_side = t in (1, 4, 5, 8)
            built.zero_grad(set_to_none=True)
            log.batch(ids)
            backward(model, list(ids))
            built.step()
            thetas.append(flat(model))
    read = lmc.StepLog.open(log_dir)
    assert [e.name for e in read.layout.entries] == ["first", "side", "last"]
    for t in range(9):
        assert read[t].absent == (() if t in (1, 4, 5, 8) else (1,))
    for t in range(10):
        torch.testing.assert_close(read.parameters_at(t), thetas[t], rtol=0, atol=1e-13)


def test_a_loss_scaler(log_dir):
    """Unscaled before the step: what is logged is the gradient that the optimizer consumed."""
    model = TASK.build()
    built = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with logger(log_dir, model, built) as log:
        for ids in ([0, 1], [2, 3]):
            log.batch(ids)
            scaler.scale(TASK.losses(model, TASK.data(ids)).mean()).backward()
            scaler.unscale_(built)
            expected = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).clone()
            scaler.step(built)
            scaler.update()
            built.zero_grad()
    read = lmc.StepLog.open(log_dir)
    assert read.steps == range(2)
    torch.testing.assert_close(read[1].gradient(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scaler_that_meets_an_overflow(log_dir, fused):
    """The optimizer does not step: neither does the log, and the batch's ids belong to no step."""
    model = TASK.build().float()
    built = torch.optim.AdamW(model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    task = mlp(torch.float32, hidden=5)
    with logger(log_dir, model, built) as log:
        for t, ids in enumerate(([0, 1], [2, 3], [4, 5])):
            log.batch(ids)
            scaler.scale(task.losses(model, task.data(ids)).mean() * (float("inf") if t == 1 else 1.0)).backward()
            expected = torch.cat([p.grad.reshape(-1) for p in model.parameters()]) / scaler.get_scale()
            before = flat(model)
            scaler.step(built)
            assert torch.equal(before, flat(model)) == (t == 1)
            scaler.update()
            built.zero_grad()
        assert log.skipped_steps == 1
    read = lmc.StepLog.open(log_dir)
    assert [read[t].sample_ids for t in read.steps] == [(0, 1), (4, 5)]
    torch.testing.assert_close(read[1].gradient(), expected, rtol=1e-6, atol=0)
    with pytest.raises(lmc.errors.UnknownSampleError):
        read.find([2])


@pytest.mark.parametrize("clear", ["optimizer", "model"])
def test_gradients_that_are_thrown_away(log_dir, clear):
    model = TASK.build()
    built = torch.optim.AdamW(model.parameters())
    with logger(log_dir, model, built) as log:
        log.batch([0, 1])
        backward(model, [0, 1])
        (built if clear == "optimizer" else model).zero_grad()
        log.batch([2, 3])
        # before backward: the batch's own clean-up, nothing is discarded
        (built if clear == "optimizer" else model).zero_grad()
        backward(model, [2, 3])
        built.step()
        assert log.skipped_steps == 1
    read = lmc.StepLog.open(log_dir)
    assert [read[t].sample_ids for t in read.steps] == [(2, 3)]


def test_vectors_auto():
    model = TASK.build()
    for make, rule, plain in [
        (OPTIMIZERS["sgd decay"], "sgd", True), (OPTIMIZERS["momentum"], "sgd", False), (OPTIMIZERS["adam"], "adam", False),
        (optimizer(torch.optim.RMSprop), "rmsprop", False),
        (optimizer(torch.optim.NAdam), None, None), (optimizer(Adam, amsgrad=True), None, None),
    ]:  # fmt: skip
        found = rule_of(make(model))
        assert (found and found.name, found and found.plain(step_groups(make(model)))) == (rule, plain)


@pytest.mark.parametrize(
    ("name", "kept"), [("sgd", ("update",)), ("momentum", ("gradient",)), ("adamw", ("gradient",))]
)
def test_what_auto_keeps(log_dir, name, kept):
    model = TASK.build()
    with logger(log_dir, model, OPTIMIZERS[name](model)) as log:
        assert log.vectors == kept


@pytest.mark.parametrize(
    ("lr", "scheduled", "dtype", "weights", "kept"),
    [
        (1e-6, None, "fp16", torch.float32, ("update", "gradient")),
        (1e-3, None, "fp16", torch.float32, ("gradient",)),
        (1e-6, 1e-3, "fp16", torch.float32, ("gradient",)),  # a warm-up begins
        (1e-6, None, "fp32", torch.float32, ("gradient",)),
        (1e-6, None, "fp16", torch.float64, ("gradient",)),
    ],
)
def test_auto_keeps_both_of_momentum_steps_as_small_as_the_weights_rounding(
    log_dir, lr, scheduled, dtype, weights, kept
):
    model = torch.nn.Linear(3, 2).to(weights)
    built = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    if scheduled:
        built.param_groups[0]["initial_lr"] = scheduled
    with logger(log_dir, model, built, dtype=dtype) as log:
        assert log.vectors == kept


@pytest.mark.parametrize(
    "options",
    [{"mode": "epoch"}, {"vectors": "weights"}, {"dtype": "int3"}, {"durability": "hope"}, {"on_error": "ignore"}, {"capacity": 0},
     {"anchor_every": 0}, {"mode": "sample"}, {"track_ids": [1]}, {"vectors": "update"}, {"diag_hessian": "magic"}],
)  # fmt: skip
def test_wrong_options_leave_no_log(log_dir, options):
    model = TASK.build()
    with pytest.raises(ConfigurationError):
        logger(log_dir, model, OPTIMIZERS["adamw"](model), **options)
    assert not log_dir.exists()


def test_an_existing_log_is_not_overwritten(log_dir):
    model = TASK.build()
    built = OPTIMIZERS["adamw"](model)
    logger(log_dir, model, built).close()
    files = sorted((p, p.stat().st_size) for p in log_dir.rglob("*"))
    with pytest.raises(ConfigurationError, match="resume=True"):
        logger(log_dir, model, built)
    assert sorted((p, p.stat().st_size) for p in log_dir.rglob("*")) == files


def test_the_keywords_are_the_fields_of_the_options():
    parameters = inspect.signature(lmc.TrainingLogger).parameters
    shown = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert shown == {"track_ids": None, "loss_fn": None, **{f.name: f.default for f in fields(RecordingOptions)}}
    assert list(parameters)[:3] == ["log_dir", "model", "optimizer"]
    for f in fields(RecordingOptions):
        assert f"{f.name}: " in lmc.TrainingLogger.__doc__
    with pytest.raises(TypeError, match="'capactiy'"):
        lmc.TrainingLogger("log", None, None, capactiy=3)


@pytest.mark.parametrize("dtype", ["int3", None, 16])
def test_an_unknown_dtype_is_said_to_be_one(dtype):
    with pytest.raises(ConfigurationError, match=r"dtype is one of 'int8', 'fp8'.*, found"):
        RecordingOptions(dtype=dtype)
