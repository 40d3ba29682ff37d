"""The audit log: what is written when, what tampering it shows, and what it lets a second request do."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import InsecurePermissionsError, LogCorruptError, UnknownSampleError, WrongModelError
from support.cases import OPTIMIZERS, epochs, mlp

TASK = mlp(hidden=6)
SCHEDULE = epochs(48, 8, 10)


@pytest.fixture
def run(recorded):
    return recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def forget(run, path, ids=(3,), **options):
    return lmc.unlearn(run.model, run.path, ids, audit_log=path, **{"hessian_mode": "none", **run.options, **options})


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_request_before_result(run, path):
    before = run.theta
    result = forget(run, path)
    request, served = entries(path)
    assert [request["event"], served["event"]] == ["request", "result"]
    assert request["request"] == served["request"]
    assert [request["sequence"], served["sequence"]] == [0, 1]
    assert request["digest_before"] == result.audit.digest_before != served["digest_after"] == result.audit.digest_after
    assert json.loads(served["record"]) == json.loads(result.audit.to_json())
    assert path.stat().st_mode & 0o777 == 0o600
    assert lmc.AuditLog(path).verify() == 2
    assert not torch.equal(before, run.theta)


def test_the_request_is_on_disk_before_anything_changes(run, path):
    """Looked at from within the sweep, which asks for data."""
    seen = []

    def data(ids):
        seen.append((entries(path), run.theta))
        return TASK.data(ids)

    before = run.theta
    forget(run, path, data=data)
    events, theta = seen[0]
    assert [e["event"] for e in events] == ["request"]
    assert torch.equal(theta, before)


def test_raw_ids_are_not_written(recorded, tmp_path, path):
    model = TASK.build()
    built = OPTIMIZERS["adamw"](model)
    with lmc.TrainingLogger(tmp_path / "named", model, built, dtype="fp32") as log:
        log.batch(["alice@example.org", "bob@example.org"])
        TASK.losses(model, TASK.data([0, 1])).mean().backward()
        built.step()
    rows = {"alice@example.org": 0, "bob@example.org": 1}
    lmc.unlearn(model, tmp_path / "named", ["alice@example.org"], audit_log=path, data=lambda ids: TASK.data([rows[i] for i in ids]),
                loss_fn=TASK.loss_fn)  # fmt: skip
    assert "alice" not in path.read_text()
    assert len(entries(path)[0]["ids"]) == 1


def test_refused_and_failed_requests_are_written_too(run, path):
    with pytest.raises(UnknownSampleError):
        forget(run, path, ids=[999])
    (refused,) = entries(path)
    assert refused["event"] == "refused"
    assert "UnknownSampleError" in refused["reason"]

    def broken(ids):
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        forget(run, path, data=broken)
    assert [e["event"] for e in entries(path)] == ["refused", "request", "failed"]
    assert "disk on fire" in entries(path)[2]["reason"]
    assert lmc.AuditLog(path).verify() == 3


def test_a_dry_run_leaves_no_line(run, path):
    forget(run, path, dry_run=True)
    assert not path.exists()


def test_a_second_request_passes_by_its_audit_log(run, path):
    """The weights are no longer the log's last ones; the audit log knows them as the first request's result."""
    forget(run, path, [3])
    with pytest.raises(WrongModelError):
        lmc.unlearn(run.model, run.path, [17], hessian_mode="none", **run.options)
    second = forget(run, path, [17])
    assert second.audit.weights_match is False
    assert [e["event"] for e in entries(path)] == ["request", "result"] * 2
    with torch.no_grad():
        next(run.model.parameters())[0, 0] += 1e-3
    with pytest.raises(WrongModelError):
        forget(run, path, [30])
    assert entries(path)[-1]["event"] == "refused"


def test_another_runs_audit_log_does_not_let_it_pass(run, recorded, path):
    other = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"])
    assert torch.equal(other.theta, run.theta)
    forget(other, path, [3])
    run.model.load_state_dict(other.model.state_dict())
    with pytest.raises(WrongModelError):
        forget(run, path, [17])


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("change", ["edit", "remove", "swap"])
def test_tampering_is_evident(run, path, number, change):
    for i in (3, 17):
        forget(run, path, [i])
    lines = path.read_bytes().splitlines(keepends=True)
    head = hashlib.sha256(lines[-1]).hexdigest()
    audit = lmc.AuditLog(path)
    assert audit.verify(head) == 4
    if change == "edit":
        lines[number] = lines[number].replace(b'"sequence":', b'"sequence":1')
    elif change == "remove":
        del lines[number]
    else:
        lines[number], lines[number + 1] = lines[number + 1], lines[number]
    path.write_bytes(b"".join(lines))
    with pytest.raises(LogCorruptError):
        audit.verify()


@pytest.mark.parametrize("junk", [b"not json\n", b'{"half": ', b"[]\n", b"\n", b'{"previous": 3}\n'])
def test_junk_is_a_named_error(run, path, junk):
    forget(run, path)
    with open(path, "ab") as file:
        file.write(junk)
    with pytest.raises(LogCorruptError):
        lmc.AuditLog(path).verify()
    theta = run.theta
    with pytest.raises(lmc.LMCleanerError):
        forget(run, path, [17])
    assert torch.equal(run.theta, theta)


def test_a_cut_tail_needs_the_head_that_was_kept(run, path):
    for i in (3, 17):
        forget(run, path, [i])
    lines = path.read_bytes().splitlines(keepends=True)
    head = hashlib.sha256(lines[-1]).hexdigest()
    path.write_bytes(b"".join(lines[:2]))
    assert lmc.AuditLog(path).verify() == 2  # a chain alone cannot see it
    with pytest.raises(LogCorruptError, match="expected"):
        lmc.AuditLog(path).verify(head)


def test_append_returns_the_head(path):
    audit = lmc.AuditLog(path)
    heads = [audit.append("request", "a", {"n": 1}), audit.append("result", "a", {"n": 2})]
    assert audit.verify(heads[-1]) == 2
    with pytest.raises(LogCorruptError):
        audit.verify(heads[0])


def test_permissions(run, path):
    forget(run, path)
    path.chmod(0o640)
    theta = run.theta
    with pytest.raises(InsecurePermissionsError):
        forget(run, path, [17])
    assert torch.equal(run.theta, theta)
    target = path.with_suffix(".target")
    target.write_text("")
    link = path.with_name("link.jsonl")
    link.symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        lmc.AuditLog(link).append("request", "a", {})
    assert target.read_text() == ""


CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch; torch.set_num_threads(1)
import lmcleaner_ext as lmc
from support.cases import mlp
task = mlp(hidden=6)
model = task.build()
model.load_state_dict(torch.load(sys.argv[4]))
def data(ids):
    os.kill(os.getpid(), signal.SIGKILL)
lmc.unlearn(model, sys.argv[2], [3], hessian_mode="none", data=data, loss_fn=task.loss_fn, audit_log=sys.argv[3])
"""


def test_an_open_request_reveals_a_crash(run, path, tmp_path):
    torch.save(run.model.state_dict(), tmp_path / "weights.pt")
    command = [
        sys.executable,
        "-c",
        CHILD,
        str(Path(__file__).parents[1]),
        str(run.path),
        str(path),
        str(tmp_path / "weights.pt"),
    ]
    assert subprocess.run(command, check=False, env={**os.environ}).returncode == -signal.SIGKILL
    (opened,) = entries(path)
    assert opened["event"] == "request"
    forget(run, path)
    assert [e["event"] for e in entries(path)] == ["request", "request", "result"]


def test_the_record_is_canonical_and_frozen(run):
    audit = lmc.unlearn(run.model, run.path, [3], hessian_mode="none", **run.options).audit
    text = audit.to_json()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        audit.mode = "exact"
    assert audit.tau == 10
    assert audit.tz == tuple(SCHEDULE.uses([3]))
    assert audit.version == lmc.__version__
    assert audit.norm_after == pytest.approx(float(run.theta.norm()), rel=1e-12)
