"""Payloads that a library reads into device memory by itself: the same numbers, and none that the checksums do not vouch for.

Without a GPU the device is the CPU, and the library one that reads with os.preadv, as late as it may.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import BackendUnavailableError, ConfigurationError, LogCorruptError, LogTruncatedError
from lmcleaner_ext.replay import device_panels, gpu_direct
from support.cases import OPTIMIZERS, epochs, flat, mlp, record

FORGET = [3, 17]
PAGE = 4096
TASK = mlp(torch.float32, hidden=60_000)
"""900,004 parameters: in fp16 two checksum chunks, the second ends within a page."""


class Library:
    """Stands for kvikio: counts what is under way, and spoils one read on request."""

    def __init__(self, monkeypatch, driver: bool = True):
        self.reads = self.under_way = self.files = 0
        self.spoil = lambda number, buffer, got: got
        kvikio = ModuleType("kvikio")
        kvikio.CuFile = lambda path, flags: File(self, path, flags)  # type: ignore[attr-defined]
        kvikio.CompatMode = SimpleNamespace(OFF=0, ON=1, AUTO=2)  # type: ignore[attr-defined]
        self.mode = 2
        monkeypatch.setitem(sys.modules, "kvikio", kvikio)
        monkeypatch.setitem(sys.modules, "kvikio.defaults", SimpleNamespace(get=lambda key: self.mode))
        monkeypatch.setitem(sys.modules, "kvikio.cufile_driver", SimpleNamespace(get=lambda key: driver))


class File:
    def __init__(self, library: Library, path: str, flags: str):
        assert flags == "r"
        self.library, self.descriptor = library, os.open(path, os.O_RDONLY)
        library.files += 1

    def pread(self, buffer: torch.Tensor, size: int, offset: int) -> SimpleNamespace:
        assert buffer.dtype == torch.uint8
        assert buffer.numel() == size
        assert size % PAGE == offset % PAGE == 0  # else GPUDirect reads through the host
        library, number = self.library, self.library.reads
        library.reads += 1
        library.under_way += 1

        def get() -> int:
            library.under_way -= 1
            return library.spoil(number, buffer, os.preadv(self.descriptor, [buffer.numpy()], offset))

        return SimpleNamespace(get=get)

    def close(self) -> None:
        os.close(self.descriptor)
        self.library.files -= 1


@pytest.fixture
def library(monkeypatch) -> Library:
    monkeypatch.setattr(device_panels, "PANEL_BYTES", 1)  # a panel is one chunk
    monkeypatch.setattr(device_panels, "replay_device", lambda *ignored: torch.device("cpu"))
    monkeypatch.setenv("LMCLEANER_GPUDIRECT", "1")
    return Library(monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return record(
        tmp_path_factory.mktemp("run") / "log", TASK, epochs(48, 8, 8), OPTIMIZERS["adamw"], dtype="fp16", capacity=10
    )


@pytest.mark.parametrize("options", [{}, {"hessian_mode": "replay", "K": 3}, {"counterfactual": "skip"}])
@pytest.mark.parametrize(("optimizer", "dtype", "panels"), [("adamw", "fp32", 4), ("momentum", "int8", 1)])
def test_the_numbers_are_the_same(optimizer, dtype, panels, options, recorded, library, monkeypatch):
    run = recorded(TASK, epochs(48, 8, 8), OPTIMIZERS[optimizer], dtype=dtype, capacity=10)
    arguments = {"data": TASK.data, "loss_fn": TASK.loss_fn, **options}
    monkeypatch.delenv("LMCLEANER_GPUDIRECT")
    expected = lmc.compute_correction(run.model, run.path, FORGET, **arguments)
    assert library.reads == 0
    monkeypatch.setenv("LMCLEANER_GPUDIRECT", "1")
    found = lmc.compute_correction(run.model, run.path, FORGET, **arguments)
    assert torch.equal(found, expected)
    assert library.reads >= 3 * panels
    assert library.under_way == library.files == 0


def test_several_requests(run, library, monkeypatch):
    requests = [[3], [17, 5]]
    found = lmc.deviations(run.model, run.path, requests, counterfactual="skip")
    assert library.reads
    monkeypatch.delenv("LMCLEANER_GPUDIRECT")
    assert torch.equal(found, lmc.deviations(run.model, run.path, requests, counterfactual="skip"))


def logged(run, step: int, part: str) -> bytes:
    return getattr(run.log().window([step], "gradient")[0], part).view(torch.uint8).numpy().tobytes()


def refused(run, library: Library, error: type[Exception]) -> pytest.ExceptionInfo:
    """The error of a request that reads what the library spoils. Nothing has changed, and nothing is under way any more."""
    before = flat(run.model)
    with pytest.raises(error) as caught:
        lmc.unlearn(run.model, run.path, FORGET, counterfactual="skip", **run.options)
    assert torch.equal(flat(run.model), before)
    assert library.under_way == library.files == 0
    return caught


@pytest.mark.parametrize("at", [0, 700_001, -1])
@pytest.mark.parametrize("step", [0, 5])
def test_a_bit_that_flips_on_the_way(step, at, run, library):
    """The file is sound, and so is its mapping: only what arrived tells. The last byte is padding, which the checksums cover too."""
    steps, chunks = run.log().steps, []
    for panel in range(2):
        library.reads, flipped = 0, panel * len(steps) + step

        def spoil(number: int, buffer: torch.Tensor, got: int, flipped: int = flipped) -> int:
            if number == flipped:
                buffer[at % buffer.numel()] ^= 16
            return got

        library.spoil = spoil
        error = refused(run, library, LogCorruptError).value
        assert error.step == steps[step]
        chunks.append(error.chunk)
    assert chunks[1] == chunks[0] + 1


@pytest.mark.parametrize(("part", "at"), [("payload", 1_100_000), ("scales", 3_000)])
def test_damage_on_the_disk_has_the_same_name_as_without(part, at, run, library, monkeypatch):
    file = run.path / "steps.lmc"
    place = file.read_bytes().index(logged(run, 5, part)) + at
    with open(file, "r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([byte ^ 1]))
    try:
        direct = refused(run, library, LogCorruptError).value
        assert bool(library.reads) == (part == "payload")  # the block exponents come first, and not this way
        monkeypatch.setenv("LMCLEANER_GPUDIRECT", "0")
        mapped = refused(run, library, LogCorruptError).value
    finally:
        with open(file, "r+b") as opened:
            opened.seek(place)
            opened.write(bytes([byte]))
    assert (direct.step, direct.chunk, str(direct)) == (mapped.step, mapped.chunk, str(mapped))
    assert direct.step == 5


def test_a_short_read(run, library):
    library.spoil = lambda number, buffer, got: got - PAGE if number == 3 else got
    assert "kvikio read" in str(refused(run, library, LogTruncatedError).value)


def test_a_read_that_fails(run, library):
    def fail(number: int, buffer: torch.Tensor, got: int) -> int:
        if number == 3:
            raise RuntimeError("the library's own")
        return got

    library.spoil = fail
    assert "own" in str(refused(run, library, RuntimeError).value)


def test_a_file_that_is_cut_meanwhile(recorded, library):
    run = recorded(TASK, epochs(48, 8, 8), OPTIMIZERS["adamw"], dtype="fp16", capacity=10)

    def cut(number: int, buffer: torch.Tensor, got: int) -> int:
        os.truncate(run.path / "steps.lmc", os.path.getsize(run.path / "steps.lmc") - PAGE)
        raise RuntimeError("end of file")

    library.spoil = cut
    assert "was cut" in str(refused(run, library, LogTruncatedError).value)


def test_what_is_missing_is_said(library, monkeypatch):
    assert gpu_direct.missing() is None
    assert lmc.show_config(as_dict=True)["gpudirect"] == "available"
    Library(monkeypatch, driver=False)
    assert "no GPUDirect Storage driver" in lmc.show_config(as_dict=True)["gpudirect"]
    Library(monkeypatch, driver=False).mode = 1  # reading through host memory was asked for
    assert gpu_direct.missing() is None
    monkeypatch.setitem(sys.modules, "kvikio", None)
    with pytest.raises(BackendUnavailableError, match="kvikio is not installed: pip install kvikio-cu13"):
        device_panels.DevicePanels(torch.device("cpu"))
    monkeypatch.setenv("LMCLEANER_GPUDIRECT", "yes")
    with pytest.raises(ConfigurationError, match="found 'yes'"):
        device_panels.DevicePanels(torch.device("cpu"))
    for off in ("", "0"):
        monkeypatch.setenv("LMCLEANER_GPUDIRECT", off)
        assert device_panels.DevicePanels(torch.device("cpu")).direct is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(run, tmp_path: Path, monkeypatch):
    """kvikio itself, through host memory where there is no driver: the same bits, and damage on the disk is noticed."""
    try:
        import kvikio
        import kvikio.defaults
    except Exception as error:  # it loads libraries
        pytest.skip(f"kvikio: {error}")
    monkeypatch.setattr(device_panels, "PANEL_BYTES", 1)
    model = copy.deepcopy(run.model).cuda()
    arguments = {"counterfactual": "skip", "backend": "cuda", **run.options}
    expected = lmc.compute_correction(model, run.path, FORGET, **arguments)
    mode = kvikio.CompatMode.AUTO if gpu_direct.missing() is None else kvikio.CompatMode.ON
    reads = []
    original = gpu_direct.PanelRead.arrive
    monkeypatch.setattr(gpu_direct.PanelRead, "arrive", lambda self: (reads.append(self.count), original(self)))
    monkeypatch.setenv("LMCLEANER_GPUDIRECT", "1")
    with kvikio.defaults.set({"compat_mode": mode}):
        assert torch.equal(lmc.compute_correction(model, run.path, FORGET, **arguments), expected)
        assert reads == [8, 8]
        data = bytearray((run.path / "steps.lmc").read_bytes())
        data[data.index(logged(run, 5, "payload")) + 1_100_000] ^= 1
        damaged = shutil.copytree(run.path, tmp_path / "log")
        (damaged / "steps.lmc").write_bytes(data)
        with pytest.raises(LogCorruptError) as caught:
            lmc.compute_correction(model, damaged, FORGET, **arguments)
        assert caught.value.step == 5
