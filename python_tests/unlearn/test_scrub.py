"""Scrubbed vectors are gone from the file, their steps are refused by name, and everything later is served as before."""

import json

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import ConfigurationError, LogLockedError, ScrubbedStepError, UnknownSampleError
from support.cases import OPTIMIZERS, Schedule, mlp, train

TASK = mlp(hidden=6)
SCHEDULE = Schedule(((1, 2), (3, 4), (1, 5), (6, 7), (8, 9), (6, 10), (11, 12), (13, 14)))
EARLY, LATE = [1], [6, 11]  # steps 0 and 2; steps 3, 5 and 6


@pytest.fixture
def run(recorded):
    return recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"], anchor_every=3, mode="sample", track_ids=[1, 6, 11])


def fingerprints(log, steps):
    """Bytes that the file holds of each step's gradient and of nothing else."""
    return {t: log[t].gradient().numpy().tobytes()[8:80] for t in steps}


def found_in(path, wanted):
    data = path.read_bytes()
    return [t for t, value in wanted.items() if value in data]


def test_what_is_gone_and_what_is_served(run, tmp_path):
    log = run.log()
    before = fingerprints(log, log.steps)
    own = {use: log.sample_window([use]).decode(0, torch.float64).numpy().tobytes() for use in ((0, 1), (2, 1), (3, 6))}
    served = lmc.compute_correction(run.model, run.path, LATE, hessian_mode="none", **run.options)
    log.close()
    audit = tmp_path / "audit.jsonl"
    report = lmc.scrub(run.path, EARLY, audit_log=audit)
    assert (report.steps, report.tracked, report.usable_from) == ((0, 2), 2, 3)
    assert report.bytes > 2 * 8 * run.theta.numel()
    assert found_in(run.path / "steps.lmc", before) == [1, 3, 4, 5, 6, 7]
    assert found_in(run.path / "samples.lmc", own) == [(3, 6)]
    read = run.log()
    assert read.steps == range(8)
    for t in (0, 2):
        with pytest.raises(ScrubbedStepError, match=f"step {t} was scrubbed"):
            read[t]
    assert fingerprints(read, [1, 3, 4, 5, 6, 7]) == {t: before[t] for t in (1, 3, 4, 5, 6, 7)}
    assert torch.equal(lmc.compute_correction(run.model, run.path, LATE, hessian_mode="none", **run.options), served)
    for ids in ([1], [3]):  # used in a scrubbed step; used before one
        with pytest.raises(ScrubbedStepError):
            lmc.unlearn(run.model, run.path, ids, hessian_mode="none", **run.options)
    entries = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [entry["event"] for entry in entries] == ["scrub", "scrubbed"]
    assert entries[1]["steps"] == [0, 2]
    assert entries[1]["tracked"] == 2
    assert lmc.AuditLog(audit).verify() == 2
    assert "1" not in entries[0]["ids"]
    lmc.unlearn(run.model, run.path, LATE, hessian_mode="none", audit_log=audit, **run.options)  # the chain goes on


def test_tracked_only_leaves_the_steps(run):
    log = run.log()
    before = fingerprints(log, log.steps)
    own = log.sample_window([(2, 1)]).decode(0, torch.float64).numpy().tobytes()
    expected = lmc.compute_correction(run.model, run.path, EARLY, hessian_mode="none", **run.options)
    log.close()
    report = lmc.scrub(run.path, EARLY, tracked_only=True)
    assert (report.steps, report.tracked) == ((), 2)
    assert own not in (run.path / "samples.lmc").read_bytes()
    assert found_in(run.path / "steps.lmc", before) == list(before)
    found = lmc.compute_correction(run.model, run.path, EARLY, hessian_mode="none", **run.options)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)  # recomputed from the data now


def test_slots_that_hold_no_readable_step_are_wiped_too(recorded):
    """Spare slots still hold steps that have left the log: a sample's last traces may be there."""
    every = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"]).log()
    wanted = fingerprints(every, every.steps)
    run = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"], anchor_every=2, capacity=4, durability="group")
    assert run.log().steps == range(4, 8)
    assert found_in(run.path / "steps.lmc", wanted) == list(range(8))
    lmc.scrub(run.path, steps=[4])
    assert found_in(run.path / "steps.lmc", wanted) == [5, 6, 7]


def test_a_dry_run_and_refusals_change_nothing(run):
    before = [(run.path / name).read_bytes() for name in ("steps.lmc", "samples.lmc")]
    assert lmc.scrub(run.path, EARLY, dry_run=True).steps == (0, 2)
    with pytest.raises(UnknownSampleError):
        lmc.scrub(run.path, [99])
    with pytest.raises(ConfigurationError, match="step 8"):
        lmc.scrub(run.path, steps=[8])
    assert [(run.path / name).read_bytes() for name in ("steps.lmc", "samples.lmc")] == before


def test_scrubbing_again_is_harmless(run):
    lmc.scrub(run.path, EARLY)
    lmc.scrub(run.path, EARLY)
    lmc.scrub(run.path, [6])
    read = run.log()
    assert read.scrubbed == {0, 2, 3, 5}
    assert [t for t in read.steps if t not in read.scrubbed and read[t].gradient().norm() > 0] == [1, 4, 6, 7]


def test_in_the_middle_of_a_run(tmp_path):
    """The trainer's own logger scrubs, trains on, comes around the ring; another process would be refused the lock."""
    model = TASK.build()
    built = OPTIMIZERS["adamw"](model)
    with lmc.TrainingLogger(tmp_path / "log", model, built, capacity=6, anchor_every=2, dtype="fp32") as log:
        train(TASK, Schedule(SCHEDULE.batches[:4]), OPTIMIZERS["adamw"], model=model, optimizer=built, logger=log)
        with pytest.raises(LogLockedError):
            lmc.scrub(tmp_path / "log", EARLY)
        assert lmc.scrub(log, EARLY).steps == (0, 2)
        many = Schedule(SCHEDULE.batches * 6)
        train(TASK, many, OPTIMIZERS["adamw"], model=model, optimizer=built, logger=log, start=4)
    read = lmc.StepLog.open(tmp_path / "log")
    assert (read.steps, read.scrubbed) == (range(42, 48), frozenset())
    for t in read.steps:
        assert read[t].sample_ids == many.batches[t]


def test_a_scrubbed_log_is_resumed(run):
    """From its end, although no replay can lead there any more."""
    lmc.scrub(run.path, steps=[7])
    log = lmc.TrainingLogger(
        run.path, run.model, run.optimizer, resume=True, loss_fn=TASK.loss_fn, track_ids=[1], mode="sample"
    )
    with log:
        assert log.step == 8
        train(
            TASK, Schedule((*SCHEDULE.batches, (20, 21))), OPTIMIZERS["adamw"], model=run.model, optimizer=run.optimizer,
            logger=log, start=8, inputs=True,
        )  # fmt: skip
    read = run.log()
    assert (read.steps, read.scrubbed) == (range(9), {7})
    assert read[8].sample_ids == (20, 21)
