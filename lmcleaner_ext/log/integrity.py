"""Checking every checksum of a log: superblocks, manifest, slots, anchors, the index of uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .._native import Ring, RingReader
from ..errors import LMCleanerError, SlotOverwrittenError
from .folder import SAMPLES, STEPS, USES
from .reader import LogReader


@dataclass(frozen=True)
class Finding:
    """What was checked, and what is wrong with it.

    part      "superblock", "slot header", "step", "tracked gradient", "anchor" or "uses"
    name      which one: a step, a slot, a file
    error     None: good, or on purpose without contents (`note` says so)
    """

    part: str
    name: str
    error: str | None = None
    note: str = ""
    bytes: int = 0


def verify_log(log: LogReader) -> Iterator[Finding]:
    """Check everything that the log retains, part by part, in the order in which it lies on disk; never raises for what is damaged.

    Opening the log has checked the manifest. A step that a running trainer overwrites meanwhile is noted, not counted as damaged.
    """
    rings: list[tuple[str, RingReader, str]] = [(STEPS, log._ring, "step")]
    if (log.path / SAMPLES).exists():
        rings.append((SAMPLES, Ring.open_read(str(log.path / SAMPLES)), "tracked gradient"))
    for file, ring, part in rings:
        damaged = 2 - ring.intact_superblocks
        yield Finding("superblock", file, f"{damaged} of 2 copies is damaged" if damaged else None)
        for slot in ring.damaged_slots():
            yield Finding("slot header", f"{file} slot {slot}", "does not match its checksum: its step is lost")
        entries = ring.refresh()
        for step in ring.scrubbed_steps():
            yield Finding(part, str(step), note="scrubbed")
        for step, slot, generation, _ in entries:
            yield _slot(ring, part, step, slot, generation)
    for anchor in log.anchors():
        nbytes, error = 0, None
        try:
            for name in sorted(anchor.names()):
                nbytes += anchor.tensor(name).nbytes
        except (LMCleanerError, OSError) as problem:
            error = str(problem)
        yield Finding("anchor", anchor.path.name, error, bytes=nbytes)
    yield _uses(log)


def _slot(ring: RingReader, part: str, step: int, slot: int, generation: int) -> Finding:
    """Metadata, checksum table and all sections of one slot."""
    nbytes = 0
    try:
        nbytes += len(ring.metadata(slot, generation))
        for k in range(len(ring.section_bytes)):
            _, size = ring.section(slot, generation, k)
            ring.verify([slot], [generation], k, 0, size, torch.get_num_threads())
            nbytes += size
    except SlotOverwrittenError:
        return Finding(part, str(step), note="overwritten by the trainer meanwhile")
    except LMCleanerError as problem:
        return Finding(part, str(step), str(problem))
    return Finding(part, str(step), bytes=nbytes)


def _uses(log: LogReader) -> Finding:
    """The index against its checksums, and against the ids that the retained steps name."""
    index = log._uses
    size = index.path.stat().st_size if index.path.exists() else 0
    try:
        table = index.read()
        if size > table.nbytes and len(table) and int(table["step"][-1]) + 1 < log.steps.stop:
            return Finding("uses", USES, f"the record at byte {table.nbytes} does not match its checksum")
        wrong = len(list(index.folder.glob("*.idx"))) - len(index.segments())
    except (LMCleanerError, OSError) as problem:
        return Finding("uses", USES, str(problem))
    return Finding(
        "uses", USES, note=f"{wrong} sorted copies are damaged; only speed is lost" if wrong else "", bytes=size
    )


def summary(findings: list[Finding]) -> dict[str, Any]:
    """Counts for a report: {"checked", "damaged", "scrubbed", "bytes"}."""
    return {
        "checked": len(findings),
        "damaged": sum(f.error is not None for f in findings),
        "scrubbed": sum(f.note == "scrubbed" for f in findings),
        "bytes": sum(f.bytes for f in findings),
    }
