"""`LogReader`: the read side of a training log, as it lies on disk (folder.py). Safe beside a running trainer; never changes a byte."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import ops
from .._native import Ring, RingReader
from ..errors import (
    ExpiredStepError,
    LogCorruptError,
    LogFormatError,
    MissingDataError,
    MissingStepError,
    ScrubbedStepError,
    SlotOverwrittenError,
    UnknownSampleError,
)
from ..files import read_private
from ..layout import ParameterLayout
from .anchors import Anchor, list_anchors
from .folder import ANCHORS, HEAD, MANIFEST_VERSION, SAMPLES, STEPS, USES
from .record import SampleId, StepRecord, decode_metadata, normalize_ids
from .tracked import FactoredWindow, TrackedUse, decode_part, sample_tokens
from .uses import BATCH, SAMPLE, UseIndex
from .vectors import VectorWindow

if TYPE_CHECKING:
    from typing_extensions import Self


class LogReader:
    """A training log's records, vectors, anchors and index of uses, opened for reading."""

    def __init__(self, path: Path, ring: RingReader):
        self.path, self._ring = path, ring
        try:
            self.manifest: dict[str, Any] = json.loads(ring.manifest())
            if self.manifest["version"] != MANIFEST_VERSION:
                raise LogFormatError(
                    f"manifest version {self.manifest['version']}, this package reads {MANIFEST_VERSION}"
                )
            self.layout = ParameterLayout.from_json(self.manifest["layout"])
            self.vectors: tuple[str, ...] = tuple(self.manifest["vectors"])
            self.dtype: str = self.manifest["dtype"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LogFormatError(f"{path}: the manifest does not parse: {error}") from error
        self._samples: RingReader | None = None
        self._uses = UseIndex(path / USES)
        self.refresh()

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a log folder; raises LogFormatError, LogVersionError, InsecurePermissionsError, LogTruncatedError."""
        folder = Path(path)
        if not (folder / STEPS).exists():
            raise LogFormatError(
                f"{folder} is not a training log: it has no {STEPS}. Pass the log_dir given to TrainingLogger"
            )
        return cls(folder, Ring.open_read(str(folder / STEPS)))

    def refresh(self) -> None:
        """Look again at what the trainer has written since."""
        slots = {step: (slot, generation, lineage) for step, slot, generation, lineage in self._ring.refresh()}
        self.scrubbed = frozenset(self._ring.scrubbed_steps())
        hi = max([*slots, *self.scrubbed], default=-1) + 1
        lo = hi
        while (lo - 1 in slots or lo - 1 in self.scrubbed) and hi - lo < self.manifest["capacity"]:
            lo -= 1
        # what lies before the oldest anchor in the ring cannot be replayed
        lo = min(hi, next((anchor.step for anchor in self.anchors() if anchor.step >= lo), hi))
        self._slots = {step: slots[step] for step in range(lo, hi) if step in slots}
        self.steps = range(lo, hi)
        self._records: dict[int, StepRecord] = {}
        self._tracked: dict[tuple[int, SampleId], TrackedUse] = {}
        if (self.path / SAMPLES).exists():
            if self._samples is None:
                self._samples = Ring.open_read(str(self.path / SAMPLES))
            self._find_tracked(self._samples)

    def _find_tracked(self, ring: RingReader) -> None:
        for number, slot, generation, _ in ring.refresh():
            try:
                use, part = decode_part(bytes(ring.metadata(slot, generation)))
            except (LogCorruptError, SlotOverwrittenError):
                continue  # whose it is cannot be told: not tracked any more (`verify_log` reports the damage)
            if part == 0:
                self._tracked[use.step, use.sample_id] = use
            self._tracked.setdefault((use.step, use.sample_id), use).slots.append((slot, generation, number))

    # -- one step ---------------------------------------------------------------------------------------------------

    def _slot(self, step: int) -> tuple[int, int, int]:
        if step in self._slots:
            return self._slots[step]
        if step in self.scrubbed:
            raise ScrubbedStepError(step)
        if 0 <= step < self.steps.start:
            raise ExpiredStepError(step, self.steps.start, self.steps.stop)
        raise MissingStepError(
            step, f"step {step} was never logged; the log has steps {self.steps.start}..{self.steps.stop - 1}"
        )

    def __getitem__(self, step: int) -> StepRecord:
        if step not in self._records:
            slot, generation, lineage = self._slot(step)
            data = bytes(self._ring.metadata(slot, generation))
            self._records[step] = decode_metadata(data, lineage, self._decoded)
        return self._records[step]

    def __len__(self) -> int:
        return len(self.steps)

    def window(self, steps: Sequence[int], vector: str, *, lease: bool = False) -> VectorWindow:
        """The logged vectors ("update" or "gradient") of several steps, as they lie in the mapped file.

        lease: a trainer that is about to overwrite one of them waits, a minute at most, until the window is gone. Without, or
        after that minute, `check()` raises SlotOverwrittenError.
        """
        if vector not in self.vectors:
            raise self._not_kept(vector)
        slots = [self._slot(step) for step in steps]
        window = VectorWindow(
            self._ring,
            [(slot, generation) for slot, generation, _ in slots],
            self.dtype,
            self.vectors.index(vector),
            lease,
        )
        return self._whole(window)

    def _not_kept(self, vector: str) -> MissingDataError:
        return MissingDataError(
            f"this log keeps {' and '.join(self.vectors)} vectors, {vector}s are needed: "
            f'record with TrainingLogger(..., vectors="{vector}" or "both")'
        )

    def _whole(self, window: VectorWindow) -> VectorWindow:
        """Kernels read as many bytes as the layout says: a file that holds fewer, however well it is signed, must not reach one."""
        need = (self.layout.size, ops.scale_count(self.layout.size, self.dtype))
        for vector in window:
            found = (vector.payload.numel(), vector.scales.numel())
            if found != need:
                raise LogFormatError(
                    f"{self.path}: a logged vector has {found[0]} elements and {found[1]} block exponents, the log's layout needs "
                    f"{need[0]} and {need[1]}: this file was not written by TrainingLogger, or was altered"
                )
        return window

    def tracks(self, step: int, sample_id: SampleId) -> bool:
        """Whether grad l(z_j; theta[step]) of this sample is in the log (mode="sample")."""
        use = self._tracked.get((step, sample_id))
        return use is not None and use.whole

    def tracked_uses(self) -> list[tuple[int, SampleId]]:
        """The (step, id) whose gradients are in the log, oldest first."""
        return [use for use in self._tracked if self.tracks(*use)]

    @property
    def sample_tokens(self) -> int | None:
        """The tokens of a sample for which a slot of the ring of samples has room, where it keeps factors; None: dense gradients."""
        return None if self._samples is None else sample_tokens(self._samples)

    def sample_window(self, uses: Sequence[tuple[int, SampleId]]) -> VectorWindow | FactoredWindow:
        """The gradients of tracked samples, one per (step, id); raises MissingDataError for one that is not tracked."""
        missing = [use for use in uses if not self.tracks(*use)]
        if missing or self._samples is None:
            raise MissingDataError(f"the gradient of sample {missing[0][1]!r} at step {missing[0][0]} is not in the log: "
                                   "pass data=..., or record with mode=\"sample\" and track_ids")  # fmt: skip
        tracked = [self._tracked[use] for use in uses]
        if self.sample_tokens is not None:
            return FactoredWindow(self._samples, tracked, self.layout, self.dtype)
        return self._whole(VectorWindow(self._samples, [use.slots[0][:2] for use in tracked], self.dtype, 0))

    def _decoded(self, step: int, vector: str) -> Tensor:
        if vector not in self.vectors:
            return self._derived(step, vector)
        window = self.window([step], vector)
        window.verify(0, self.layout.size)
        vector_values = window.decode(0, self.layout.dtype)
        window.check()
        return vector_values

    def _derived(self, step: int, vector: str) -> Tensor:
        """A vector that is not logged: what lies on disk does not have it."""
        raise self._not_kept(vector)

    # -- the run ----------------------------------------------------------------------------------------------------

    @property
    def gradients(self) -> bool:
        """Whether the optimizer is replayed from gradients (else, plain SGD, from updates)."""
        return "gradient" in self.vectors

    @property
    def stream(self) -> str:
        """The vectors that the optimizer is replayed from."""
        return "gradient" if self.gradients else "update"

    def head(self) -> dict[str, Any] | None:
        """{"step", "digest"} of the weights when the trainer closed the log, None while it runs or after a crash."""
        path = self.path / HEAD
        if not path.exists():
            return None
        try:
            head = json.loads(read_private(path))
            return {"step": int(head["step"]), "digest": str(head["digest"])}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LogFormatError(
                f"{path} does not parse: {error}. Delete it if the log's last step is in doubt"
            ) from error

    def anchors(self) -> list[Anchor]:
        return list_anchors(self.path / ANCHORS)

    def anchor_before(self, step: int) -> Anchor:
        """The newest anchor at or before `step` from which it can be replayed."""
        anchors = [a for a in self.anchors() if a.step in self.steps or a.step == self.steps.stop]
        at = bisect_right([a.step for a in anchors], step) - 1
        if at < 0:
            raise ExpiredStepError(step, anchors[0].step if anchors else self.steps.stop, self.steps.stop)
        return anchors[at]

    def find(self, ids: Any, level: str = "sample") -> dict[SampleId, list[int]]:
        """The steps where each id was used, ascending; level "batch": where each batch id was.

        Raises UnknownSampleError for ids never logged, ExpiredStepError where a use has left the window.
        """
        kind = SAMPLE if level == "sample" else BATCH
        found = self._find(normalize_ids(ids), kind)
        unknown = [i for i, steps in found.items() if not steps]
        if unknown:
            raise UnknownSampleError(unknown)
        for steps in found.values():
            if steps[0] not in self.steps:
                raise ExpiredStepError(steps[0], self.steps.start, self.steps.stop)
        return found

    def uses(self, identity: SampleId) -> list[int]:
        """Every step of the run that used this sample, also those that have left the log; [] for an unknown id."""
        return self._find((identity,), SAMPLE)[identity]

    def _find(self, ids: tuple[SampleId, ...], kind: int) -> dict[SampleId, list[int]]:
        """The steps of each id, from the index and, for the newest, which a power cut may have torn from it, from the ring."""
        indexed, newest = self._uses.find(ids, kind)
        if newest + 1 < self.steps.start:
            raise LogCorruptError(
                newest + 1, -1,
                f"{self.path / USES} ends in step {newest}, and the ring has steps {self.steps.start}..{self.steps.stop - 1}: which ids "
                "the steps between used is not known any more",
            )  # fmt: skip
        found = {i: {step for step in steps if step < self.steps.stop} for i, steps in indexed.items()}
        for step in range(max(newest, self.steps.start), self.steps.stop):
            if step in self._slots:
                used = self[step].sample_ids if kind == SAMPLE else (self[step].batch_id,)
                for i in found.keys() & set(used):
                    found[i].add(step)
        return {i: sorted(steps) for i, steps in found.items()}

    def tracked_slots(self, chosen: Callable[[int, SampleId], bool]) -> list[int]:
        """Numbers, in the ring of samples, of the slots with tracked gradients, or parts of them, for which chosen(step, id) holds."""
        return [n for (step, i), use in self._tracked.items() if chosen(step, i) for _, _, n in use.slots]

    def close(self) -> None:
        """Let go of the files. Tensors that still view the mapping keep it alive."""
        self._slots, self._records, self._tracked, self.steps = {}, {}, {}, range(0)
        self._samples = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
