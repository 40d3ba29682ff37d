"""Bad input is an error of this package, raised before the request is on record: the audit log never has an open `request`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext import ops
from lmcleaner_ext.errors import BackendUnavailableError, ConfigurationError, LMCleanerError, LogFormatError
from lmcleaner_ext.log.reader import LogReader
from support.cases import OPTIMIZERS, epochs, mlp

TASK = mlp(hidden=6)


@pytest.fixture
def run(recorded):
    return recorded(TASK, epochs(48, 8, 10), OPTIMIZERS["adamw"])


def events(path):
    """What the chain says, in order; every request is followed by its end."""
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    ended = {e["request"] for e in entries if e["event"] in ("result", "refused", "failed")}
    assert {e["request"] for e in entries if e["event"] == "request"} <= ended
    assert lmc.AuditLog(path).verify() == len(entries)
    return [e["event"] for e in entries]


def refused(run, path, **arguments):
    """The error of `unlearn` with these arguments, which changed nothing and left one line, `refused`, in a new audit log."""
    arguments = {"model": run.model, "log": run.path, "ids": [3], "hessian_mode": "none", **run.options, **arguments}
    theta = run.theta
    with pytest.raises(LMCleanerError) as caught:
        lmc.unlearn(**arguments, audit_log=path)
    assert torch.equal(run.theta, theta)
    assert events(path) == ["refused"]
    return caught.value


WRONG_IDS = [
    *(
        3.0,
        True,
        None,
        b"3",
        object(),
        np.float32(3),
        np.array([3.0]),
        np.array([True]),
        np.array([2**63], dtype=np.uint64),
    ),
    *(torch.tensor([3.0]), torch.tensor([True]), torch.tensor([3], dtype=torch.complex64)),
    *(
        [3.0],
        [3, 4.5],
        [True],
        [None],
        [b"3"],
        [[3]],
        [(3,)],
        [float("nan")],
        [2**63],
        [-(2**63) - 1],
        ["\ud800"],
        [3 + 0j],
    ),
    *([torch.tensor([3, 4])], [np.array([3, 4])]),
]


@pytest.mark.parametrize("ids", WRONG_IDS, ids=lambda ids: type(ids).__name__)
@pytest.mark.parametrize("level", ["sample", "batch"])
def test_ids_of_a_wrong_type(run, tmp_path, ids, level):
    assert isinstance(refused(run, tmp_path / "audit", ids=ids, level=level), ConfigurationError)


WHOLE_NUMBERS = [np.int64(3), np.array([3]), torch.tensor(3), [torch.tensor(3)], {3}, iter([3])]


@pytest.mark.parametrize("ids", WHOLE_NUMBERS, ids=lambda ids: type(ids).__name__)
def test_ids_that_are_whole_numbers_in_other_clothes(run, tmp_path, ids):
    expected = lmc.compute_correction(run.model, run.path, [3], hessian_mode="none", **run.options)
    result = lmc.unlearn(
        run.model, run.path, ids, hessian_mode="none", keep_deviation=True, audit_log=tmp_path / "audit", **run.options
    )
    assert torch.equal(result.deviation, expected)
    assert events(tmp_path / "audit") == ["request", "result"]


WRONG_ARGUMENTS = [
    *(
        {"backend": "foo"},
        {"backend": 3},
        {"level": "token"},
        {"level": []},
        {"hessian_mode": "magic"},
        {"hessian_mode": None},
    ),
    *(
        {"K": "8"},
        {"K": 1.5},
        {"damping": "a"},
        {"tol": "b"},
        {"every": None},
        {"micro_batch": 2.0},
        {"counterfactual": 1},
    ),
    *(
        {"data": 5},
        {"data": (1, 2)},
        {"loss_fn": "mean"},
        {"model": None},
        {"model": 7},
        {"optimizer": 7},
        {"epsilon": 1.0},
    ),
    *(
        {"log": 7},
        {"log": None},
        {"log": "nowhere"},
        {"hessian_mode": "diag"},
        {"hessian_mode": "diag", "diagonal": [1.0]},
    ),
    {"hessian_mode": "auto", "diagonal": torch.ones(3)},
]


@pytest.mark.parametrize("wrong", WRONG_ARGUMENTS, ids=" ".join)
def test_wrong_arguments(run, tmp_path, wrong):
    refused(run, tmp_path / "audit", **wrong)


def test_a_backend_that_cannot_run_here(run, tmp_path):
    missing = next((name for name, reason in ops.available_backends().items() if reason is not None), None)
    if missing is None:
        pytest.skip("every backend runs here")
    path = tmp_path / "audit"
    with pytest.raises(BackendUnavailableError):
        lmc.unlearn(run.model, run.path, [3], hessian_mode="none", backend=missing, audit_log=path, **run.options)
    assert events(path) in (["refused"], ["request", "failed"])


def test_an_unknown_dtype(run, tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="dtype"):
        lmc.TrainingLogger(tmp_path / "log", run.model, run.optimizer, dtype="fp12")
    assert not (tmp_path / "log").exists()
    with pytest.raises(ConfigurationError, match="dtype"):
        ops.encode(torch.ones(3), "int3")
    opened = LogReader.__init__

    def of_a_later_version(self, *arguments):  # a log whose vectors have a form that this version does not know
        opened(self, *arguments)
        self.dtype = "int3"

    monkeypatch.setattr(LogReader, "__init__", of_a_later_version)
    path = tmp_path / "audit"
    with pytest.raises(LMCleanerError, match="dtype"):
        lmc.unlearn(run.model, run.path, [3], hessian_mode="none", audit_log=path, **run.options)
    assert events(path) in (["refused"], ["request", "failed"])


@pytest.mark.parametrize("lost", ["version", "layout", "vectors", "dtype"])
def test_a_manifest_without_a_part(run, tmp_path, monkeypatch, lost):
    class Ring:
        def manifest(self):
            found = run.log().manifest
            return json.dumps({key: value for key, value in found.items() if key != lost})

    with pytest.raises(LogFormatError, match=lost):
        LogReader(Path(run.path), Ring())


def test_batches_that_a_loss_cannot_take(run, tmp_path):
    error = refused_late(run, tmp_path / "audit", data=lambda ids: {"rows": torch.ones(len(ids))}, loss_fn=None)
    assert isinstance(error, ConfigurationError)
    assert "input_ids" in str(error)
    error = refused_late(run, tmp_path / "audit2", loss_fn=lambda model, batch: 0.5)
    assert isinstance(error, ConfigurationError)
    data = ([1, 2], lambda rows: rows)
    assert isinstance(refused_late(run, tmp_path / "audit3", data=data), lmc.errors.MissingDataError)


def refused_late(run, path, **arguments):
    """What shows only when the data are asked for: the request is on record, and so is its failure."""
    theta = run.theta
    with pytest.raises(LMCleanerError) as caught:
        lmc.unlearn(run.model, run.path, [3], hessian_mode="none", audit_log=path, **{**run.options, **arguments})
    assert torch.equal(run.theta, theta)
    assert events(path) == ["request", "failed"]
    return caught.value
