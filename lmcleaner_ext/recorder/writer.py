"""The files of a log while it is written: rings, anchors, index of uses, head."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .._native import Ring, RingWriter
from ..digest import digest_tensors
from ..errors import ConfigurationError, LogNoSpaceError
from ..files import replace_private
from ..layout import ParameterLayout
from ..log.anchors import Anchor, list_anchors, write_anchor
from ..log.folder import ANCHORS, HEAD, MANIFEST_VERSION, SAMPLES, STEPS, USES
from ..log.record import StepRecord, encode_metadata
from ..log.tracked import decode_part, encode_part
from ..log.uses import UseIndex
from ..ops import EncodedVector
from ..optim.describe import describe_optimizer
from .options import VECTORS, RecordingOptions
from .tracked import SampleRing, TrackedGradient

GROUP = 16  # steps per sync with durability="group"
THREADS = 2  # that write the chunks of one step: they wait for the disk, not for a core


class LogWriter:
    """The write side of one log folder. One writer at a time; everything 0600 inside a 0700 folder."""

    def __init__(self, folder: Path, layout: ParameterLayout, ring: RingWriter, samples: RingWriter | None, durable: bool,
                 capacity: int, vectors: Sequence[str], dtype: str, compression: str | None):  # fmt: skip
        self.folder, self.layout, self.ring, self.samples = folder, layout, ring, samples
        self.durable, self.capacity, self.vectors, self.dtype = durable, capacity, tuple(vectors), dtype
        self.compression = compression  # of the anchors
        self.uses = UseIndex(folder / USES)
        self.sample_count = 0 if samples is None else samples.last_step + 1
        self.bytes_written = 0
        self._unsynced = 0  # steps whose uses are not durable yet

    @classmethod
    def create(
        cls,
        folder: Path,
        layout: ParameterLayout,
        options: RecordingOptions,
        optimizer: torch.optim.Optimizer,
        weights: Sequence[Tensor],
        samples: SampleRing | None,
        averages: dict[str, Any],
    ) -> LogWriter:
        """A new log; `options` are resolved, `averages` the manifest's entries about what is averaged over the run.

        Raises ConfigurationError where there is a log already, LogNoSpaceError.
        """
        if (folder / STEPS).exists():
            raise ConfigurationError(
                f"{folder} already holds a log: pass resume=True to continue it after loading the checkpoint, or choose a new log_dir"
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / ANCHORS).mkdir(mode=0o700, exist_ok=True)
        run, capacity, vectors = uuid.uuid4(), options.capacity, VECTORS[options.vectors]
        start = digest_tensors(weights)
        manifest = {
            "version": MANIFEST_VERSION,
            "run": run.hex,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "torch": torch.__version__,
            "vectors": list(vectors),
            "dtype": options.dtype,
            "capacity": capacity,
            "compression": options.compression,
            "start_digest": start,
            "layout": layout.to_json(),
            "optimizer": describe_optimizer(optimizer),
            "mode": options.mode,
            "anchor_every": options.anchor_every,
            **averages,
        }
        sections = section_sizes(layout.size, options.dtype)
        spare = GROUP if options.durability == "group" else 1
        sample_sections = section_sizes(samples.elements, options.dtype) if samples else []
        need = (capacity + spare) * len(vectors) * sum(sections)
        need += (samples.capacity + spare) * sum(sample_sections) if samples else 0
        free = shutil.disk_usage(folder).free
        if need > free:
            raise LogNoSpaceError(need, free)
        common = {
            "durability": options.durability,
            "group": GROUP,
            "run_uuid": run.bytes,
            "fingerprint": layout.fingerprint(run.bytes, start),
        }
        ring = Ring.create(
            str(folder / STEPS), json.dumps(manifest).encode(), sections * len(vectors), capacity,
            metadata_bytes=options.metadata_bytes, **common,
        )  # fmt: skip
        sample_ring = None
        if samples is not None:
            sample_ring = Ring.create(
                str(folder / SAMPLES), json.dumps({"sample_tokens": samples.tokens}).encode(), sample_sections,
                samples.capacity, metadata_bytes=samples.metadata_bytes, **common,
            )  # fmt: skip
        durable = options.durability != "process"
        return cls(folder, layout, ring, sample_ring, durable, capacity, vectors, options.dtype, options.compression)

    def metadata(self, record: StepRecord) -> bytes:
        """What the slot will hold besides vectors; raises ConfigurationError where ids and weights do not fit it."""
        metadata = encode_metadata(record)
        if len(metadata) > self.ring.metadata_bytes:
            raise ConfigurationError(
                f"step {record.step} has {len(metadata):,} bytes of metadata ({len(record.sample_ids):,} ids), the log was created for "
                f"{self.ring.metadata_bytes:,}: record with a larger metadata_bytes"
            )
        return metadata

    def append(
        self,
        record: StepRecord,
        metadata: bytes,
        vectors: Sequence[EncodedVector],
        samples: Sequence[TrackedGradient],
        lineage: int,
    ) -> None:
        """One step: its tracked samples first, then the step itself, whose commit makes them count. Raises LogWriteError."""
        for sample in samples:
            self._append_sample(record.step, sample, lineage)
        sections = _sections(vectors)
        # the index first: a kill between the two leaves uses of a step that does not exist, which readers ignore, and never a
        # step whose ids cannot be found
        self.uses.append(record.step, record.sample_ids, record.batch_id)
        self._unsynced += 1
        if self.ring.durability == "step" or (self.ring.durability == "group" and self._unsynced >= self.ring.group):
            self.uses.sync()  # before the ring syncs this step
            self._unsynced = 0
        self.ring.append(record.step, lineage, metadata, sections, THREADS)
        self.bytes_written += (
            len(metadata) + sum(n for _, n in sections) + sum(n for s in samples for _, n in _sections([s.vector]))
        )

    def _append_sample(self, step: int, sample: TrackedGradient, lineage: int) -> None:
        """One tracked gradient, in as many slots as it needs."""
        assert self.samples is not None
        elements = self.samples.section_bytes[1] // sample.vector.payload.element_size()  # a multiple of a block
        size = sample.vector.payload.numel()
        parts = [sample.vector.narrow(at, min(at + elements, size)) for at in range(0, size, elements)]
        for number, part in enumerate(parts):
            name = encode_part(step, sample.sample_id, number, len(parts), sample.tokens)
            self.samples.append(self.sample_count, lineage, name, _sections([part]), THREADS)
            self.sample_count += 1

    def rewind_samples(self, step: int) -> None:
        """Drop the tracked gradients of `step` and later."""
        if self.samples is None:
            return
        reader = Ring.open_read(str(self.folder / SAMPLES))
        abandoned = [
            number
            for number, slot, generation, _ in reader.refresh()
            if decode_part(bytes(reader.metadata(slot, generation)))[0].step >= step
        ]
        if abandoned:
            self.samples.rewind(min(abandoned))
            self.sample_count = min(abandoned)

    def anchor(self, step: int, lineage: int, tensors: dict[str, Tensor], corrected: bool = False) -> Anchor:
        """Write an anchor, and drop those that no retained step needs any more."""
        written = write_anchor(self.folder / ANCHORS, step, lineage, tensors, self.durable, corrected, self.compression)
        for anchor in list_anchors(self.folder / ANCHORS):
            if anchor.step < step - self.capacity:  # the steps it would be replayed with have been overwritten
                anchor.path.unlink()
        return written

    def write_head(self, step: int, digest: str) -> None:
        """Say which weights the log ends with."""
        text = json.dumps({"step": step, "digest": digest})
        replace_private(self.folder / HEAD, lambda file: file.write(text.encode()))

    def sync(self) -> None:
        self.uses.sync()
        self._unsynced = 0
        if self.samples is not None:
            self.samples.sync()
        self.ring.sync()

    def close(self) -> None:
        if self.samples is not None:
            self.samples.close()
        self.ring.close()


def section_sizes(size: int, dtype: str) -> list[int]:
    """Bytes of (scales, payload) of one encoded vector [size]."""
    return [ops.scale_count(size, dtype), size * ops.payload_dtype(dtype).itemsize]


def _sections(vectors: Sequence[EncodedVector]) -> list[tuple[int, int]]:
    """(address, bytes) of scales and payload of each vector."""
    parts = [part for payload, scales in vectors for part in (scales, payload)]
    return [(p.data_ptr() if p.numel() else 0, p.numel() * p.element_size()) for p in parts]
