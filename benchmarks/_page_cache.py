"""What a deletion finds when it begins: the log in the page cache or on disk, memory that is there or must be fetched."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

import numpy as np

Part = tuple[Path, int, int]


def written_parts(folder: Path) -> list[Part]:
    """(file, begin, end) of the parts of the files of `folder` that were written; a ring keeps slots for later steps.

    Parts less than 1 MiB apart count as one: read in one go, a file lies in the page cache in larger pieces.
    To be asked before anything is read: pages that the system fetched beside a part count as written.
    """
    parts: list[Part] = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        end = 0
        with path.open("rb") as file, contextlib.suppress(OSError):  # ENXIO: no data beyond
            while True:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
                end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
                if parts and parts[-1][0] == path and begin - parts[-1][2] < 1 << 20:
                    begin = parts.pop()[1]
                parts.append((path, begin, end))
    return parts


def read_through(parts: list[Part]) -> None:
    """Read the parts until nothing more has to be fetched: the system may let go of pages that were read once only.

    What else is in the files would take room from them, and from the deletion.
    """
    buffer = memoryview(bytearray(1 << 24))
    for _ in range(5):
        fetched = bytes_fetched()
        for path, begin, end in parts:
            with path.open("rb", buffering=0) as file:
                file.seek(begin)
                while (rest := end - file.tell()) > 0 and file.readinto(buffer[:rest]):
                    pass
        if bytes_fetched() == fetched:
            return


def touch_memory(size: int) -> None:
    """Write `size` bytes of memory and give them back, so that what is allocated next is memory that this machine has.

    The host of a virtual machine may have taken free pages; where it does, the kernel clears fresh memory at 1 to 2 GB/s.
    """
    np.ones(size, dtype=np.uint8)


def evict(folder: Path) -> None:
    """Put every file of `folder` out of the page cache: the next reader fetches it from the disk. Needs no privilege.

    Pages that are still mapped would stay, so whatever holds the log must be gone.
    """
    gc.collect()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # pages not yet written would stay
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def bytes_fetched() -> int:
    """Bytes that this process has had fetched from storage so far (Linux; 0 elsewhere)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/io").read_text().splitlines():
            if line.startswith("read_bytes:"):
                return int(line.split()[1])
    return 0
