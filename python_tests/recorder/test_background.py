"""The writer thread: bounded memory, errors that surface, nothing lost at any way out."""

import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import LogWriteError, WrongModelError
from lmcleaner_ext.recorder.background import AHEAD
from lmcleaner_ext.recorder.writer import LogWriter
from support.cases import OPTIMIZERS, mlp

TASK = mlp(torch.float32, hidden=5)


class Gate:
    """Holds the writer thread before each append until it is opened."""

    def __init__(self, monkeypatch):
        self.open = threading.Event()
        original = LogWriter.append

        def append(writer, *arguments):
            assert self.open.wait(250)
            original(writer, *arguments)

        monkeypatch.setattr(LogWriter, "append", append)


def start(tmp_path, name="adamw", **options):
    model = TASK.build()
    built = OPTIMIZERS[name](model)
    return model, built, lmc.TrainingLogger(tmp_path / "log", model, built, loss_fn=TASK.loss_fn, **options)


def step(model, built, log, ids=(0, 1)):
    log.batch(list(ids))
    TASK.losses(model, TASK.data(list(ids))).mean().backward()
    built.step()
    built.zero_grad()


def eventually(condition):
    while not condition():
        time.sleep(0.005)


@pytest.mark.parametrize("vectors", ["gradient", "both"])
def test_training_waits_for_the_disk_and_what_was_handed_over_does_not_change(tmp_path, monkeypatch, vectors):
    """AHEAD steps wait, one is in hand, the next has no memory to go to; then every vector is the one of its own step."""
    gate = Gate(monkeypatch)
    model, built, log = start(tmp_path, vectors=vectors, dtype="fp32")
    gradients = []
    with log:

        def run():
            for _ in range(AHEAD + 4):
                log.batch([0, 1])
                TASK.losses(model, TASK.data([0, 1])).mean().backward()
                gradients.append(torch.cat([p.grad.reshape(-1).clone() for p in model.parameters()]))
                built.step()
                built.zero_grad()

        training = threading.Thread(target=run)
        training.start()
        eventually(lambda: len(gradients) == AHEAD + 2)
        training.join(0.2)
        assert training.is_alive()
        assert (log.step, log.written_step) == (AHEAD + 1, -1)
        gate.open.set()
        training.join(60)
        assert not training.is_alive()
    read = lmc.StepLog.open(tmp_path / "log")
    assert read.steps == range(AHEAD + 4)
    for t in read.steps:
        assert torch.equal(read[t].gradient(), gradients[t])


def test_drain_and_checkpoints_wait_until_steps_are_durable(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    model, built, log = start(tmp_path, durability="group")
    with log:
        step(model, built, log)
        step(model, built, log)
        assert (log.written_step, log.durable_step) == (-1, -1)
        threading.Timer(0.1, gate.open.set).start()
        built.state_dict()  # a checkpoint must not be ahead of the log
        assert (log.written_step, log.durable_step) == (1, 1)
        step(model, built, log)
        log.drain()
        assert log.durable_step == 2


def test_a_request_in_the_middle_of_the_run_sees_every_step(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    model, built, log = start(tmp_path)
    with log:
        step(model, built, log, [5, 6])
        threading.Timer(0.1, gate.open.set).start()
        result = lmc.unlearn(model, log, [5], hessian_mode="none", data=TASK.data, loss_fn=TASK.loss_fn)
        assert result.audit.tz == (0,)


def broken(monkeypatch, at):
    original = LogWriter.append

    def append(writer, record, *arguments):
        if record.step == at:
            raise OSError(5, "the disk is gone")
        original(writer, record, *arguments)

    monkeypatch.setattr(LogWriter, "append", append)


def test_a_failed_write_surfaces_at_a_later_step(tmp_path, monkeypatch):
    """The optimizer has taken its step by then; the steps before stand, and the weights are not taken for the log's end."""
    broken(monkeypatch, 2)
    model, built, log = start(tmp_path)

    def run():
        with log:
            for t in range(20):
                step(model, built, log)
                if t == 2:
                    eventually(lambda: log._writer.failed)

    with pytest.raises(LogWriteError, match="disk is gone") as caught:
        run()
    assert isinstance(caught.value.__cause__, OSError)
    assert log.step == 3
    read = lmc.StepLog.open(tmp_path / "log")
    assert read.steps == range(2)
    with pytest.raises(WrongModelError):
        lmc.unlearn(model, tmp_path / "log", [0], hessian_mode="none", data=TASK.data, loss_fn=TASK.loss_fn)


@pytest.mark.parametrize("when", ["in a step", "at the end"])
def test_a_failed_write_with_detach_is_one_warning(tmp_path, monkeypatch, when):
    broken(monkeypatch, 2)
    model, built, log = start(tmp_path, on_error="detach")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with log:
            for t in range(3 if when == "at the end" else 6):
                step(model, built, log)
                if t == 2 and when == "in a step":
                    eventually(lambda: log._writer.failed)
    assert ["disk is gone" in str(warning.message) for warning in caught] == [True]
    assert lmc.StepLog.open(tmp_path / "log").steps == range(2)


def test_an_exception_in_the_loop_loses_no_step(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    model, built, log = start(tmp_path)
    threading.Timer(0.1, gate.open.set).start()

    def run():
        with log:
            step(model, built, log)
            step(model, built, log)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    read = lmc.StepLog.open(tmp_path / "log")
    assert read.steps == range(2)
    assert read.head()["step"] == 2


UNCLOSED = """
import sys; sys.path.insert(0, sys.argv[1])
import torch; torch.set_num_threads(1)
import lmcleaner_ext as lmc
from support.cases import OPTIMIZERS, epochs, mlp, train
task = mlp(torch.float32, hidden=5)
def logger(model, built):
    return lmc.TrainingLogger(sys.argv[2], model, built).attach()
kept = train(task, epochs(48, 8, 20), OPTIMIZERS["adamw"], logger=logger)
"""


def test_a_log_that_nobody_closed(tmp_path):
    """The interpreter ends after the last step: what was handed over is written before it does."""
    subprocess.run([sys.executable, "-c", UNCLOSED, str(Path(__file__).parents[1]), str(tmp_path / "log")], check=True)
    assert lmc.StepLog.open(tmp_path / "log").steps == range(20)


def test_a_forked_child_writes_nothing_and_waits_for_nothing(tmp_path):
    """As a data loader's worker: it has no writer thread, so it must neither hand over nor wait."""
    model, built, log = start(tmp_path)
    with log:
        step(model, built, log)
        log.drain()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns that a process with threads forks
            child = os.fork()
        if child == 0:
            refused = 0
            for attempt in (lambda: step(model, built, log), log.drain, log.close):
                try:
                    attempt()
                except LogWriteError:
                    refused += 1
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        step(model, built, log)
    assert lmc.StepLog.open(tmp_path / "log").steps == range(2)
