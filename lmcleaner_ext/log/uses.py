"""Which step used which id, for the whole run: the ring forgets old steps, a deletion request must still hear that it came too late.

    uses.bin     records of 24 bytes: int64 key | int64 step | uint32 kind | uint32 checksum        append-only, mode 0600

key: the integer id itself, or the first 8 bytes of SHA-256 of a string id.  checksum: the low half of XXH3-64 of the 20 bytes before,
seeded by the record's number. What counts is the run of good records from the beginning: a power cut may tear the end, and the steps
there are known from the ring (`LogReader.find`). Sorted copies (segments.py) spare `find` the scan.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .._native import record_checksums
from ..files import append_private, open_private, sync_private, truncate_private
from .record import SampleId
from .segments import RECORD, Segment, load_segments, remove_segments, write_segment

SAMPLE, BATCH = 0, 2  # + 1 for string ids
SEGMENT = 1 << 18  # records that are sorted together


def key_of(identity: SampleId) -> tuple[int, int]:
    """(key, 0 or 1): how an id is stored."""
    if isinstance(identity, int):
        return identity, 0
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "little", signed=True), 1


def _checksums(table: np.ndarray, first: int) -> np.ndarray:
    """uint32 [n]: what the records' checksums must be when the first of them is number `first`."""
    out = np.empty(len(table), "<u4")
    record_checksums(table.ctypes.data, len(table), RECORD.itemsize, 20, first, out.ctypes.data)
    return out


class UseIndex:
    """The file `uses.bin` of one log, and the sorted segments in `uses/` beside it."""

    def __init__(self, path: Path):
        self.path, self.folder = path, path.with_suffix("")
        self._count: int | None = None  # records, while writing
        self._sorted = 0  # of which are in segments
        self._segments: dict[tuple[str, int, int], Segment] = {}

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, begin: int = 0) -> np.ndarray:
        """The good records from number `begin` on."""
        if not self.path.exists():
            return np.empty(0, RECORD)
        with open_private(self.path) as file:
            count = os.fstat(file.fileno()).st_size // RECORD.itemsize - begin
            table = np.fromfile(file, RECORD, count=max(0, count), offset=begin * RECORD.itemsize)
        wrong = np.flatnonzero(_checksums(table, begin) != table["check"])
        return table[: wrong[0]] if len(wrong) else table

    def find(self, ids: Iterable[SampleId], kind: int) -> tuple[dict[SampleId, list[int]], int]:
        """({id: ascending steps, [] where there are none}, the newest step that the index knows, perhaps in part; -1: none)."""
        wanted = {i: (kind + text, key) for i in ids for key, text in (key_of(i),)}
        segments = self.segments()
        end = segments[-1].end if segments else 0
        tail = self.read(end)
        found = {}
        for identity, (exact, key) in wanted.items():
            rows = [segment.steps(exact, key, self.read) for segment in segments]
            rows.append(tail["step"][(tail["key"] == key) & (tail["kind"] == exact)])
            found[identity] = np.unique(np.concatenate(rows)).tolist()
        newest = int(tail["step"][-1]) if len(tail) else self._step_of(end - 1) if end else -1
        return found, newest

    def segments(self) -> list[Segment]:
        """The good segments that cover uses.bin from its beginning; one that is damaged only costs speed."""
        size = self.path.stat().st_size // RECORD.itemsize if self.path.exists() else 0
        self._segments = load_segments(self.folder, self._segments)
        covering: list[Segment] = []
        for segment in sorted(self._segments.values(), key=lambda s: s.begin):
            if segment.begin == (covering[-1].end if covering else 0) and segment.end <= size:
                covering.append(segment)
        return covering

    def count(self, kind: int) -> int:
        """Number of distinct ids."""
        table = self.read()
        return len(np.unique(table["key"][(table["kind"] // 2) == kind // 2]))

    def _step_of(self, number: int) -> int:
        with open_private(self.path) as file:
            return int(np.fromfile(file, RECORD, count=1, offset=number * RECORD.itemsize)["step"][0])

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(self, step: int, sample_ids: Iterable[SampleId], batch_id: SampleId) -> None:
        """One step, in one write."""
        if self._count is None:
            self._count = self._begin_writing()
        rows = [(*key_of(i), SAMPLE) for i in sample_ids] + [(*key_of(batch_id), BATCH)]
        table = np.empty(len(rows), RECORD)
        table["key"] = [key for key, _, _ in rows]
        table["kind"] = [kind + text for _, text, kind in rows]
        table["step"] = step
        table["check"] = _checksums(table, self._count)
        append_private(self.path, table.tobytes(), durable=False)
        self._count += len(table)
        if self._count - self._sorted >= SEGMENT:
            self.sync()
            write_segment(self.folder, self._sorted, self.read(self._sorted))
            self._sorted = self._count

    def sync(self) -> None:
        """Make what was appended durable."""
        if self.path.exists():
            sync_private(self.path)

    def rewind(self, step: int) -> int:
        """Forget the uses of `step` and later, whose branch of the run was abandoned; returns the newest step that is left, -1: none."""
        table = self.read()
        kept = int(np.searchsorted(table["step"], step))
        # the segments first, durably: one that outlived its records would speak for those that come in their place
        remove_segments(self.folder, kept)
        if self.path.exists():
            truncate_private(self.path, kept * RECORD.itemsize)
        self._count = None
        return int(table["step"][kept - 1]) if kept else -1

    def _begin_writing(self) -> int:
        segments = self.segments()
        self._sorted = segments[-1].end if segments else 0
        count = self._sorted + len(self.read(self._sorted))
        if self.path.exists() and self.path.stat().st_size != count * RECORD.itemsize:
            truncate_private(self.path, count * RECORD.itemsize)  # a torn end
        return count
