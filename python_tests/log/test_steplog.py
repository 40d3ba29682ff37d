"""Reading: which steps there are, who used what, and the refusals."""

import json
import os

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import (
    ConfigurationError,
    ExpiredStepError,
    InsecurePermissionsError,
    LogCorruptError,
    LogFormatError,
    MissingDataError,
    MissingStepError,
    UnknownSampleError,
)
from lmcleaner_ext.log import LogReader
from support.cases import OPTIMIZERS, Schedule, epochs, mlp, train

TASK = mlp(hidden=5)


def test_records_say_what_each_step_did(recorded):
    schedule = epochs(48, 8, 12, lr=lambda t: 0.5**t, clip=0.05)
    run = recorded(TASK, schedule, OPTIMIZERS["two groups"])
    log = run.log()
    assert (log.steps, len(log)) == (range(12), 12)
    for t in log.steps:
        record = log[t]
        assert record.step == record.batch_id == t
        assert record.sample_ids == schedule.batches[t]
        assert record.lr == pytest.approx((3e-3 * 0.5**t, 1e-3 * 0.5**t), rel=1e-12)
        assert record.weights.tolist() == [1 / 8] * 8
        assert record.loss_normalizer == 8
        assert record.max_norm == 0.05
        assert record.clip_factor == pytest.approx(min(1, 0.05 / (record.clip_norm + 1e-6)))
        assert record.gradient().norm() == pytest.approx(record.clip_norm * record.clip_factor, rel=1e-6)
        torch.testing.assert_close(record.update(), log.parameters_at(t + 1) - log.parameters_at(t), rtol=0, atol=1e-14)


@pytest.mark.parametrize("vectors", ["update", "gradient", "both"])
def test_updates_and_gradients(recorded, vectors):
    run = recorded(TASK, epochs(48, 8, 6), OPTIMIZERS["sgd"], vectors=vectors)
    log = run.log()
    for t in log.steps:
        u = log.parameters_at(t + 1) - log.parameters_at(t)
        torch.testing.assert_close(log[t].update(), u, rtol=0, atol=1e-15)
        torch.testing.assert_close(-0.2 * log[t].gradient(), u, rtol=0, atol=1e-15)


def test_a_reader_has_what_lies_on_disk(recorded):
    """The vectors that are logged, bit for bit, and none that would have to be computed."""
    run = recorded(TASK, epochs(48, 8, 6), OPTIMIZERS["sgd"], vectors="gradient")
    with LogReader.open(run.path) as reader:
        assert (reader.steps, reader.find([1])) == (run.log().steps, run.log().find([1]))
        assert torch.equal(reader[3].gradient(), run.log()[3].gradient())
        with pytest.raises(MissingDataError, match="updates are needed"):
            reader[3].update()


def test_find(recorded):
    schedule = Schedule(((1, 2), (3, 3), (2, 4), (5, 1)))
    log = recorded(TASK, schedule, OPTIMIZERS["sgd"]).log()
    assert log.find([1, 2, 3]) == {1: [0, 3], 2: [0, 2], 3: [1]}
    assert log.find(torch.tensor([4])) == {4: [2]}
    assert log.find([2, 0], level="batch") == {2: [2], 0: [0]}
    with pytest.raises(UnknownSampleError) as caught:
        log.find([1, 9, "1"])
    assert caught.value.ids == [9, "1"]
    with pytest.raises(UnknownSampleError):
        log.find([7], level="batch")


def test_a_use_that_left_the_window(recorded):
    schedule = Schedule(((40, 41), *(((t % 8), 8 + t % 8) for t in range(30)), (42, 43)))
    run = recorded(TASK, schedule, OPTIMIZERS["sgd"], capacity=10, anchor_every=4)
    log = run.log()
    assert log.find([42]) == {42: [31]}
    with pytest.raises(ExpiredStepError) as caught:
        log.find([40])
    assert (caught.value.step, caught.value.lo, caught.value.hi) == (0, log.steps.start, 32)
    with pytest.raises(ExpiredStepError):  # one of its uses is still there, another is not
        log.find([3])
    before = run.theta
    with pytest.raises(ExpiredStepError):
        lmc.unlearn(run.model, run.path, [40, 42], **run.options)
    assert torch.equal(run.theta, before)


def test_outside(recorded):
    log = recorded(TASK, epochs(48, 8, 20), OPTIMIZERS["sgd"], capacity=10, anchor_every=5).log()
    for step in (20, 10**9, -1):
        with pytest.raises(MissingStepError):
            log[step]
    with pytest.raises(ExpiredStepError):
        log[0]


def test_a_reader_beside_the_trainer(recorded):
    run = recorded(TASK, epochs(48, 8, 5), OPTIMIZERS["sgd"], keep_open=True)
    with lmc.StepLog.open(run.path) as log:
        assert log.head() is None
        first = len(log.steps)
        train(
            TASK,
            epochs(48, 8, 9),
            run.make_optimizer,
            model=run.model,
            optimizer=run.optimizer,
            start=5,
            logger=run.logger,
        )
        assert len(log.steps) == first  # a log does not change under the reader's hands
        run.logger.close()
        log.refresh()
        assert log.steps == range(9)
        assert log.head()["step"] == 9


def test_modes_of_files(recorded):
    run = recorded(TASK, epochs(48, 8, 5), OPTIMIZERS["adamw"], mode="sample", track_ids=[3])
    for folder, _, files in os.walk(run.path):
        assert os.stat(folder).st_mode & 0o777 == 0o700
        for name in files:
            assert os.stat(os.path.join(folder, name)).st_mode & 0o777 == 0o600, name


@pytest.mark.parametrize("name", ["steps.lmc", "samples.lmc", "anchors", "uses.bin"])
def test_what_others_can_read_is_refused(recorded, name):
    run = recorded(TASK, epochs(48, 8, 5), OPTIMIZERS["adamw"], mode="sample", track_ids=[3])
    path = run.path / name
    path = next(path.iterdir()) if name == "anchors" else path
    path.chmod(0o644)

    def read():
        log = run.log()
        log.find([3])
        log.parameters_at(2)

    with pytest.raises(InsecurePermissionsError) as caught:
        read()
    assert caught.value.mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:100], lambda data: data[:8] + bytes(len(data) - 8)]
)
def test_an_anchor_that_does_not_read(recorded, damage):
    run = recorded(TASK, epochs(48, 8, 5), OPTIMIZERS["adamw"])
    anchor = run.log().anchors()[0]
    anchor.path.write_bytes(damage(anchor.path.read_bytes()))
    properties = [lambda: anchor.corrected, lambda: anchor.nbytes, lambda: anchor.tensor("theta")]
    for use in (anchor.names, anchor.state_names, anchor.digest, *properties):
        with pytest.raises(LogCorruptError, match="does not read"):
            use()


def test_not_a_log(tmp_path):
    with pytest.raises(LogFormatError, match="not a training log"):
        lmc.StepLog.open(tmp_path)
    with pytest.raises(LogFormatError):
        lmc.StepLog.open(tmp_path / "nothing")


def test_another_manifest_version(recorded, monkeypatch):
    monkeypatch.setattr("lmcleaner_ext.recorder.writer.MANIFEST_VERSION", 99)
    run = recorded(TASK, epochs(48, 8, 2), OPTIMIZERS["sgd"])
    with pytest.raises(LogFormatError, match="99"):
        run.log()


def test_a_flipped_bit_in_a_vector(recorded):
    """The step it belongs to is refused, the others still read; nothing is applied."""
    run = recorded(TASK, epochs(48, 8, 8), OPTIMIZERS["adamw"], dtype="bf16", anchor_every=100)
    want = run.log()[5].gradient().to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    data = bytearray((run.path / "steps.lmc").read_bytes())
    at = bytes(data).index(want)
    data[at + 3] ^= 4
    (run.path / "steps.lmc").write_bytes(data)
    log = run.log()
    with pytest.raises(LogCorruptError) as caught:
        log[5].gradient()
    assert caught.value.step == 5
    log[4].gradient()
    before = run.theta
    with pytest.raises(LogCorruptError):
        lmc.unlearn(run.model, run.path, [run.schedule.batches[2][0]], hessian_mode="none", **run.options)
    assert torch.equal(run.theta, before)


def test_a_torn_use_index(recorded):
    run = recorded(TASK, epochs(48, 8, 4), OPTIMIZERS["sgd"])
    with open(run.path / "uses.bin", "ab") as file:
        file.write(b"half a rec")
    assert run.log().find([run.schedule.batches[3][0]]) == {run.schedule.batches[3][0]: [3]}


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"step": "x"}'])
def test_a_broken_head(recorded, text):
    """head.json lies beside the ring and has no checksum: what does not parse is a named error."""
    run = recorded(TASK, epochs(48, 8, 4), OPTIMIZERS["sgd"])
    (run.path / "head.json").write_text(text)
    before = run.theta
    with pytest.raises(LogFormatError, match="does not parse"):
        lmc.unlearn(run.model, run.path, [run.schedule.batches[3][0]], hessian_mode="none", **run.options)
    assert torch.equal(run.theta, before)


def test_level_is_checked(recorded):
    run = recorded(TASK, epochs(48, 8, 2), OPTIMIZERS["sgd"])
    with pytest.raises(ConfigurationError, match="level"):
        lmc.unlearn(run.model, run.path, [0], level="epoch", **run.options)
    assert json.loads((run.path / "head.json").read_text())["step"] == 2
