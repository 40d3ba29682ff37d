"""Sorted copies of stretches of uses.bin, so that `find` reads a few blocks instead of everything.

    uses/<begin>-<end>.idx     header | fences | the records of uses.bin number begin to end - 1, sorted by kind, key, step

A fence holds the first (kind, key) of each block of 4096 records and the block's checksum; the header's checksum covers header and fences.
Nothing here is needed: a segment that is missing or damaged is read from uses.bin instead. Written aside, synced, renamed.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .._native import checksum
from ..errors import LogCorruptError
from ..files import check_private, open_private, replace_private, sync_folder

RECORD = np.dtype([("key", "<i8"), ("step", "<i8"), ("kind", "<u4"), ("check", "<u4")])
FENCE = np.dtype([("key", "<i8"), ("kind", "<u4"), ("zero", "<u4"), ("check", "<u8")])
BLOCK = 4096
MAGIC = b"LMCUSES\1"
HEADER = struct.Struct("<8sQQ")  # magic with the version, begin, end; then the u64 checksum


@dataclass(frozen=True)
class Segment:
    """One sorted stretch [begin, end) of uses.bin; its fences are in memory, its blocks are read when they are needed."""

    path: Path
    begin: int
    end: int
    fences: np.ndarray
    first: list[tuple[int, int]]  # (kind, key) that each block begins with

    def steps(self, kind: int, key: int, read: Callable[[int], np.ndarray]) -> np.ndarray:
        """The steps of one id, ascending; `read` gives the good records of uses.bin from a number on, where a block is damaged."""
        lo = max(0, bisect_left(self.first, (kind, key)) - 1)
        hi = bisect_right(self.first, (kind, key))
        blocks = [self._block(i, read) for i in range(lo, hi)]
        rows = np.concatenate(blocks) if blocks else np.empty(0, RECORD)
        return rows["step"][(rows["key"] == key) & (rows["kind"] == kind)]

    def _block(self, index: int, read: Callable[[int], np.ndarray]) -> np.ndarray:
        begin = index * BLOCK
        count = min(BLOCK, self.end - self.begin - begin)
        offset = HEADER.size + 8 + self.fences.nbytes + begin * RECORD.itemsize
        with open_private(self.path) as file:
            block = np.fromfile(file, RECORD, count=count, offset=offset)
        if len(block) == count and checksum(block.ctypes.data, block.nbytes, index) == int(self.fences["check"][index]):
            return block
        # the original of this stretch; its order is another, which does not matter to those who filter it
        original = read(self.begin)[: self.end - self.begin]
        if len(original) < self.end - self.begin:
            raise LogCorruptError(
                -1, index, f"{self.path} and uses.bin are both damaged: which steps used which id is not known"
            )
        return original


def write_segment(folder: Path, begin: int, table: np.ndarray) -> None:
    """Sort the records and write them, durably."""
    rows = table[np.lexsort((table["step"], table["key"], table["kind"]))]
    blocks = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
    fences = np.zeros(len(blocks), FENCE)
    for i, block in enumerate(blocks):
        fences[i] = (block["key"][0], block["kind"][0], 0, checksum(block.ctypes.data, block.nbytes, i))
    head = HEADER.pack(MAGIC, begin, begin + len(rows)) + fences.tobytes()
    guard = struct.pack("<Q", _checksum(head))
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{begin:015d}-{begin + len(rows):015d}.idx"
    parts = (head[: HEADER.size], guard, head[HEADER.size :], rows.tobytes())
    replace_private(target, lambda file: file.writelines(parts))


def load_segments(folder: Path, known: dict[tuple[str, int, int], Segment]) -> dict[tuple[str, int, int], Segment]:
    """All segments whose header and fences are good, by file identity; those in `known` are not read again."""
    found = {}
    for path in sorted(folder.glob("*.idx")):
        status = check_private(path)
        identity = (path.name, status.st_ino, status.st_mtime_ns)
        segment = known.get(identity) or _load(path, status.st_size)
        if segment is not None:
            found[identity] = segment
    return found


def _load(path: Path, size: int) -> Segment | None:
    with open_private(path) as file:
        head = file.read(HEADER.size)
        guard = file.read(8)
        if len(guard) < 8:
            return None
        magic, begin, end = HEADER.unpack(head)
        blocks = -(-(end - begin) // BLOCK)
        if magic != MAGIC or size != HEADER.size + 8 + blocks * FENCE.itemsize + (end - begin) * RECORD.itemsize:
            return None
        body = file.read(blocks * FENCE.itemsize)
    if _checksum(head + body) != struct.unpack("<Q", guard)[0]:
        return None
    fences = np.frombuffer(body, FENCE)
    return Segment(path, begin, end, fences, list(zip(fences["kind"].tolist(), fences["key"].tolist(), strict=True)))


def remove_segments(folder: Path, kept: int) -> None:
    """Delete every segment that reaches beyond the first `kept` records, and every one that is damaged."""
    good = {segment.path for segment in load_segments(folder, {}).values() if segment.end <= kept}
    for path in folder.glob("*"):
        if path not in good:
            path.unlink()
    if folder.exists():
        sync_folder(folder)


def _checksum(data: bytes) -> int:
    buffer = np.frombuffer(data, np.uint8)
    return checksum(buffer.ctypes.data, len(buffer), 0)
