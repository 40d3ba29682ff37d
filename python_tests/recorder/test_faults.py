"""What goes wrong in the middle of a step, and what is left of the log."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import ConfigurationError, LineageError, NumericalError
from support.cases import OPTIMIZERS, epochs, flat, mlp, train

TASK = mlp(torch.float32, hidden=5)


def one_step(model, built, log, ids, factor=1.0):
    log.batch(ids)
    (factor * TASK.losses(model, TASK.data(ids)).mean()).backward()
    built.step()
    built.zero_grad()


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "int8", "fp8"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite(tmp_path, name, value, dtype):
    """Named, and nothing is half-written: the steps before stand, with all their ids, and the log can be read."""
    model = TASK.build()
    built = OPTIMIZERS[name](model)
    log = lmc.TrainingLogger(tmp_path / "log", model, built, dtype=dtype).attach()
    one_step(model, built, log, [0, 1])
    after_one = flat(model)
    with pytest.raises(NumericalError, match="step 1"):
        one_step(model, built, log, [2, 3], value)
    log.close()
    read = lmc.StepLog.open(tmp_path / "log")
    assert read.steps == range(1)
    assert read[0].sample_ids == (0, 1)
    torch.testing.assert_close(read.parameters_at(1), after_one, rtol=0, atol=3e-3 if dtype == "fp8" else 1e-3)
    with pytest.raises(lmc.errors.UnknownSampleError):
        read.find([2])


def test_detach_lets_training_go_on(tmp_path):
    model = TASK.build()
    built = OPTIMIZERS["adamw"](model)
    with lmc.TrainingLogger(tmp_path / "log", model, built, on_error="detach") as log:
        one_step(model, built, log, [0, 1])
        with pytest.warns(RuntimeWarning, match="logging stopped at step 1"):
            one_step(model, built, log, [2, 3], float("inf"))
        one_step(model, built, log, [4, 5])
    read = lmc.StepLog.open(tmp_path / "log")
    assert read.steps == range(1)


def test_the_weights_after_a_detached_end_are_not_taken_for_the_logs_end(tmp_path):
    """Training went on unlogged: the log's last step did not lead to these weights, and a deletion must not pretend so."""
    model = TASK.build()
    built = OPTIMIZERS["adamw"](model)
    with lmc.TrainingLogger(tmp_path / "log", model, built, on_error="detach") as log:
        one_step(model, built, log, [0, 1])
        with pytest.warns(RuntimeWarning, match="disk is gone"):
            log._guard(_fail)
        one_step(model, built, log, [2, 3])
    before = flat(model)
    with pytest.raises(lmc.errors.WrongModelError):
        lmc.unlearn(model, tmp_path / "log", [0], hessian_mode="none", data=TASK.data, loss_fn=TASK.loss_fn)
    assert torch.equal(flat(model), before)


def test_a_logger_does_not_attach_again_after_unlogged_steps(tmp_path):
    model = TASK.build()
    built = OPTIMIZERS["adamw"](model)
    with lmc.TrainingLogger(tmp_path / "log", model, built) as log:
        one_step(model, built, log, [0, 1])
        log.detach()
        log.attach()  # nothing happened in between
        one_step(model, built, log, [2, 3])
        log.detach()
        one_step(model, built, log, [4, 5])
        with pytest.raises(LineageError, match="unlogged"):
            log.attach()
    assert lmc.StepLog.open(tmp_path / "log").steps == range(2)


def _fail():
    raise OSError("the disk is gone")


def test_metadata_that_does_not_fit(tmp_path):
    """Thousands of ids in one step need more room than a small slot has: a named error, the log stays good."""
    model = TASK.build()
    built = OPTIMIZERS["adamw"](model)
    with lmc.TrainingLogger(tmp_path / "log", model, built, metadata_bytes=4096) as log:
        one_step(model, built, log, [0, 1])
        log.batch(list(range(5000)))
        TASK.losses(model, TASK.data([0])).mean().backward()
        with pytest.raises(lmc.LMCleanerError, match="metadata"):
            built.step()
    assert lmc.StepLog.open(tmp_path / "log").steps == range(1)


def test_a_closed_logger(tmp_path):
    model = TASK.build()
    log = lmc.TrainingLogger(tmp_path / "log", model, OPTIMIZERS["adamw"](model)).attach()
    log.close()
    log.close()
    with pytest.raises(ConfigurationError, match="resume"):
        log.attach()


def test_sample_mode_wants_the_inputs(tmp_path):
    model = TASK.build()
    built = OPTIMIZERS["adamw"](model)
    with lmc.TrainingLogger(tmp_path / "log", model, built, mode="sample", track_ids=[3], loss_fn=TASK.loss_fn) as log:
        log.batch([1, 2])  # not tracked: nothing is needed
        with pytest.raises(ConfigurationError, match="inputs"):
            log.batch([3])


CHILD = """
import sys; sys.path.insert(0, sys.argv[1])
import torch; torch.set_num_threads(1)
import lmcleaner_ext as lmc
from support.cases import OPTIMIZERS, epochs, mlp, train
task = mlp(torch.float32, hidden=5)
def logger(model, built):
    return lmc.TrainingLogger(sys.argv[2], model, built, anchor_every=10, capacity=5000, durability=sys.argv[3]).attach()
train(task, epochs(48, 8, 5000), OPTIMIZERS["adamw"], logger=logger)
"""


@pytest.mark.parametrize("durability", ["process", "group"])
def test_kill_9_in_training(tmp_path, durability):
    """Every step on disk is whole, its ids are found, and what it rebuilds is what an unlogged run has there."""
    arguments = [sys.executable, "-c", CHILD, str(Path(__file__).parents[1]), str(tmp_path / "log"), durability]
    child = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    anchors = tmp_path / "log" / "anchors"
    while not (anchors.exists() and len(list(anchors.glob("*.safetensors"))) > 3):
        assert child.poll() is None, child.stderr.read().decode()
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stderr.close()
    read = lmc.StepLog.open(tmp_path / "log")
    assert read.head() is None
    stop = read.steps.stop
    assert read.steps.start == 0
    assert stop >= 30
    schedule = epochs(48, 8, 5000)
    for t in read.steps:
        assert read[t].sample_ids == schedule.batches[t]
        read[t].gradient()
    for i in range(48):
        assert read.find([i]) == {i: [t for t in range(stop) if i in schedule.batches[t]]}
    model, built = train(TASK, schedule.until(stop), OPTIMIZERS["adamw"])
    assert float((read.parameters_at(stop) - flat(model)).norm()) <= 1e-2 * float(
        (flat(model) - flat(TASK.build())).norm()
    )
    resumed = lmc.TrainingLogger(tmp_path / "log", model, built, resume=True, anchor_every=10)
    assert resumed.step == stop
    with resumed:
        train(
            TASK,
            schedule.until(stop + 3),
            OPTIMIZERS["adamw"],
            model=model,
            optimizer=built,
            start=stop,
            logger=resumed,
        )
    assert lmc.StepLog.open(tmp_path / "log").steps == range(stop + 3)
