"""Continue a log from its end or from an earlier checkpoint; the steps of an abandoned branch are never applied."""

import copy
import os
from dataclasses import replace

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import ConfigurationError, LineageError, LogLockedError, UnknownSampleError
from support.cases import OPTIMIZERS, Schedule, epochs, flat, mlp, rho, train

TASK = mlp(hidden=5)
FIRST = epochs(48, 8, 12)
# another order after the checkpoint, as a data loader with another seed would give; ids 48.. exist in the first branch only
BRANCH = replace(FIRST, batches=FIRST.batches[:7] + epochs(48, 8, 9, seed=77).batches)
EVERY = {"dtype": "fp32", "durability": "process", "loss_fn": TASK.loss_fn, "capacity": 100, "anchor_every": 4}


def checkpoint(model, built):
    return copy.deepcopy((model.state_dict(), built.state_dict()))


def restored(name, saved):
    model = TASK.build()
    built = OPTIMIZERS[name](model)
    model.load_state_dict(saved[0])
    built.load_state_dict(copy.deepcopy(saved[1]))
    built.base_lrs = [group["lr"] for group in OPTIMIZERS[name](model).param_groups]
    return model, built


def first_part(tmp_path, name, stops=(7, 12), dtype="fp32", close=True):
    """Log FIRST and return the checkpoints taken at `stops`."""
    model = TASK.build()
    built = OPTIMIZERS[name](model)
    saved, at = {}, 0
    log = lmc.TrainingLogger(tmp_path / "log", model, built, **{**EVERY, "dtype": dtype}).attach()
    for stop in stops:
        train(TASK, FIRST.until(stop), OPTIMIZERS[name], model=model, optimizer=built, start=at, logger=log)
        saved[stop], at = checkpoint(model, built), stop
    if close:
        log.close()
    return saved


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8", "fp8"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("stop", [7, 12])
def test_from_the_end_and_from_an_earlier_checkpoint(tmp_path, name, stop, dtype):
    """stop = 12: the end. 7: between two anchors; steps 7..11 are dropped, and what is forgotten afterwards fits the new branch."""
    saved = first_part(tmp_path, name, dtype=dtype)
    model, built = restored(name, saved[stop])
    schedule = replace(BRANCH, batches=FIRST.batches[:stop] + BRANCH.batches[7:])
    with lmc.TrainingLogger(tmp_path / "log", model, built, resume=True, **{**EVERY, "dtype": dtype}) as log:
        assert log.step == stop
        train(TASK, schedule, OPTIMIZERS[name], model=model, optimizer=built, start=stop, logger=log)
    read = lmc.StepLog.open(tmp_path / "log")
    assert read.steps == range(len(schedule.batches))
    for t in read.steps:
        assert read[t].sample_ids == schedule.batches[t]
        assert read[t].lineage == (0 if t < stop else read[stop].lineage)
    assert read[stop].lineage > 0
    for i in range(48):
        assert read.find([i])[i] == schedule.uses([i])
    moved = float((flat(model) - flat(TASK.build())).norm())
    tolerance = {"fp32": 1e-12, "fp16": 1e-2 * moved}.get(dtype, 0.1 * moved)
    plain = flat(train(TASK, schedule, OPTIMIZERS[name])[0])
    assert float((read.parameters_at(len(schedule.batches)) - plain).norm()) <= tolerance
    if dtype == "fp32":
        ideal = flat(train(TASK, schedule, OPTIMIZERS[name], forget={3, 17})[0])
        deviation = lmc.compute_correction(
            model, read, [3, 17], hessian_mode="replay", data=TASK.data, loss_fn=TASK.loss_fn
        )
        assert rho(flat(model) - deviation, ideal, flat(model)) < 1e-6


def test_ids_of_the_abandoned_branch_are_unknown(tmp_path):
    model = TASK.build()
    built = OPTIMIZERS["adamw"](model)
    with lmc.TrainingLogger(tmp_path / "log", model, built, **EVERY) as log:
        train(TASK, Schedule(((1, 2), (3, 4))), OPTIMIZERS["adamw"], model=model, optimizer=built, logger=log)
        saved = checkpoint(model, built)
        train(
            TASK,
            Schedule(((1, 2), (3, 4), (5, 6), (7, 8))),
            OPTIMIZERS["adamw"],
            model=model,
            optimizer=built,
            start=2,
            logger=log,
        )
    model, built = restored("adamw", saved)
    with lmc.TrainingLogger(tmp_path / "log", model, built, resume=True) as log:
        assert log.step == 2
        train(
            TASK,
            Schedule(((1, 2), (3, 4), (9, 10))),
            OPTIMIZERS["adamw"],
            model=model,
            optimizer=built,
            start=2,
            logger=log,
        )
    read = lmc.StepLog.open(tmp_path / "log")
    with pytest.raises(UnknownSampleError):
        read.find([7])
    assert read.find([9, 3]) == {9: [2], 3: [1]}
    assert all(anchor.step <= 3 for anchor in read.anchors())


def test_after_a_resumed_run_was_killed_the_old_end_is_not_believed(tmp_path):
    """head.json named the abandoned branch's weights at the very step where the new branch was killed."""
    saved = first_part(tmp_path, "adamw")
    model, built = restored("adamw", saved[7])
    log = lmc.TrainingLogger(tmp_path / "log", model, built, resume=True, **EVERY).attach()
    schedule = replace(BRANCH, batches=BRANCH.batches[:12])
    train(TASK, schedule, OPTIMIZERS["adamw"], model=model, optimizer=built, start=7, logger=log)
    log.drain()
    log.detach()  # killed here: close() never ran
    read = lmc.StepLog.open(tmp_path / "log")
    assert read.steps.stop == 12
    assert read.head() is None
    result = lmc.unlearn(model, read, [3], hessian_mode="none", data=TASK.data, loss_fn=TASK.loss_fn)
    assert result.audit.weights_match is None
    log._writer.close()


def test_the_wrong_checkpoint(tmp_path):
    saved = first_part(tmp_path, "adamw")
    files = {p: p.read_bytes() for p in (tmp_path / "log").rglob("*") if p.is_file()}
    model, built = restored("adamw", saved[7])
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    with pytest.raises(LineageError, match="checkpoint"):
        lmc.TrainingLogger(tmp_path / "log", model, built, resume=True)
    assert {p: p.read_bytes() for p in (tmp_path / "log").rglob("*") if p.is_file()} == files
    model, built = restored("adamw", saved[12])  # the lock is free again
    lmc.TrainingLogger(tmp_path / "log", model, built, resume=True).close()


def test_another_optimizer_or_model(tmp_path):
    saved = first_part(tmp_path, "adamw")
    model, _ = restored("adamw", saved[12])
    with pytest.raises(ConfigurationError, match="AdamW"):
        lmc.TrainingLogger(tmp_path / "log", model, OPTIMIZERS["sgd"](model), resume=True)
    other = mlp(hidden=6).build()
    with pytest.raises(ConfigurationError, match=r"0\.weight"):
        lmc.TrainingLogger(tmp_path / "log", other, OPTIMIZERS["adamw"](other), resume=True)
    model[0].weight.requires_grad_(False)
    with pytest.raises(ConfigurationError):
        lmc.TrainingLogger(tmp_path / "log", model, OPTIMIZERS["adamw"](model), resume=True)


def test_a_second_writer(tmp_path):
    model = TASK.build()
    built = OPTIMIZERS["adamw"](model)
    with lmc.TrainingLogger(tmp_path / "log", model, built):
        with pytest.raises(LogLockedError) as caught:
            lmc.TrainingLogger(tmp_path / "log", model, built, resume=True)
        assert caught.value.pid == os.getpid()
    lmc.TrainingLogger(tmp_path / "log", model, built, resume=True).close()


def test_resume_where_there_is_no_log(tmp_path):
    model = TASK.build()
    with pytest.raises(ConfigurationError, match="no log to resume"):
        lmc.TrainingLogger(tmp_path / "log", model, OPTIMIZERS["adamw"](model), resume=True)


@pytest.mark.parametrize("tokens", [None, 1])
def test_tracked_gradients_follow(tmp_path, tokens):
    """mode="sample": those of the abandoned branch are gone, those of the new one are its own."""
    make = OPTIMIZERS["momentum"]
    options = {**EVERY, "mode": "sample", "track_ids": range(48), "sample_capacity": 400, "sample_tokens": tokens}
    model = TASK.build()
    built = make(model)
    with lmc.TrainingLogger(tmp_path / "log", model, built, **options) as log:
        train(TASK, FIRST.until(7), make, model=model, optimizer=built, logger=log, inputs=True)
        saved = checkpoint(model, built)
        train(TASK, FIRST, make, model=model, optimizer=built, start=7, logger=log, inputs=True)
    model, built = restored("momentum", saved)
    with lmc.TrainingLogger(tmp_path / "log", model, built, resume=True, **options) as log:
        train(TASK, BRANCH, make, model=model, optimizer=built, start=7, logger=log, inputs=True)
    read = lmc.StepLog.open(tmp_path / "log")
    for t in read.steps:
        for i in range(48):
            assert read.tracks(t, i) == (i in BRANCH.batches[t])
    ids = [3, 17, 30]
    tracked = lmc.compute_correction(model, read, ids, hessian_mode="none")
    from_data = lmc.compute_correction(
        model, strip_samples(tmp_path), ids, hessian_mode="none", data=TASK.data, loss_fn=TASK.loss_fn
    )
    torch.testing.assert_close(tracked, from_data, rtol=1e-9, atol=1e-13)


def strip_samples(tmp_path):
    (tmp_path / "log" / "samples.lmc").unlink()
    return tmp_path / "log"
