"""The index of uses against a plain dictionary, through rewinds, torn ends, flipped bits and lost segments."""

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import LogCorruptError, UnknownSampleError
from lmcleaner_ext.log import segments, uses
from lmcleaner_ext.log.uses import BATCH, SAMPLE, UseIndex
from support.cases import OPTIMIZERS, epochs, mlp

IDS = [0, 1, 2, -5, 2**63 - 1, -(2**63), "0", "a", "", "ä" * 100]


@pytest.fixture
def small(monkeypatch):
    """Segments and blocks of a few records, so that a small index has many."""
    monkeypatch.setattr(uses, "SEGMENT", 16)
    monkeypatch.setattr(segments, "BLOCK", 4)


def expected(steps, identity, batches=False):
    used = ((t, [batch] if batches else ids) for t, (ids, batch) in enumerate(steps))
    return [t for t, ids in used if any(type(i) is type(identity) and i == identity for i in ids)]


def check(index, steps):
    found, newest = index.find(IDS, SAMPLE)
    assert found == {i: expected(steps, i) for i in IDS}
    assert newest == len(steps) - 1
    assert index.find(IDS, BATCH)[0] == {i: expected(steps, i, batches=True) for i in IDS}


@pytest.mark.usefixtures("small")
@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(st.tuples(st.lists(st.sampled_from(IDS), max_size=12), st.sampled_from(IDS)), st.integers(0, 60)),
        max_size=60,
    )
)
def test_any_history(tmp_path_factory, history):
    """Steps are appended, or (a number) the run goes back to that step; a reader opened before looks again."""
    folder = tmp_path_factory.mktemp("uses")
    index, reader, steps = UseIndex(folder / "uses.bin"), UseIndex(folder / "uses.bin"), []
    for event in history:
        if isinstance(event, int):
            if event < len(steps):
                del steps[event:]
                index.rewind(event)
        else:
            index.append(len(steps), *event)
            steps.append(event)
        if random.Random(len(steps)).random() < 0.2:
            index = UseIndex(folder / "uses.bin")  # the writer starts anew
    check(reader, steps)
    check(index, steps)


def filled(folder, count=40):
    generator = random.Random(0)
    steps = [([generator.choice(IDS) for _ in range(7)], generator.choice(IDS)) for _ in range(count)]
    index = UseIndex(folder / "uses.bin")
    for t, step in enumerate(steps):
        index.append(t, *step)
    return index, steps


@pytest.mark.usefixtures("small")
def test_segments_are_only_for_speed(tmp_path):
    """Any byte of any segment flipped, a segment lost, half of one: the answers stay the same."""
    index, steps = filled(tmp_path)
    files = sorted((tmp_path / "uses").iterdir())
    assert len(files) == 20
    assert index.segments()[-1].end == 320
    generator = random.Random(1)
    for _ in range(100):
        path = generator.choice(files)
        data = bytearray(path.read_bytes())
        whole = bytes(data)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        check(UseIndex(tmp_path / "uses.bin"), steps)
        path.write_bytes(whole)
    files[3].write_bytes(files[3].read_bytes()[:-30])
    files[10].unlink()
    check(UseIndex(tmp_path / "uses.bin"), steps)


def test_every_flipped_bit_of_a_record_is_noticed(tmp_path):
    UseIndex(tmp_path / "uses.bin").append(3, [7], "b")
    whole = (tmp_path / "uses.bin").read_bytes()
    assert len(whole) == 48
    for bit in range(8 * 24):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        (tmp_path / "uses.bin").write_bytes(data)
        assert len(UseIndex(tmp_path / "uses.bin").read()) == 0


SCHEDULE = epochs(48, 8, 20)
TASK = mlp()


@pytest.mark.usefixtures("small")
def test_an_unknown_id_is_refused_without_reading_everything(recorded, monkeypatch):
    run = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"])
    log, original, begins = run.log(), UseIndex.read, []
    monkeypatch.setattr(UseIndex, "read", lambda index, begin=0: (begins.append(begin), original(index, begin))[1])
    for refused in (lambda: log.find([10**6]), lambda: lmc.scrub(run.path, [10**6])):
        with pytest.raises(UnknownSampleError, match="1000000"):
            refused()
    assert begins
    assert min(begins) >= 9 * len(SCHEDULE.batches) - 16  # only what is not in a segment yet


@pytest.mark.parametrize("damage", ["cut", "zeros", "gone"])
def test_a_torn_end_is_read_from_the_ring(recorded, damage):
    """After a power cut the newest uses may be missing while their steps are there: no use is overlooked, and resuming mends it."""
    run = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"])
    path = run.path / "uses.bin"
    data = path.read_bytes()
    torn = {"cut": data[: 9 * 24 * 7 + 50], "zeros": data[: 9 * 24 * 7 + 50] + bytes(len(data) // 3), "gone": b""}[
        damage
    ]
    path.write_bytes(torn)
    wanted = {i: SCHEDULE.uses([i]) for i in range(48)}
    assert run.log().find(range(48)) == wanted
    lmc.TrainingLogger(run.path, run.model, run.optimizer, resume=True).close()
    assert path.read_bytes() == data
    assert run.log().find(range(48)) == wanted


def test_uses_that_nobody_knows_any_more_are_a_named_error(recorded):
    """The index is damaged at a step that has left the ring: an answer might be incomplete, so there is none."""
    run = recorded(TASK, SCHEDULE, OPTIMIZERS["adamw"], capacity=6, anchor_every=3)
    with open(run.path / "uses.bin", "r+b") as file:
        file.seek(9 * 24 * 5 + 3)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(LogCorruptError, match="not known"):
        run.log().find([SCHEDULE.batches[19][0]])
    with pytest.raises(LogCorruptError, match="Start a new log"):
        lmc.TrainingLogger(run.path, run.model, run.optimizer, resume=True)
