"""Buffers whose contents arrive late, as those of a GPU do: nothing is written before, nor filled anew.

Without a GPU the copies are put off until somebody waits for them. The tests marked cuda put them off with work on the device.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lmcleaner_ext as lmc
from lmcleaner_ext.recorder.buffers import PAGE, BufferPool, HostCopies

STEPS = 7  # more than there are buffers
POISON = 0xA5
ON_A_GPU = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GPU = pytest.param("cuda", marks=ON_A_GPU)


def grid(*shape: int, largest: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Multiples of 2^-8: plain SGD with lr 1/2 on them is exact, so that every device computes the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest, shape, generator=generator).to(dtype) / 256


class Run:
    """Plain SGD on made-up gradients."""

    def __init__(self, folder: Path, device: str, vectors: str, dtype: str, arithmetic: torch.dtype = torch.float32):
        self.folder, self.device = folder, device
        self.model = nn.Sequential(nn.Linear(120, 90), nn.Linear(90, 3)).to(arithmetic)
        for k, p in enumerate(self.model.parameters()):
            p.data = grid(*p.shape, largest=512, seed=k, dtype=arithmetic)
        self.model.to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
        self.log = lmc.TrainingLogger(
            folder, self.model, self.optimizer, vectors=vectors, dtype=dtype, capacity=20, anchor_every=3,
            durability="process",
        )  # fmt: skip

    def set_gradients(self, t: int) -> None:
        for k, p in enumerate(self.model.parameters()):
            p.grad = grid(*p.shape, largest=64, seed=100 * (t + 1) + k, dtype=p.dtype).to(self.device)

    def step(self, t: int) -> None:
        self.log.batch([t, t + 1])
        self.set_gradients(t)
        self.optimizer.step()

    def train(self) -> lmc.StepLog:
        with self.log:
            for t in range(STEPS):
                self.step(t)
        return lmc.StepLog.open(self.folder)


def same(found: lmc.StepLog, expected: lmc.StepLog) -> None:
    """Every vector and anchor bit for bit, and every checksum."""
    assert found.steps == expected.steps == range(STEPS)
    for t in range(STEPS):
        for name in expected.manifest["vectors"]:
            assert torch.equal(getattr(found[t], name)(), getattr(expected[t], name)()), (t, name)
    anchors = list(zip(found.anchors(), expected.anchors(), strict=True))
    assert len(anchors) >= 3
    for a, b in anchors:
        assert a.step == b.step
        assert torch.equal(a.tensor("theta"), b.tensor("theta"))
    assert found.head() == expected.head()


def poisoned(monkeypatch: pytest.MonkeyPatch) -> list:
    """Every buffer is overwritten when it is taken; returns those taken."""
    original, taken = BufferPool.take, []

    def take(pool: BufferPool, pinned: bool = False):
        buffer = original(pool, pinned)
        assert not buffer.arriving
        for payload, scales in buffer.vectors:
            payload.view(torch.uint8).fill_(POISON)
            scales.fill_(POISON)
        taken.append(buffer)
        return buffer

    monkeypatch.setattr(BufferPool, "take", take)
    return taken


class PutOff:
    """A copy that happens when somebody waits for it."""

    def __init__(self, source, target):
        self.source, self.target = [x.clone() for x in source], target

    def synchronize(self) -> None:
        for there, here in zip(self.target, self.source, strict=True):
            there.copy_(here)


@pytest.fixture
def put_off(monkeypatch):
    started = []

    def start(self, buffer, source, target):
        assert all(copy.target[0] is not target[0] for copy in buffer.arriving)  # else two copies race for one place
        buffer.arriving.append(PutOff(source, target))
        started.append(buffer)

    monkeypatch.setattr(HostCopies, "start", start)
    return started


@pytest.mark.parametrize("vectors", ["gradient", "update", "both"])
def test_the_writer_waits_for_copies(tmp_path, monkeypatch, request, vectors):
    expected = Run(tmp_path / "at once", "cpu", vectors, "fp16", torch.float64).train()
    started = request.getfixturevalue("put_off")
    poisoned(monkeypatch)
    found = Run(tmp_path / "late", "cpu", vectors, "fp16", torch.float64).train()
    assert len(started) == STEPS * len(expected.manifest["vectors"])
    same(found, expected)


def test_a_step_that_failed_leaves_no_copy_behind(tmp_path, monkeypatch, request):
    """The optimizer fails between the hooks, when the gradient is on its way: the buffer is the next step's."""
    expected = Run(tmp_path / "smooth", "cpu", "both", "fp16", torch.float64).train()
    request.getfixturevalue("put_off")
    run = Run(tmp_path / "failing", "cpu", "both", "fp16", torch.float64)

    def fails() -> float:
        raise FloatingPointError("out of range")

    with run.log:
        for t in range(STEPS):
            run.set_gradients(50 + t)
            with pytest.raises(FloatingPointError):
                run.optimizer.step(fails)
            run.log._forget_pending()
            run.step(t)
    same(lmc.StepLog.open(run.folder), expected)


@pytest.mark.parametrize("pinned", [False, pytest.param(True, marks=ON_A_GPU)])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_sections_begin_at_pages(dtype, pinned):
    """So that they can be written past the page cache."""
    size = 5003
    buffer = BufferPool(1, size, dtype, 2).take(pinned)
    places = []
    for payload, scales in buffer.vectors:
        assert payload.shape == (size,)
        assert payload.is_pinned() == pinned
        for part in (scales, payload):
            if part.numel():
                assert part.data_ptr() % PAGE == 0
                places.append((part.data_ptr(), part.data_ptr() + part.nbytes))
            part.fill_(1)
    places.sort()
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(places))


# -- on a GPU ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_copies(monkeypatch):
    """Work on the copy stream before each copy; the copies' events as `start` left them."""
    original, events = HostCopies.start, []

    def start(self, buffer, source, target):
        stream = self._streams.setdefault(source[0].device, torch.cuda.Stream(source[0].device))
        with torch.cuda.stream(stream):
            torch.cuda._sleep(60_000_000)  # tens of milliseconds
        original(self, buffer, source, target)
        events.append((buffer.arriving[-1], buffer.arriving[-1].query()))

    monkeypatch.setattr(HostCopies, "start", start)
    return events


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_the_log_of_a_gpu_is_the_log_of_the_cpu(tmp_path, dtype, device):
    same(Run(tmp_path / device, device, "both", dtype).train(), Run(tmp_path / "cpu", "cpu", "both", dtype).train())


@pytest.mark.parametrize("device", [GPU])
def test_the_writer_waits_for_the_device(tmp_path, monkeypatch, slow_copies, device):
    """Copies that are slower than the training: asynchronous, into pinned memory, and complete when they are written."""
    taken = poisoned(monkeypatch)
    found = Run(tmp_path / device, device, "both", "fp16").train()
    assert all(payload.is_pinned() for buffer in taken for payload, _ in buffer.vectors)
    assert [arrived for _, arrived in slow_copies] == [False] * 2 * STEPS  # `start` came back before its copy was done
    monkeypatch.undo()
    same(found, Run(tmp_path / "cpu", "cpu", "both", "fp16").train())


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("vectors", ["gradient", "both"])
def test_training_on_another_stream(tmp_path, monkeypatch, vectors, device):
    """Everything is read after what the training's own stream was given before, however far behind that stream is.

    The last update may still be waiting there when the log is closed, which happens on the default stream.
    """
    poisoned(monkeypatch)
    run = Run(tmp_path / device, device, vectors, "fp16")
    torch.cuda.synchronize()
    with run.log:
        run.optimizer.register_step_pre_hook(lambda *ignored: torch.cuda._sleep(60_000_000))  # after the log's own hook
        with torch.cuda.stream(torch.cuda.Stream()):
            for t in range(STEPS):
                run.step(t)
    monkeypatch.undo()
    same(lmc.StepLog.open(run.folder), Run(tmp_path / "cpu", "cpu", vectors, "fp16").train())
