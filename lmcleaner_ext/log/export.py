"""`export`: steps of a log as one safetensors file, for other tools."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from ..files import create_private
from .reader import LogReader


def export_steps(
    log: LogReader, target: str | Path, steps: Sequence[int], advance: Callable[[int], None] = lambda step: None
) -> int:
    """Write the decoded vectors of `steps` to a new file of mode 0600; returns its size.

    Tensors `<step>.<vector>`, [P], float32 (of a float64 model: float64), in the order of the log's layout, every checksum verified.
    The file's metadata has `layout` (the parameter table) and per step its hyper-parameters, sample ids and weights, as JSON. One
    vector is in memory at a time, which is why the file is not written by the safetensors library. Raises FileInTheWayError, and for
    steps that cannot be read what reading them raises; no file is left then.
    """
    records = {step: log[step] for step in steps}
    item, name = log.layout.dtype.itemsize, {4: "F32", 8: "F64"}[log.layout.dtype.itemsize]
    size = item * log.layout.size
    header: dict[str, object] = {
        "__metadata__": {
            "run": str(log.manifest["run"]),
            "layout": json.dumps(log.layout.to_json()),
            "steps": json.dumps(
                {
                    step: {
                        "groups": record.groups,
                        "batch_id": record.batch_id,
                        "sample_ids": record.sample_ids,
                        "weights": record.weights.tolist(),
                        "clip_factor": record.clip_factor,
                    }
                    for step, record in records.items()
                }
            ),
        }
    }
    places = [(step, vector) for step in steps for vector in log.vectors]
    for index, (step, vector) in enumerate(places):
        header[f"{step}.{vector}"] = {
            "dtype": name,
            "shape": [log.layout.size],
            "data_offsets": [index * size, (index + 1) * size],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with create_private(target) as file:
        try:
            file.write(struct.pack("<Q", len(text)) + text)
            for step, vector in places:
                file.write(getattr(records[step], vector)().numpy().data)
                advance(step)
        except BaseException:
            os.unlink(target)
            raise
        return file.tell()
