"""How the sweep is cut up must not show: panels of parameters, windows of steps, threads, backends."""

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext import ops
from lmcleaner_ext.errors import LogCorruptError
from lmcleaner_ext.log import VectorWindow
from lmcleaner_ext.ops import cpu
from support.cases import OPTIMIZERS, epochs, mlp, record
from support.ring_tools import flipped_bit

BLOCK = 256
TASK = mlp(torch.float32, hidden=100)  # 1504 parameters: six blocks, the last one short


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "int8", "fp8"])
@pytest.mark.parametrize("name", ["sgd decay", "momentum", "adam", "two groups"])
@pytest.mark.parametrize("convention", ["placeholder", "renormalize", "skip"])
def test_small_panels_give_the_same_bits(recorded, monkeypatch, name, dtype, convention):
    tracked = {"mode": "sample", "track_ids": [3, 17], "sample_capacity": 60}
    run = recorded(TASK, epochs(48, 8, 14), OPTIMIZERS[name], dtype=dtype, **tracked)
    whole = lmc.compute_correction(None, run.path, [3, 17], hessian_mode="none", counterfactual=convention)
    theta = run.log().parameters_at(7)
    monkeypatch.setattr("lmcleaner_ext.replay.window._kernel_verifies", lambda dtype: False)
    for blocks in (1, 2, 5):
        monkeypatch.setattr(
            "lmcleaner_ext.replay.window.CHUNK_BYTES", blocks * BLOCK * ops.payload_dtype(dtype).itemsize
        )
        assert torch.equal(
            lmc.compute_correction(None, run.path, [3, 17], hessian_mode="none", counterfactual=convention), whole
        )
        assert torch.equal(run.log().parameters_at(7), theta)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A log of 450,000 parameters: chunks of fp32 vectors, the last one short and padded."""
    return record(
        tmp_path_factory.mktemp("large") / "log", mlp(torch.float32, hidden=30000), epochs(48, 8, 4), OPTIMIZERS["adamw"],
        dtype="fp32", mode="sample", track_ids=[3], sample_capacity=8,
    )  # fmt: skip


def test_checksums_in_the_kernels_pass_change_no_bit(large, monkeypatch):
    monkeypatch.setattr(VectorWindow, "resident", lambda self: 1.0)
    before = lmc.compute_correction(None, large.path, [3], hessian_mode="none")
    monkeypatch.setattr("lmcleaner_ext.replay.window._kernel_verifies", lambda dtype: False)
    assert torch.equal(lmc.compute_correction(None, large.path, [3], hessian_mode="none"), before)


def test_several_panels_in_the_kernels_pass_change_no_bit(large, monkeypatch):
    monkeypatch.setattr(VectorWindow, "resident", lambda self: 1.0)
    expected = lmc.compute_correction(None, large.path, [3], hessian_mode="none")
    verified, first_chunks = cpu.optimizer_replay_verified_, []

    def counted(window, checks, first_chunk, chunk_elements):
        first_chunks.append(first_chunk)
        return verified(window, checks, first_chunk, chunk_elements)

    monkeypatch.setattr(cpu, "optimizer_replay_verified_", counted)
    monkeypatch.setattr("lmcleaner_ext.replay.window.CHUNKS_PER_PANEL", 1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(lmc.compute_correction(None, large.path, [3], hessian_mode="none"), expected)
    finally:
        torch.set_num_threads(threads)
    assert first_chunks == [0, 1]


def test_a_window_past_the_page_cache_changes_no_bit(large, monkeypatch):
    found = []
    for resident in (1.0, 0.0):
        monkeypatch.setattr(VectorWindow, "resident", lambda self, share=resident: share)
        found.append(lmc.compute_correction(None, large.path, [3], hessian_mode="none"))
    assert torch.equal(*found)


@pytest.mark.parametrize("past_the_cache", [False, True])
@pytest.mark.parametrize("ring", ["steps.lmc", "samples.lmc"])
@pytest.mark.parametrize("place", ["first byte", "second chunk", "padding"])
def test_a_flipped_bit_is_noticed(large, monkeypatch, ring, place, past_the_cache):
    log = lmc.StepLog.open(large.path)
    tz = log.find([3])[3][0]
    source = log.window([tz], "gradient") if ring == "steps.lmc" else log.sample_window([(tz, 3)])
    payload = source[0].payload.numpy().tobytes()
    offset = {"first byte": 0, "second chunk": (1 << 20) + 5, "padding": len(payload) + 7}[place]
    monkeypatch.setattr(VectorWindow, "resident", lambda self: 0.0 if past_the_cache else 1.0)
    with flipped_bit(large.path / ring, payload, offset), pytest.raises(LogCorruptError):
        lmc.compute_correction(None, large.path, [3], hessian_mode="none")


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_threads_give_the_same_bits(recorded, name):
    run = recorded(
        TASK, epochs(48, 8, 14), OPTIMIZERS[name], dtype="fp16", mode="sample", track_ids=[3], sample_capacity=60
    )
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(lmc.compute_correction(None, run.path, [3], hessian_mode="none"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["sgd decay", "momentum", "nesterov", "dampening", "adam", "two groups"])
@pytest.mark.parametrize("convention", ["placeholder", "renormalize", "skip"])
def test_the_native_kernel_against_the_reference(recorded, name, convention):
    """The same sweep in float32 by both; the difference is rounding."""
    run = recorded(
        TASK, epochs(48, 8, 14), OPTIMIZERS[name], dtype="fp16", mode="sample", track_ids=[3, 17], sample_capacity=60
    )
    native, reference = (
        lmc.compute_correction(None, run.path, [3, 17], hessian_mode="none", counterfactual=convention, backend=backend)
        for backend in ("cpu", "reference")
    )
    assert float((native - reference).norm() / reference.norm()) < 1e-5


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_anchors_in_other_places_change_rounding_only(recorded, name):
    found = []
    for anchor_every in (1, 4, 100):
        run = recorded(mlp(), epochs(48, 8, 14), OPTIMIZERS[name], anchor_every=anchor_every)
        found.append(lmc.compute_correction(run.model, run.path, [25], hessian_mode="exact", **run.options))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-8, atol=1e-13)
