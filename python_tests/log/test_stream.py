"""A streamed window against the mapped one, bit by bit, and what it does about damage and overwriting."""

import mmap
import os

import pytest
import torch

from lmcleaner_ext.errors import LogCorruptError, SlotOverwrittenError
from support.cases import OPTIMIZERS, epochs, mlp

MAP_LOCKED = 0x2000  # Linux; the module mmap does not name it
TASK = mlp(torch.float32, hidden=25_000)  # 375,004 parameters: several panels in every format, the last one short


def joined(window):
    """Every vector in full from the panels, each copied before the next one is taken."""
    payloads = [[] for _ in window]
    ends = [0]
    for begin, end, vectors in window.panels():
        assert begin == ends[-1]
        ends.append(end)
        for parts, vector, mapped in zip(payloads, vectors, window.vectors, strict=True):
            parts.append(vector.payload.clone())
            assert torch.equal(vector.scales, mapped.narrow(begin, end).scales)
    return [torch.cat(parts) for parts in payloads]


@pytest.mark.parametrize(("dtype", "vectors"), [("fp16", "both"), ("bf16", "gradient"), ("fp32", "gradient")])
def test_the_same_vectors(recorded, dtype, vectors):
    log = recorded(TASK, epochs(48, 8, 5), OPTIMIZERS["adamw"], dtype=dtype, vectors=vectors, capacity=8).log()
    for vector in log.vectors:
        window = log.window([3, 0, 4, 1], vector)
        for streamed, mapped in zip(joined(window), window.vectors, strict=True):
            assert torch.equal(streamed.view(torch.uint8), mapped.payload.view(torch.uint8))
    assert list(log.window([], log.vectors[0]).panels()) == []


def test_a_stream_may_be_left_early(recorded):
    log = recorded(TASK, epochs(48, 8, 3), OPTIMIZERS["adamw"], dtype="fp32", capacity=4).log()
    for _ in range(20):
        for _, _, vectors in log.window([0, 1, 2], "gradient").panels():
            assert vectors[0].payload.isfinite().all()
            break


def test_damage_is_named_before_a_number_is_used(recorded):
    run = recorded(TASK, epochs(48, 8, 4), OPTIMIZERS["adamw"], dtype="fp32", capacity=4)
    log = run.log()
    last = log.window([2], "gradient")[0].payload[-20:].numpy().tobytes()
    data = bytearray((run.path / "steps.lmc").read_bytes())
    data[bytes(data).index(last) + 5] ^= 1
    (run.path / "steps.lmc").write_bytes(data)
    log = run.log()
    panels = log.window([0, 1, 2, 3], "gradient").panels()
    next(panels)
    with pytest.raises(LogCorruptError) as caught:
        next(panels)
    assert caught.value.step == 2
    assert len(list(log.window([0, 1, 3], "gradient").panels())) == 2


def test_a_step_that_the_trainer_overwrites(recorded):
    run = recorded(
        TASK, epochs(48, 8, 3), OPTIMIZERS["adamw"], dtype="fp32", capacity=2, anchor_every=1, keep_open=True
    )
    log = run.logger.open()
    window = log.window(list(log.steps), "gradient")
    for step in range(4):
        run.logger.batch([step])
        TASK.losses(run.model, TASK.data([step])).mean().backward()
        run.optimizer.step()
    run.logger.close()
    with pytest.raises(SlotOverwrittenError):
        list(window.panels())


def test_resident_follows_the_page_cache(recorded):
    small = mlp(torch.float32, hidden=2000)  # what a process may lock is little
    run = recorded(small, epochs(48, 8, 4), OPTIMIZERS["adamw"], dtype="fp32")
    ring = run.path / "steps.lmc"
    descriptor = os.open(ring, os.O_RDONLY)
    with mmap.mmap(descriptor, 0, mmap.MAP_SHARED | MAP_LOCKED, mmap.PROT_READ):  # the system may not take a page back
        assert run.log().window([0, 1, 2], "gradient").resident() == 1.0
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    assert run.log().window([0, 1, 2], "gradient").resident() < 0.2
