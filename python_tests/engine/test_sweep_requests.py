"""Several requests in one sweep: each row is what `compute_correction` finds for that request alone."""

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import ConfigurationError, LogCorruptError, MissingDataError, NumericalError
from lmcleaner_ext.log import VectorWindow
from support.cases import OPTIMIZERS, epochs, mlp, record
from support.ring_tools import flipped_bit

TASK = mlp(hidden=6)
TRACKED = {"mode": "sample", "track_ids": range(20), "sample_capacity": 200}
REQUESTS = [[3], [17, 8], [5, 3], [0], []]


def alone(path, requests, **options):
    return torch.stack([lmc.compute_correction(None, path, ids, **options) for ids in requests])


def assert_close(found, expected, tolerance):
    for mine, own in zip(found, expected, strict=True):
        assert float((mine - own).norm()) <= tolerance * float(own.norm())


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_row_is_its_request_alone(recorded, name, clip):
    """float64; K = 3 truncates every request after its own last use."""
    run = recorded(TASK, epochs(48, 8, 14, clip=clip), OPTIMIZERS[name], **TRACKED)
    for convention, K in (("placeholder", 800), ("renormalize", 3), ("skip", 3), ("skip", 800)):
        options = {"hessian_mode": "none", "counterfactual": convention, "K": K}
        if clip and not run.log().gradients:
            with pytest.raises(ConfigurationError, match="step by step"):
                lmc.deviations(None, run.path, REQUESTS, **options)
            continue
        found = lmc.deviations(None, run.path, REQUESTS, **options)
        assert found.shape == (len(REQUESTS), run.log().layout.size)
        assert found.dtype == torch.float64
        assert_close(found, alone(run.path, REQUESTS, **options), 1e-9)


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("name", ["sgd decay", "momentum", "adam", "adamw", "two groups"])
def test_by_the_native_kernel(recorded, name, dtype):
    run = recorded(mlp(torch.float32, hidden=100), epochs(48, 8, 14), OPTIMIZERS[name], dtype=dtype, **TRACKED)
    for convention in ("placeholder", "skip"):
        options = {"hessian_mode": "none", "counterfactual": convention}
        assert_close(lmc.deviations(None, run.path, REQUESTS, **options), alone(run.path, REQUESTS, **options), 1e-5)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_whole_batches_and_a_diagonal(recorded, name):
    run = recorded(TASK, epochs(48, 8, 14), OPTIMIZERS[name], **TRACKED)
    batches = [[log_step.batch_id] for log_step in (run.log()[t] for t in (1, 4, 9))]
    options = {"level": "batch", "hessian_mode": "none"}
    assert_close(lmc.deviations(None, run.path, batches, **options), alone(run.path, batches, **options), 1e-9)
    h = torch.rand(run.log().layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"hessian_mode": "diag", "diagonal": h}
    assert_close(lmc.deviations(None, run.path, REQUESTS, **options), alone(run.path, REQUESTS, **options), 1e-9)


def test_a_recorded_diagonal(recorded):
    run = recorded(TASK, epochs(48, 8, 14), OPTIMIZERS["adamw"], diag_hessian="fisher", **TRACKED)
    options = {"hessian_mode": "diag"}
    assert_close(lmc.deviations(None, run.path, REQUESTS, **options), alone(run.path, REQUESTS, **options), 1e-9)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """450,000 parameters: several checksum chunks, the last one short."""
    return record(
        tmp_path_factory.mktemp("large") / "log", mlp(torch.float32, hidden=30000), epochs(48, 8, 4), OPTIMIZERS["adamw"],
        dtype="fp32", mode="sample", track_ids=[3, 5], sample_capacity=8,
    )  # fmt: skip


@pytest.mark.parametrize("resident", [1.0, 0.0], ids=["in the kernel's pass", "past the cache"])
def test_panels_and_checksums_change_no_bit(large, monkeypatch, resident):
    requests = [[3], [5], [3, 5]]
    monkeypatch.setattr(VectorWindow, "resident", lambda self: resident)
    found = lmc.deviations(None, large.path, requests, hessian_mode="none")
    assert_close(found, alone(large.path, requests, hessian_mode="none"), 1e-5)
    monkeypatch.setattr("lmcleaner_ext.replay.window._kernel_verifies", lambda dtype: False)
    assert torch.equal(lmc.deviations(None, large.path, requests, hessian_mode="none"), found)


@pytest.mark.parametrize("ring", ["steps.lmc", "samples.lmc"])
def test_a_flipped_bit_is_noticed(large, monkeypatch, ring):
    log = lmc.StepLog.open(large.path)
    tz = log.find([3])[3][0]
    source = log.window([tz], "gradient") if ring == "steps.lmc" else log.sample_window([(tz, 3)])
    monkeypatch.setattr(VectorWindow, "resident", lambda self: 1.0)
    payload = source[0].payload.numpy().tobytes()
    with flipped_bit(large.path / ring, payload, (1 << 20) + 5), pytest.raises(LogCorruptError):
        lmc.deviations(None, large.path, [[5], [3]], hessian_mode="none")


def test_what_is_refused_and_what_is_empty(recorded):
    run = recorded(TASK, epochs(48, 8, 14), OPTIMIZERS["adamw"], **TRACKED)
    size = run.log().layout.size
    assert lmc.deviations(None, run.path, []).shape == (0, size)
    assert not lmc.deviations(None, run.path, [[], []]).any()
    with pytest.raises(ConfigurationError, match="compute_correction"):
        lmc.deviations(None, run.path, [[3]], hessian_mode="exact")
    with pytest.raises(MissingDataError, match=r"40.*compute_correction"):
        lmc.deviations(None, run.path, [[3], [40]])


def test_an_overflow_names_its_request(recorded):
    run = recorded(TASK, epochs(48, 8, 14), OPTIMIZERS["momentum"], **TRACKED)
    h = torch.full((run.log().layout.size,), 1e300, dtype=torch.float64)
    with pytest.raises(NumericalError, match="request 0, 1"):
        lmc.deviations(None, run.path, [[3], [5]], hessian_mode="diag", diagonal=h)
