"""Writing beside the training: one thread that takes steps and anchors in the order in which they were handed over.

The training thread encodes a step into a buffer of a bounded pool and hands it over; checksums, index and disk are the writer
thread's. In memory are at most AHEAD steps that wait or are being written, the one that is being filled, and one anchor.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import LMCleanerError, LogWriteError
from ..log.record import StepRecord
from .buffers import Buffer, BufferPool
from .tracked import TrackedGradient
from .writer import LogWriter

AHEAD = 2  # steps that training may be ahead of the disk before it waits


@dataclass
class _Line:
    """What the two threads share. The thread knows nothing else, so that a forgotten writer can be collected."""

    jobs: queue.Queue[tuple[Callable[[], Any], Callable[[], Any]] | None]
    error: Exception | None = None

    def work(self) -> None:
        while (item := self.jobs.get()) is not None:
            job, release = item
            try:
                if self.error is None:
                    job()
            except Exception as error:
                self.error = error
            finally:
                release()
                del job, release, item
                self.jobs.task_done()


def _stop(line: _Line, thread: threading.Thread, owner: int) -> None:
    """Write what was handed over, then end the thread: also at the interpreter's exit, and when nobody closed the log."""
    if owner == os.getpid() and thread.is_alive():
        line.jobs.put(None)
        if thread is not threading.current_thread():
            thread.join()


class BackgroundWriter:
    """A `LogWriter` on a thread of its own. A failure there is raised by the next call here, as LogWriteError."""

    def __init__(self, writer: LogWriter):
        self._writer, self._owner = writer, os.getpid()
        self._pool = BufferPool(AHEAD + 1, writer.layout.size, writer.dtype, len(writer.vectors))
        self._anchors = threading.Semaphore(1)
        self._line = _Line(queue.Queue())
        thread = threading.Thread(target=self._line.work, name="lmcleaner log writer", daemon=True)
        thread.start()
        self._stop = weakref.finalize(self, _stop, self._line, thread, self._owner)

    def buffer(self, pinned: bool = False) -> Buffer:
        """A free buffer; waits while the disk is more than AHEAD steps behind."""
        self._require_owner()
        return self._pool.take(pinned)

    def append(self, record: StepRecord, buffer: Buffer, samples: Sequence[TrackedGradient], lineage: int) -> None:
        """Hand a step over; the buffer is the writer's from here on, whatever happens. Copies into it may still be under way.

        Raises ConfigurationError where the record does not fit a slot, LogWriteError for the failure of an earlier step.
        """
        try:
            metadata = self._writer.metadata(record)
        except BaseException:
            self._pool.give_back(buffer)
            raise

        def write() -> None:
            buffer.wait()
            self._writer.append(record, metadata, buffer.vectors, samples, lineage)

        self._hand_over(write, lambda: self._pool.give_back(buffer))

    def anchor(self, step: int, lineage: int, tensors: dict[str, Tensor], corrected: bool = False) -> None:
        """Hand an anchor over; nothing else may write to its tensors. Waits until the one before is on disk."""
        self._require_owner()
        self._anchors.acquire()
        self._hand_over(lambda: self._writer.anchor(step, lineage, tensors, corrected), self._anchors.release)

    def drain(self, sync: bool = False) -> None:
        """Wait until everything handed over is written; with `sync`, until it survives a power cut."""
        self._require_owner()
        self._line.jobs.join()
        self._raise()
        if sync:
            self._writer.sync()

    def write_head(self, step: int, digest: str) -> None:
        """Say which weights the log ends with, or after a failure that they are not those of its last step; raises LogWriteError."""
        try:
            self.drain(sync=True)
        except LogWriteError:
            with suppress(OSError):
                self._writer.write_head(self.written_step + 1, "unknown")
            raise
        self._writer.write_head(step, digest)

    def close(self) -> None:
        """Write what was handed over, end the thread, release the lock. In a forked child: nothing."""
        if self._owner == os.getpid():
            self._stop()
            self._writer.close()

    def scrub_functions(self) -> list[Callable[[list[int]], int]]:
        return [ring.scrub for ring in (self._writer.ring, self._writer.samples) if ring is not None]

    @property
    def failed(self) -> bool:
        return self._line.error is not None

    @property
    def written_step(self) -> int:
        """The newest step in the file: it survives a kill. -1: none."""
        return self._writer.ring.last_step

    @property
    def durable_step(self) -> int:
        """The newest step that survives a power cut; -1: none in this session."""
        return self._writer.ring.durable_step

    @property
    def bytes_written(self) -> int:
        return self._writer.bytes_written

    def _hand_over(self, job: Callable[[], Any], release: Callable[[], Any]) -> None:
        try:
            self._require_owner()
            self._raise()
        except BaseException:
            release()
            raise
        self._line.jobs.put((job, release))

    def _raise(self) -> None:
        error = self._line.error
        if isinstance(error, LogWriteError):
            raise LogWriteError(str(error)) from error
        if error is not None:
            kind = "" if isinstance(error, LMCleanerError) else f"{type(error).__name__}: "
            raise LogWriteError(
                f"the step after {self.written_step} could not be written ({kind}{error}); the log takes no further steps, "
                "the ones before stand. Repair the cause, then resume the log"
            ) from error

    def _require_owner(self) -> None:
        if self._owner != os.getpid():
            raise LogWriteError(f"{self._writer.folder}: this writer belongs to the parent process {self._owner}")
