"""Anchors with compression="zstd": no bit is lost, damage is named, and everything that reads a log works."""

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open

import lmcleaner_ext as lmc
from lmcleaner_ext.cli.main import main
from lmcleaner_ext.errors import ConfigurationError, LogCorruptError
from lmcleaner_ext.log.anchors import write_anchor
from lmcleaner_ext.log.compression import compress, decompress
from support.cases import OPTIMIZERS, epochs, flat, mlp, record, rho, train

zstandard = pytest.importorskip("zstandard")

TASK = mlp(torch.float32, hidden=300)
ZSTD = {"compression": "zstd", "anchor_every": 5, "dtype": "fp16"}
DTYPES = {torch.float64: np.uint64, torch.float32: np.uint32, torch.bfloat16: np.uint16, torch.float16: np.uint16}


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=50)
@given(data=st.data())
def test_every_bit_comes_back(dtype, data):
    bits = data.draw(hnp.arrays(DTYPES[dtype], st.integers(1, 300)))  # NaNs, infinities and denormals too
    vector = torch.from_numpy(bits).view(dtype)
    restored = decompress(compress(vector), dtype, len(bits))
    assert restored.dtype == dtype
    assert np.array_equal(restored.view(torch.uint8).numpy(), vector.view(torch.uint8).numpy())


def test_weights_take_less_space():
    weights = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 0.02

    def ratio(vector):
        return vector.nbytes / sum(frame.numel() for frame in compress(vector))

    assert ratio(weights) > 1.15
    assert ratio(weights.bfloat16().float()) > 2.2
    assert ratio(torch.zeros(100_000)) > 1000


def test_the_planes_are_as_documented(tmp_path):
    """Read with zstandard and NumPy alone, as docs/log-format.md says."""
    theta = torch.randn(1000)
    anchor = write_anchor(tmp_path, 7, 0, {"theta": theta}, durable=False, compression="zstd")
    with safe_open(anchor.path, framework="np") as file:
        assert sorted(file.keys()) == ["theta.0", "theta.1", "theta.2", "theta.3"]
        assert file.metadata()["compression"] == "zstd"
        assert json.loads(file.metadata()["planes"]) == {"theta": ["float32", 1000]}
        planes = [zstandard.ZstdDecompressor().decompress(file.get_tensor(f"theta.{k}").tobytes()) for k in range(4)]
    found = np.stack([np.frombuffer(plane, np.uint8) for plane in planes], axis=1).reshape(-1).view("<f4")
    assert np.array_equal(found, theta.numpy())
    stored, uncompressed = anchor.nbytes
    assert uncompressed == 4000
    assert stored == anchor.path.stat().st_size


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_a_log_with_compressed_anchors(recorded, name):
    plain, packed = (
        recorded(TASK, epochs(48, 8, 17), OPTIMIZERS[name], **o) for o in (ZSTD | {"compression": None}, ZSTD)
    )
    assert torch.equal(plain.theta, packed.theta)
    assert all(anchor.nbytes[0] < anchor.nbytes[1] for anchor in packed.log().anchors() if anchor.step)
    for t in (0, 4, 5, 9, 17):
        assert torch.equal(plain.log().parameters_at(t), packed.log().parameters_at(t))
        theirs, ours = plain.log().state_at(t)[1], packed.log().state_at(t)[1]
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    ideal = flat(packed.retrained(forget=[3])[0])
    deviation = lmc.compute_correction(packed.model, packed.path, [3], hessian_mode="replay", **packed.options)
    assert rho(packed.theta - deviation, ideal, packed.theta) < 0.02


def test_resuming_keeps_the_compression(tmp_path):
    make, schedule = OPTIMIZERS["adamw"], epochs(48, 8, 12)
    first = record(tmp_path / "log", TASK, schedule.until(7), make, **ZSTD)
    with lmc.TrainingLogger(tmp_path / "log", first.model, first.optimizer, resume=True) as log:
        assert log.step == 7
        train(TASK, schedule, make, model=first.model, optimizer=first.optimizer, start=7, logger=log)
    read = lmc.StepLog.open(tmp_path / "log")
    for anchor in read.anchors():
        with safe_open(anchor.path, framework="pt") as file:
            assert file.metadata()["compression"] == "zstd"
    plain = flat(train(TASK, schedule, make)[0])
    assert torch.equal(plain, first.theta)
    assert float((read.parameters_at(12) - plain).norm()) < 1e-2 * float((plain - first.start).norm())


def test_damage_is_named(tmp_path):
    """A flipped bit in each byte of a compressed anchor: refused, or the value as it was; never another one."""
    theta = torch.randn(40)
    anchor = write_anchor(tmp_path, 7, 0, {"theta": theta}, durable=False, compression="zstd")
    good, refused = anchor.path.read_bytes(), 0
    for at in range(len(good)):
        data = bytearray(good)
        data[at] ^= 1 << at % 8
        anchor.path.write_bytes(data)
        try:
            assert torch.equal(anchor.tensor("theta"), theta)
        except LogCorruptError:
            refused += 1
    assert refused > len(good) - 150  # the step, the names of other keys, padding


def test_a_size_that_the_frame_cannot_have():
    """Nothing is allocated for an absurd claim: a frame of 17 bytes that says it holds 2^50."""
    claim = b"\x28\xb5\x2f\xfd\xe0" + (1 << 50).to_bytes(8, "little") + b"\x0b\x00\x00" + b"x"
    assert zstandard.frame_content_size(claim) == 1 << 50
    frames = [torch.frombuffer(bytearray(claim), dtype=torch.uint8)] * 4
    for count in (1 << 50, 100):
        with pytest.raises(ValueError, match="expected"):
            decompress(frames, torch.float32, count)


def test_without_the_package(tmp_path, monkeypatch):
    run = record(tmp_path / "log", TASK, epochs(48, 8, 7), OPTIMIZERS["adamw"], **ZSTD)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigurationError, match="pip install"):
        lmc.TrainingLogger(tmp_path / "other", run.model, run.optimizer, compression="zstd")
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigurationError, match="pip install"):
        run.log().parameters_at(3)


def test_inspect_shows_the_ratio(tmp_path, capsys):
    record(tmp_path / "log", TASK, epochs(48, 8, 7), OPTIMIZERS["adamw"], **ZSTD)
    main(["inspect", str(tmp_path / "log"), "--json"])
    shown = json.loads(capsys.readouterr().out)["anchor_compression"]
    sizes = [anchor.nbytes for anchor in lmc.StepLog.open(tmp_path / "log").anchors()]
    assert shown == {
        "method": "zstd",
        "ratio": pytest.approx(sum(u for _, u in sizes) / sum(s for s, _ in sizes), abs=1e-3),
    }
    main(["inspect", str(tmp_path / "log")])
    assert f"zstd, {shown['ratio']} : 1" in " ".join(capsys.readouterr().out.split())
