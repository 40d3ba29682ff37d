"""Every refusal comes before any change: weights, optimizer state and every file of the log stay bit-identical."""

import copy
import json

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import (
    ConfigurationError,
    LMCleanerError,
    MissingDataError,
    NumericalError,
    UnknownSampleError,
    WrongModelError,
)
from support.cases import OPTIMIZERS, epochs, mlp, optimizer

TASK = mlp(hidden=6)
SCHEDULE = epochs(48, 8, 10)


class Untouched:
    """Inside the block nothing may change."""

    def __init__(self, run):
        self.run = run

    def picture(self):
        run = self.run
        state = [v.clone() for s in run.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        files = {p: (p.read_bytes(), p.stat().st_mode) for p in run.path.rglob("*") if p.is_file()}
        return run.theta, state, files, {n: m.training for n, m in run.model.named_modules()}

    def __enter__(self):
        self.before = self.picture()

    def __exit__(self, *exception):
        theta, state, files, modes = self.picture()
        assert torch.equal(theta, self.before[0])
        assert all(torch.equal(a, b) for a, b in zip(state, self.before[1], strict=True))
        assert files == self.before[2]
        assert modes == self.before[3]


@pytest.fixture
def run(recorded):
    return recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"])


def refused(run, error, match=None, model=None, ids=(3,), **options):
    options = {"hessian_mode": "none", "optimizer": run.optimizer, **run.options, **options}
    with Untouched(run), pytest.raises(error, match=match):
        lmc.unlearn(run.model if model is None else model, run.path, ids, **options)


@pytest.mark.parametrize(
    "options",
    [{"K": -1}, {"every": 0}, {"damping": -1e-3}, {"tol": 0}, {"micro_batch": 0}, {"hessian_mode": "magic"}, {"counterfactual": "forget"},
     {"level": "token"}, {"epsilon": 1.0}, {"delta": 1e-5}, {"sensitivity": 1.0}, {"data": [1, 2]}, {"damping": float("nan")}],
)  # fmt: skip
def test_wrong_options(run, options):
    refused(run, ConfigurationError, **options)


def test_unknown_backend(run):
    refused(run, ConfigurationError, "backend is one of .*'cpu'.*, found 'quantum'", backend="quantum")
    refused(run, lmc.errors.BackendUnavailableError, backend="cuda" if not torch.cuda.is_available() else "triton")


def test_ids_that_were_never_used(run):
    refused(run, UnknownSampleError, "999", ids=[3, 999])
    refused(run, UnknownSampleError, ids=["3"])
    refused(run, UnknownSampleError, ids=[77], level="batch")


@pytest.mark.parametrize("wrong", [[1.5], [None], [True], [b"x"], 1.5, None])
def test_ids_of_the_wrong_type(run, wrong):
    refused(run, ConfigurationError, "found", ids=wrong)


@pytest.mark.parametrize(
    "wrong", [{"backend": "quantum"}, {"ids": [1.5]}, {"ids": 1.5}, {"K": "many"}, {"level": "token"}]
)
def test_the_audit_log_has_no_open_request_after_a_refusal(run, wrong, tmp_path):
    ids = wrong.pop("ids", [3])
    with pytest.raises(lmc.LMCleanerError, match="found"):
        lmc.unlearn(run.model, run.path, ids, audit_log=tmp_path / "audit.jsonl", **run.options, **wrong)
    events = [json.loads(line)["event"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert events == ["refused"]


def test_another_architecture(run):
    refused(run, WrongModelError, "0.weight", model=mlp(hidden=7).build())
    refused(run, WrongModelError, "float32", model=mlp(torch.float32, hidden=6).build())


def test_other_weights(run):
    other = TASK.build()
    before = [p.clone() for p in other.parameters()]
    with Untouched(run), pytest.raises(WrongModelError, match="digest"):
        lmc.unlearn(other, run.path, [3], hessian_mode="none", **run.options)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_other_weights_when_asked_for(run):
    """allow_changed_weights: the correction is subtracted from whatever is there, and the record says that it did not match."""
    other = copy.deepcopy(run.model)
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    result = lmc.unlearn(other, run.path, [3], hessian_mode="none", allow_changed_weights=True, **run.options)
    assert result.audit.weights_match is False
    assert lmc.unlearn(run.model, run.path, [3], hessian_mode="none", **run.options).audit.weights_match is True


@pytest.mark.parametrize("mode", ["none", "ggn", "exact", "replay"])
def test_missing_data(run, mode):
    refused(run, MissingDataError, hessian_mode=mode, data=None)


def test_missing_diagonal(run):
    refused(run, MissingDataError, hessian_mode="diag")
    refused(run, ConfigurationError, "shape", hessian_mode="diag", diagonal=torch.ones(3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("mode", ["none", "ggn", "exact", "replay"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_a_loss_that_is_not_finite(recorded, name, mode, value):
    class Poisoned(type(TASK.loss_fn)):
        def outputs(self, model, batch):
            logits, targets, weights = super().outputs(model, batch)
            return logits * value, targets, weights

    refused(recorded(TASK, SCHEDULE, OPTIMIZERS[name]), NumericalError, hessian_mode=mode, loss_fn=Poisoned())


@pytest.mark.parametrize("mode", ["exact", "ggn", "none"])
def test_a_deviation_that_overflows(recorded, mode):
    run = recorded(TASK, SCHEDULE, optimizer(torch.optim.SGD, lr=0.1))
    options = {"hessian_mode": "diag", "diagonal": torch.full((run.log().layout.size,), 1e60, dtype=torch.float64)} if mode == "none" else {
        "hessian_mode": mode, "damping": 1e60}  # fmt: skip
    refused(run, NumericalError, "not finite", **options)


def test_data_that_fails(run):
    class Gone(Exception):
        pass

    def data(ids):
        raise Gone

    refused(run, Gone, data=data)


@pytest.mark.parametrize("shape", ["scalar", "short", "matrix"])
def test_a_loss_function_of_the_wrong_shape(run, shape):
    """Per-sample losses are needed to weight them: a mean over a batch of several is refused, and says what to do."""

    def loss(model, batch):
        per_sample = TASK.losses(model, batch)
        return {"scalar": per_sample.mean(), "short": per_sample[:-1], "matrix": per_sample[:, None]}[shape]

    ids = list(run.schedule.batches[2][:2])
    refused(
        run, ConfigurationError, "micro_batch=1" if shape == "scalar" else "one loss per sample", ids=ids, loss_fn=loss
    )


def test_a_mean_loss_with_single_rows(recorded, run):
    """A loss_fn that returns a mean serves with micro_batch=1."""
    expected = lmc.compute_correction(run.model, run.path, [3, 17], hessian_mode="none", **run.options)
    mean = lmc.compute_correction(run.model, run.path, [3, 17], hessian_mode="none", data=TASK.data, micro_batch=1,
                                  loss_fn=lambda model, batch: TASK.losses(model, batch).mean())  # fmt: skip
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-14)


def test_a_refusal_in_the_middle_of_training(recorded):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"], keep_open=True)
    theta = run.theta
    with pytest.raises(LMCleanerError):
        lmc.unlearn(run.model, run.logger, [999], **run.options)
    with pytest.raises(MissingDataError):
        lmc.unlearn(run.model, run.logger, [3])
    assert torch.equal(run.theta, theta)
    assert not any(anchor.corrected for anchor in run.log().anchors())
    run.logger.close()


def test_a_log_of_another_run(recorded):
    """Same architecture, other weights: the digest tells them apart."""
    run, other = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"]), recorded(TASK, SCHEDULE, OPTIMIZERS["adam"])
    theta = run.theta
    with pytest.raises(WrongModelError):
        lmc.unlearn(run.model, other.path, [3], hessian_mode="none", **run.options)
    assert torch.equal(run.theta, theta)
