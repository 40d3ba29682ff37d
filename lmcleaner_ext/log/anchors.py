"""Anchors: full-precision parameters and optimizer state every so many steps, as safetensors files beside the ring.

    anchors/<step>-<lineage>.safetensors     theta [P], one [P] tensor per optimizer state, steps [parameters] (float64; -1: no state yet);
                                             and, of what the recorder averages: <name> [P], <name>_updates [1] (float64)

A compressed anchor has the planes <name>.0, <name>.1, ... in place of each tensor (compression.py). Written under another name,
synced, then renamed: a reader sees a whole anchor or none. Mode 0600.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..digest import digest_tensors
from ..errors import LogCorruptError
from ..files import check_private, replace_private
from .compression import compress, decompress

NAME = re.compile(r"^(\d{12})-(\d{6})\.safetensors$")

UPDATES = "_updates"  # the end of a name: of a tensor that counts the steps of the average beside it


@dataclass(frozen=True)
class Anchor:
    """One anchor on disk. Tensors are read, and checked against their digest, when asked for."""

    path: Path
    step: int
    lineage: int

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The file, and LogCorruptError for whatever in it does not read."""
        try:
            with safe_open(self.path, framework="pt") as file:
                yield file
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise LogCorruptError(self.step, -1, f"anchor {self.path.name} does not read: {error}") from error

    def names(self) -> set[str]:
        with self._opened() as file:
            return set(json.loads(file.metadata()["digests"]))

    def state_names(self) -> set[str]:
        """Those that are optimizer state: neither theta nor a counter nor an average."""
        names = self.names()
        averages = {name for name in names if name + UPDATES in names}
        return names - {"theta", "steps"} - averages - {name + UPDATES for name in averages}

    def tensor(self, name: str) -> Tensor:
        """One tensor, verified; raises LogCorruptError when its bytes are not what was written."""
        with self._opened() as file:
            digests, planes = json.loads(file.metadata()["digests"]), _planes(file)
            if planes is None:
                tensor = file.get_tensor(name)
            else:
                dtype, count = getattr(torch, planes[name][0]), planes[name][1]
                frames = [file.get_tensor(f"{name}.{k}") for k in range(dtype.itemsize)]
                tensor = decompress(frames, dtype, count)
        if name not in digests or digest_tensors([tensor], like=digests[name]) != digests[name]:
            raise LogCorruptError(self.step, -1, f"anchor {self.path.name}: {name} does not match its digest")
        return tensor

    @property
    def corrected(self) -> bool:
        """Whether the weights were corrected here while the run went on: they are not what the step before led to."""
        with self._opened() as file:
            return file.metadata().get("corrected") == "1"

    @property
    def nbytes(self) -> tuple[int, int]:
        """(bytes of the file, bytes that its tensors have uncompressed)."""
        stored = self.path.stat().st_size
        with self._opened() as file:
            planes = _planes(file)
            if planes is None:
                return stored, stored
            return stored, sum(getattr(torch, dtype).itemsize * count for dtype, count in planes.values())

    def digest(self, name: str = "theta") -> str:
        with self._opened() as file:
            return json.loads(file.metadata()["digests"])[name]


def _planes(file: Any) -> dict[str, list[Any]] | None:
    """{name: [dtype, elements]} of an open compressed anchor, None for an uncompressed one."""
    metadata = file.metadata()
    return json.loads(metadata["planes"]) if "planes" in metadata else None


def write_anchor(
    folder: Path,
    step: int,
    lineage: int,
    tensors: dict[str, Tensor],
    durable: bool,
    corrected: bool = False,
    compression: str | None = None,
) -> Anchor:
    """Write and rename; `durable` syncs file and folder first. `compression`: None or "zstd"."""
    target = folder / f"{step:012d}-{lineage:06d}.safetensors"
    digests = {name: digest_tensors([tensor]) for name, tensor in tensors.items()}
    metadata = {
        "step": str(step),
        "lineage": str(lineage),
        "digests": json.dumps(digests),
        "corrected": str(int(corrected)),
    }
    if compression is not None:
        planes = {name: [str(t.dtype).removeprefix("torch."), t.numel()] for name, t in tensors.items()}
        metadata |= {"compression": compression, "planes": json.dumps(planes)}
        tensors = {f"{name}.{k}": frame for name, t in tensors.items() for k, frame in enumerate(compress(t))}
    replace_private(target, lambda file: save_file(tensors, file.name, metadata=metadata), durable)
    return Anchor(target, step, lineage)


def list_anchors(folder: Path) -> list[Anchor]:
    """All anchors, oldest step first; of several lineages at one step the newest wins."""
    found: dict[int, Anchor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        match = NAME.match(path.name)
        if match is None:
            continue
        check_private(path)
        found[int(match[1])] = Anchor(path, int(match[1]), int(match[2]))
    return [found[step] for step in sorted(found)]
