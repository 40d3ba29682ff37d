"""What the disk, the system and other people do to a ring: each ends in the error that says so."""

import os
import resource
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmcleaner_ext._native import Ring
from lmcleaner_ext.errors import (
    InsecurePermissionsError,
    LMCleanerError,
    LogCorruptError,
    LogFormatError,
    LogNoSpaceError,
    LogTruncatedError,
    LogVersionError,
    LogWriteError,
    SlotOverwrittenError,
)
from support.ring_tools import PAGE, append, create, read_all, run_python, view


def filled(path: Path) -> bytes:
    """A ring of 2 + 1 slots with 2 steps; all sections exactly full pages, so that every byte is under a claim."""
    writer = create(path, capacity=2, spare=1, durability="step", section_bytes=[100, 4000], metadata_bytes=PAGE)
    for step in (7, 8):
        append(writer, step, sizes=[100, 4000])
    writer.close()
    return path.read_bytes()


def observe(path: Path) -> object:
    """Everything a reader can learn of the ring."""
    try:
        ring = Ring.open_read(str(path))
        assert read_all(ring, [100, 4000]) == [7, 8], "a step is missing"
        assert ring.intact_superblocks == 2, "a superblock copy is damaged"
        assert ring.damaged_slots() == [], "a slot is damaged"
    except (LMCleanerError, AssertionError) as error:
        return error
    return None


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_noticed(tmp_path, stride):
    """stride 1: every bit of every byte. stride 11, prime to all sizes here: one bit of every 11th byte."""
    path = tmp_path / "ring"
    good = filled(path)
    assert observe(path) is None
    ring = Ring.open_read(str(path))
    first_free = ring.file_bytes - ring.slot_bytes  # the third slot was never written: only its header is under a claim
    assert good[first_free:] == bytes(ring.slot_bytes)
    unnoticed = []
    with open(path, "r+b", buffering=0) as file:
        for offset in range(0, first_free + PAGE, stride):
            for bit in range(8) if stride == 1 else (offset % 8,):
                os.pwrite(file.fileno(), bytes([good[offset] ^ 1 << bit]), offset)
                if observe(path) is None:
                    unnoticed.append((offset, bit))
            os.pwrite(file.fileno(), good[offset : offset + 1], offset)
    assert unnoticed == []
    assert observe(path) is None


def test_damage_stays_in_its_step(tmp_path):
    path = tmp_path / "ring"
    good = filled(path)
    ring = Ring.open_read(str(path))
    slots_offset = ring.file_bytes - 3 * ring.slot_bytes
    # header, table, metadata and section 0 take a page each; section 1 is the last
    spoiled = bytearray(good)
    spoiled[slots_offset + 4 * PAGE + 5] ^= 1
    path.write_bytes(spoiled)
    (_, slot, generation, _), (_, other, other_generation, _) = ring.refresh()
    ring.verify([slot], [generation], 0, 0, 100)
    ring.verify([other], [other_generation], 1, 0, 4000)
    with pytest.raises(LogCorruptError) as caught:
        ring.verify([other, slot], [other_generation, generation], 1, 0, 4000)
    assert (caught.value.step, caught.value.chunk) == (7, 2)


def test_a_step_copied_to_another_slot_is_refused(tmp_path):
    path = tmp_path / "ring"
    good = bytearray(filled(path))
    ring = Ring.open_read(str(path))
    start, stride = ring.file_bytes - 3 * ring.slot_bytes, ring.slot_bytes
    good[start + PAGE : start + stride] = good[start + stride + PAGE : start + 2 * stride]  # all but the header
    path.write_bytes(good)
    (_, slot, generation, _), _ = ring.refresh()
    for use in (lambda: ring.verify([slot], [generation], 0, 0, 100), lambda: ring.metadata(slot, generation)):
        with pytest.raises(LogCorruptError):
            use()
    good[start : start + stride] = good[start + stride : start + 2 * stride]  # header and all
    path.write_bytes(good)
    assert ring.damaged_slots() == [0]
    assert read_all(ring, [100, 4000]) == [8]


@pytest.mark.parametrize("size", [0, 5, 11, PAGE, 2 * PAGE - 1, 2 * PAGE + 10, 5 * PAGE, -1])
def test_a_truncated_file_is_refused(tmp_path, size):
    path = tmp_path / "ring"
    good = filled(path)
    os.truncate(path, size % len(good))
    with pytest.raises(LogFormatError if 0 <= size < 12 else LogTruncatedError):
        Ring.open_read(str(path))


def test_a_file_truncated_under_a_reader(tmp_path):
    path = tmp_path / "ring"
    filled(path)
    ring = Ring.open_read(str(path))
    _, slot, generation, _ = ring.refresh()[0]
    os.truncate(path, ring.file_bytes - ring.slot_bytes - 1)
    for use in (
        lambda: ring.section(slot, generation, 1),
        lambda: ring.verify([slot], [generation], 1, 0, 4000),
        lambda: ring.refresh(),
    ):
        with pytest.raises(LogTruncatedError):
            use()


def test_a_view_over_a_truncated_file_is_no_signal(tmp_path):
    """Where a view touches a page that is gone it finds zeros, and the check after its use says so."""
    path = tmp_path / "ring"
    filled(path)
    ring = Ring.open_read(str(path))
    _, slot, generation, _ = ring.refresh()[0]
    seen = view(ring, slot, generation, 1)
    assert seen.any()
    os.truncate(path, PAGE)
    assert not seen.any()
    with pytest.raises(LogTruncatedError):
        ring.check([slot], [generation])
    os.truncate(path, ring.file_bytes)
    with pytest.raises(LogTruncatedError, match="Open it again"):
        ring.section(slot, generation, 1)


def test_a_bus_error_that_is_not_ours_is_handed_on(tmp_path):
    code = """
import faulthandler, mmap, os, signal
ring = create(Path(sys.argv[1]))
faulthandler.enable()
reader = Ring.open_read(sys.argv[1])  # takes over from faulthandler, and hands on to it
with open(sys.argv[1] + ".other", "wb+") as file:
    file.truncate(8192)
    other = mmap.mmap(file.fileno(), 8192)
    file.truncate(0)
    print("before", flush=True)
    other[5000]
"""
    output, error = run_python(code, tmp_path / "ring")
    assert output == "before"
    assert "Fatal Python error: Bus error" in error


def test_another_version(tmp_path):
    path = tmp_path / "ring"
    good = bytearray(filled(path))
    for copy in (0, PAGE):
        struct.pack_into("<HH", good, copy + 8, 2, 5)
    path.write_bytes(good)
    with pytest.raises(LogVersionError) as caught:
        Ring.open_read(str(path))
    assert (caught.value.found, caught.value.supported) == ("2.5", "1.0")


def test_one_superblock_is_enough(tmp_path):
    good = filled(tmp_path / "ring")
    for copy in (0, PAGE):
        path = tmp_path / f"ring{copy}"
        path.touch(mode=0o600)
        path.write_bytes(good[:copy] + bytes(PAGE) + good[copy + PAGE :])
        ring = Ring.open_read(str(path))
        assert read_all(ring, [100, 4000]) == [7, 8]
        assert ring.intact_superblocks == 1


def test_what_is_not_a_log(tmp_path):
    good = filled(tmp_path / "ring")
    for name, data in {"text": b"hello" * 5000, "crlf": good[:4] + b"\n" + good[6:], "empty": b""}.items():
        path = tmp_path / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        with pytest.raises(LogFormatError):
            Ring.open_read(str(path))
    os.symlink(tmp_path / "ring", tmp_path / "link")
    os.mkfifo(tmp_path / "pipe", mode=0o600)
    for name in ("link", "pipe", "."):
        for opened in (Ring.open_read, Ring.open_write):
            with pytest.raises((LogFormatError, IsADirectoryError)):
                opened(str(tmp_path / name))
    os.symlink(tmp_path / "elsewhere", tmp_path / "dangling")
    with pytest.raises((LogFormatError, FileExistsError)):
        create(tmp_path / "dangling")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_log_that_others_can_read(tmp_path, mode):
    path = tmp_path / "ring"
    filled(path)
    path.chmod(mode)
    for opened in (Ring.open_read, Ring.open_write):
        with pytest.raises(InsecurePermissionsError) as caught:
            opened(str(path))
        assert (caught.value.path, caught.value.mode) == (str(path), mode)


def test_a_disk_too_small(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with pytest.raises(LogNoSpaceError) as caught:
        create(tmp_path / "ring", section_bytes=[free // 2])
    assert caught.value.need > caught.value.free > 0
    assert not (tmp_path / "ring").exists()


def test_a_full_file_system(tmp_path):
    """A real one: a tmpfs of 1 MiB. What fits is allocated at once, and training never meets the end of the disk."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root; store_tests no_space simulates the same")
    try:
        with pytest.raises(LogNoSpaceError):
            create(tmp_path / "large", section_bytes=[300_000])
        writer = create(tmp_path / "ring", section_bytes=[100_000])
        with open(tmp_path / "others", "wb", buffering=0) as file:
            written = file.write(bytes(1 << 20))
            assert written < 1 << 20
            with pytest.raises(OSError, match="No space"):
                file.write(bytes(4096))
        for step in range(20):
            append(writer, step, sizes=[100_000])
        assert read_all(Ring.open_read(str(tmp_path / "ring")), [100_000]) == [16, 17, 18, 19]
        writer.close()
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_file_size_limit(tmp_path):
    _, error = run_python(
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); create(Path(sys.argv[1]))",
        tmp_path / "ring",
    )
    assert "LogNoSpaceError" in error
    assert not (tmp_path / "ring").exists()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Makes every write beyond `size` fail with EFBIG (Python ignores the signal SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_write_stops_the_writer_and_nothing_else(tmp_path):
    path = tmp_path / "ring"
    writer = create(path)
    for step in range(2):
        append(writer, step)
    with file_size_limit(PAGE), pytest.raises(LogWriteError, match="File too large"):
        append(writer, 2)
    for use in (lambda: append(writer, 2), writer.sync, lambda: writer.rewind(1)):
        with pytest.raises(LogWriteError, match="earlier write failed"):
            use()
    assert read_all(Ring.open_read(str(path))) == [0, 1]
    writer.close()
    assert Ring.open_write(str(path)).last_step == 1


def test_a_half_overwritten_slot_is_not_its_old_step(tmp_path):
    """The writer marks a slot before it touches anything else in it: a reader of the old step hears of it at once."""
    path = tmp_path / "ring"
    writer = create(path)
    append(writer, 0)
    reader = Ring.open_read(str(path))
    _, slot, generation, _ = reader.refresh()[0]
    for step in range(1, reader.slots):
        append(writer, step)
    reader.check([slot], [generation])  # beyond the capacity, but not yet overwritten
    slots_offset = reader.file_bytes - reader.slots * reader.slot_bytes
    with file_size_limit(slots_offset + PAGE), pytest.raises(LogWriteError):
        append(writer, reader.slots)  # only its header reaches the file
    with pytest.raises(SlotOverwrittenError):
        reader.check([slot], [generation])
