"""What a power cut may leave of the last group of steps, made by hand, and what resuming makes of it."""

from pathlib import Path

import pytest

from lmcleaner_ext._native import Ring
from lmcleaner_ext.errors import LogCorruptError
from support.ring_tools import PAGE, append, create, read_all


def grouped(path: Path, steps: int) -> Ring:
    """A ring of 8 + 4 slots, synced every 4 steps, with steps 0 ... steps - 1; a reader of it."""
    writer = create(path, capacity=8, spare=4, group=4)
    for step in range(steps):
        append(writer, step)
    writer.close()
    return Ring.open_read(str(path))


def slot_offset(ring: Ring, step: int) -> int:
    """Where the slot of a step begins; steps fill the slots in turn."""
    return ring.file_bytes - ring.slot_bytes * (ring.slots - step % ring.slots)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("lost", [6, 7, 8, 9])
def test_contents_lost_under_their_header(tmp_path, lost):
    path = tmp_path / "ring"
    reader = grouped(path, 10)
    overwrite(path, slot_offset(reader, lost) + reader.slot_bytes - 2 * PAGE, bytes(512))  # a sector of section 1
    with pytest.raises(LogCorruptError) as caught:
        read_all(reader)
    assert caught.value.step == lost
    writer = Ring.open_write(str(path))
    assert writer.dropped == list(range(lost, 10)), "what follows a lost step is dropped too: a log has no holes"
    assert read_all(reader) == list(range(max(0, lost - 8), lost)), (
        "older steps, still there, are listed in their place"
    )
    for step in range(lost, 30):
        append(writer, step)
    assert read_all(reader) == list(range(22, 30))


@pytest.mark.parametrize("lost", [7, 8, 9])
def test_headers_lost_over_their_contents(tmp_path, lost):
    path = tmp_path / "ring"
    reader = grouped(path, 10)
    overwrite(path, slot_offset(reader, lost), bytes(PAGE))
    writer = Ring.open_write(str(path))
    assert writer.dropped == list(range(lost + 1, 10))
    assert read_all(reader)[-1] == lost - 1
    append(writer, lost)
    assert read_all(reader)[-1] == lost


def test_a_whole_group_lost(tmp_path):
    """All headers of the last group are the old ones, over contents that are half new: nobody is shown those steps."""
    path = tmp_path / "ring"
    reader = grouped(path, 12)
    old = path.read_bytes()
    writer = Ring.open_write(str(path))
    for step in range(12, 16):
        append(writer, step)
    writer.close()
    for step in range(12, 16):
        start = slot_offset(reader, step)
        overwrite(path, start, old[start : start + PAGE])
    assert read_all(reader) == list(range(4, 12))
    writer = Ring.open_write(str(path))
    assert writer.dropped == []
    assert read_all(reader) == list(range(4, 12))
    assert writer.rewind(10) == 1
    assert read_all(reader) == list(range(4, 10))
