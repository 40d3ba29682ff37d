"""Steps come back as they were written, in order, and the oldest leave first."""

import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest

from lmcleaner_ext._native import Ring
from lmcleaner_ext.errors import LogCorruptError, LogWriteError, SlotOverwrittenError
from support.ring_tools import PAGE, SECTIONS, append, contents, create, read_all, view


@pytest.mark.parametrize("durability", ["step", "group", "process"])
def test_steps_come_back(tmp_path, durability):
    path = tmp_path / "ring"
    uuid, fingerprint = bytes(range(16)), bytes(range(32))
    writer = create(path, durability=durability, manifest=b"m" * 5000, run_uuid=uuid, fingerprint=fingerprint)
    for step in range(3):
        append(writer, step)
    reader = Ring.open_read(str(path))
    assert read_all(reader) == [0, 1, 2]
    assert reader.manifest() == b"m" * 5000
    assert (reader.run_uuid, reader.fingerprint) == (uuid, fingerprint)
    assert (reader.section_bytes, reader.capacity, reader.slots) == (SECTIONS, 4, 6)
    assert (reader.durability, reader.version, reader.intact_superblocks) == (durability, "1.0", 2)
    assert os.path.getsize(path) == reader.file_bytes


def test_the_oldest_steps_leave_first(tmp_path):
    writer, reader = create(tmp_path / "ring"), Ring.open_read(str(tmp_path / "ring"))
    for step in range(50):
        append(writer, 3 * step)
        assert read_all(reader) == [3 * s for s in range(max(0, step - 3), step + 1)]


@pytest.mark.parametrize("threads", [1, 3])
def test_sections_of_several_chunks(tmp_path, threads):
    sizes = [2**20, 3 * 2**20 + 17, 0]
    writer = create(tmp_path / "ring", section_bytes=sizes)
    for step in range(8):
        append(writer, step, sizes=sizes, threads=threads)
    reader = Ring.open_read(str(tmp_path / "ring"))
    assert read_all(reader, sizes) == [4, 5, 6, 7]
    step, slot, generation, _ = reader.refresh()[0]
    reader.advise(slot, 1, 5000, 2**21)
    reader.verify([slot], [generation], 1, 2**20 + 1, 2**20 + 2)


def test_copies_are_verified_in_the_place_of_the_file(tmp_path):
    """What was read by other means than the mapping, from where `place` says, chunk by chunk."""
    chunk, sizes = 2**20, [300, 3 * 2**20 + 17]
    writer = create(tmp_path / "ring", section_bytes=sizes)
    slots = [append(writer, step, sizes=sizes) for step in range(2)]
    reader = Ring.open_read(str(tmp_path / "ring"))
    generations = [generation for _, _, generation, _ in reader.refresh()]
    for begin, end in ((0, chunk), (chunk, 3 * chunk), (2 * chunk, sizes[1])):
        copies = []
        for step, slot in enumerate(slots):
            descriptor, offset = reader.place(slot, 1)
            assert offset % PAGE == 0
            data = os.pread(descriptor, -(-(end - begin) // PAGE) * PAGE, offset + begin)
            np.testing.assert_array_equal(
                np.frombuffer(data, np.uint8)[: end - begin], contents(step, sizes)[1][begin:end]
            )
            copies.append(np.frombuffer(bytearray(data), np.uint8))
        addresses = [x.ctypes.data for x in copies]
        reader.verify(slots, generations, 1, begin, end, copies=addresses)
        for at in (0, len(copies[1]) // 2, len(copies[1]) - 1):
            copies[1][at] ^= 1
            with pytest.raises(LogCorruptError) as caught:
                reader.verify(slots, generations, 1, begin, end, copies=addresses)
            assert caught.value.step == 1
            assert caught.value.chunk == 2 + (begin + at) // chunk  # after the metadata and section 0
            copies[1][at] ^= 1
            reader.verify(slots, generations, 1, begin, end, copies=addresses)
    for begin, end, count in ((PAGE, chunk, 2), (0, chunk - PAGE, 2), (0, sizes[1] - PAGE - 17, 2), (0, chunk, 1)):
        with pytest.raises(ValueError, match="copies"):
            reader.verify(slots, generations, 1, begin, end, copies=addresses[:count])
    for step in range(2, 8):
        append(writer, step, sizes=sizes)
    with pytest.raises(SlotOverwrittenError):
        reader.verify(slots, generations, 1, 0, chunk, copies=addresses)


def test_a_section_may_be_shorter_than_its_room(tmp_path):
    writer = create(tmp_path / "ring")
    for step, size in enumerate([5000, 10, 0, 4096, 5000, 1, 2]):
        part = contents(step, [size])[0]
        writer.append(step, 0, b"", [(0, 0), (part.ctypes.data, part.nbytes)])
    reader = Ring.open_read(str(tmp_path / "ring"))
    for (step, slot, generation, _), size in zip(reader.refresh(), [4096, 5000, 1, 2], strict=True):
        reader.verify([slot], [generation], 1, 0, 5000)
        np.testing.assert_array_equal(view(reader, slot, generation, 1), contents(step, [size])[0])


def test_views_can_be_written_without_reaching_the_file(tmp_path):
    writer = create(tmp_path / "ring")
    append(writer, 0)
    reader = Ring.open_read(str(tmp_path / "ring"))
    _, slot, generation, _ = reader.refresh()[0]
    view(reader, slot, generation, 0)[:] = 0
    assert read_all(Ring.open_read(str(tmp_path / "ring"))) == [0]


def test_an_overwritten_step_is_named(tmp_path):
    writer = create(tmp_path / "ring")
    append(writer, 10)
    reader = Ring.open_read(str(tmp_path / "ring"))
    _, slot, generation, _ = reader.refresh()[0]
    for step in range(11, 17):
        reader.check([slot], [generation])
        append(writer, step)
    for use in (
        lambda: reader.check([slot], [generation]),
        lambda: reader.section(slot, generation, 0),
        lambda: reader.metadata(slot, generation),
        lambda: reader.verify([slot], [generation], 0, 0, 300),
    ):
        with pytest.raises(SlotOverwrittenError) as caught:
            use()
        assert caught.value.step == 10


@pytest.mark.parametrize("survivors", [0, 2, 4])
def test_rewind_starts_a_new_lineage(tmp_path, survivors):
    path = tmp_path / "ring"
    writer = create(path)
    for step in range(8):
        append(writer, step)
    writer.close()
    writer = Ring.open_write(str(path))
    assert writer.dropped == []
    assert writer.rewind(4 + survivors) == 1
    assert writer.last_step == (3 + survivors if survivors else -1)
    reader = Ring.open_read(str(path))
    assert read_all(reader) == list(range(4, 4 + survivors))
    for step in range(4 + survivors, 20):
        append(writer, step, lineage=1)
        assert read_all(reader) == list(range(max(4, step - 3), step + 1))
        assert {lineage for s, _, _, lineage in reader.refresh() if s >= 4 + survivors} == {1}
    with pytest.raises(ValueError, match="abandoned"):
        append(writer, 20, lineage=0)


def test_a_live_writer_can_rewind_within_the_spare_slots(tmp_path):
    writer, reader = create(tmp_path / "ring"), Ring.open_read(str(tmp_path / "ring"))
    for step in range(12):
        append(writer, step)
    writer.rewind(3)  # before the whole window: steps 6 and 7, beyond the capacity but still committed, must go too
    assert reader.refresh() == []
    append(writer, 3, lineage=1)
    assert read_all(reader) == [3]


def bytes_read():
    """By this process so far, through system calls."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def test_opening_reads_headers_only(tmp_path):
    """One page per slot is read and no page of the mapping is touched, though the log is many times as large."""
    path = tmp_path / "ring"
    writer = create(path, section_bytes=[5000], capacity=1000, durability="process", metadata_bytes=5000)
    for step in range(1010):
        append(writer, step, sizes=[5000])
    before = bytes_read()
    ring = Ring.open_read(str(path))
    assert [entry[0] for entry in ring.refresh()] == list(range(10, 1010))
    read = bytes_read() - before
    mapping = re.search(rf" {re.escape(str(path))}\n(.*\n)*?Rss: +(\d+) kB", Path("/proc/self/smaps").read_text())
    assert read < (writer.slots + 8) * PAGE
    assert mapping
    assert mapping[2] == "0"


def test_durable_step(tmp_path):
    for durability, expected in [("step", [0, 1, 2, 3]), ("group", [-1, 1, 1, 3]), ("process", [-1, -1, -1, -1])]:
        writer = create(tmp_path / durability, durability=durability)
        seen = []
        for step in range(4):
            append(writer, step)
            seen.append(writer.durable_step)
        assert seen == expected
        writer.sync()
        assert writer.durable_step == 3


def test_arguments(tmp_path):
    for wrong, message in (
        ({"capacity": 0}, "capacity"),
        ({"spare": 0}, "spare"),
        ({"spare": 1, "group": 2}, "group"),
        ({"section_bytes": []}, "sections"),
        ({"section_bytes": [1] * 9}, "sections"),
        ({"section_bytes": [2**60]}, "section"),
        ({"capacity": 2**63}, "larger"),
        ({"durability": "maybe"}, "durability"),
        ({"run_uuid": b"short"}, "run_uuid"),
    ):
        with pytest.raises(ValueError, match=message):
            create(tmp_path / "wrong", **wrong)
        assert not (tmp_path / "wrong").exists()
    writer = create(tmp_path / "ring")
    append(writer, 5)
    for step in (5, 4):
        with pytest.raises(ValueError, match="rewind first"):
            append(writer, step)
    with pytest.raises(ValueError, match="section 1"):
        append(writer, 6, sizes=[300, 5001])
    with pytest.raises(ValueError, match="metadata"):
        writer.append(6, 0, b"x" * 4097, [(0, 0), (0, 0)])
    append(writer, 6)  # a refused step leaves the writer usable
    writer.close()
    writer.close()
    with pytest.raises(LogWriteError, match="closed"):
        append(writer, 7)
    with pytest.raises(FileExistsError):
        create(tmp_path / "ring")
    with pytest.raises(FileNotFoundError):
        Ring.open_read(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_only_the_owner_can_read(tmp_path, umask):
    previous = os.umask(umask)
    try:
        writer = create(tmp_path / "ring")
    finally:
        os.umask(previous)
    append(writer, 0)
    assert stat.S_IMODE(os.stat(tmp_path / "ring").st_mode) == 0o600
