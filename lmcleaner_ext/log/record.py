"""What the log keeps about one optimizer step besides its vectors, and how that becomes bytes.

    metadata = u32 little-endian length of the JSON | JSON | int64 sample ids (when all are integers) | float64 weights

No pickle: the JSON holds numbers, strings and lists only and is bounded by the slot's metadata area.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import ConfigurationError, LogFormatError

SampleId = int | str


@dataclass(frozen=True)
class StepRecord:
    """One logged optimizer step.

    step            index t of the step, from 0
    groups          per parameter group: the hyper-parameters that the optimizer used (lr, weight_decay, betas, ...)
    batch_id        name of the batch
    sample_ids      every draw of the step, over all micro-batches, repetitions included
    weights         float64 [len(sample_ids)]: each draw's share of the step's loss
    clip_norm       gradient norm before clipping (None: not clipped through the log)
    max_norm        the clipping bound M
    clip_factor     c = min(1, M / (norm + 1e-6))
    loss_normalizer what the loss was divided by (number of samples, or of tokens)
    absent          indices into layout.entries of parameters that had no gradient and were left alone
    """

    step: int
    groups: tuple[dict[str, Any], ...]
    batch_id: SampleId
    sample_ids: tuple[SampleId, ...]
    weights: np.ndarray
    clip_norm: float | None = None
    max_norm: float | None = None
    clip_factor: float = 1.0
    loss_normalizer: float | None = None
    absent: tuple[int, ...] = ()
    lineage: int = 0
    _vector: Callable[[int, str], Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def lr(self) -> tuple[float, ...]:
        """Learning rate of each parameter group at this step."""
        return tuple(group["lr"] for group in self.groups)

    def update(self) -> Tensor:
        """u[t] = theta[t+1] - theta[t], [P]: as logged, or rebuilt from the parameters where the log keeps gradients only."""
        assert self._vector is not None
        return self._vector(self.step, "update")

    def gradient(self) -> Tensor:
        """g[t], the gradient the optimizer consumed, [P]: as logged, or of plain SGD -(u / lr) - decay theta."""
        assert self._vector is not None
        return self._vector(self.step, "gradient")


def normalize_ids(ids: Any) -> tuple[SampleId, ...]:
    """Tuple of Python ints and strs from a list, tensor or array; raises ConfigurationError for other types."""
    if isinstance(ids, Tensor | np.ndarray):
        ids = ids.reshape(-1).tolist()
    elif isinstance(ids, int | str | np.generic):
        ids = [ids]
    if not isinstance(ids, Iterable) or isinstance(ids, bytes | bytearray | memoryview):  # bytes would iterate as ints
        raise ConfigurationError(
            f"ids are a list, tensor or array of whole numbers or texts, found {type(ids).__name__}: {ids!r}"
        )
    return tuple(_one_id(i) for i in ids)


def _one_id(identity: Any) -> SampleId:
    if isinstance(identity, np.generic) or (isinstance(identity, Tensor | np.ndarray) and identity.ndim == 0):
        identity = identity.item()
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise ConfigurationError(f"an id is an int or a str, found {type(identity).__name__}: {identity!r}")
    if isinstance(identity, int) and not -(2**63) <= identity < 2**63:
        raise ConfigurationError(f"an integer id must fit in 64 bits, found {identity}")
    if isinstance(identity, str) and not identity.isascii():
        try:
            identity.encode()
        except UnicodeEncodeError as error:
            raise ConfigurationError(f"an id is not valid Unicode: {error}") from error
    return identity


def encode_metadata(record: StepRecord) -> bytes:
    integers = all(isinstance(i, int) for i in record.sample_ids)
    head = {
        "step": record.step,
        "groups": record.groups,
        "batch_id": record.batch_id,
        "samples": len(record.sample_ids),
        "ids": None if integers else record.sample_ids,
        "clip": None if record.clip_norm is None else [record.clip_norm, record.max_norm, record.clip_factor],
        "loss_normalizer": record.loss_normalizer,
        "absent": record.absent,
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    binary = np.asarray(record.sample_ids, dtype="<i8").tobytes() if integers else b""
    return struct.pack("<I", len(text)) + text + binary + np.asarray(record.weights, dtype="<f8").tobytes()


def decode_metadata(data: bytes, lineage: int, vector: Callable[[int, str], Tensor] | None = None) -> StepRecord:
    """Parse what `encode_metadata` wrote; every length is checked against the bytes that are there."""
    try:
        (length,) = struct.unpack_from("<I", data)
        head = json.loads(data[4 : 4 + length])
        count, ids, at = int(head["samples"]), head["ids"], 4 + length
        if ids is None:
            ids = np.frombuffer(data, "<i8", count, at).tolist()
            at += 8 * count
        weights = np.frombuffer(data, "<f8", count, at)
        if len(ids) != count:
            raise ValueError(f"{len(ids)} ids for {count} samples")
        norm, bound, factor = head["clip"] or (None, None, 1.0)
        return StepRecord(
            step=int(head["step"]),
            groups=tuple(head["groups"]),
            batch_id=head["batch_id"],
            sample_ids=tuple(ids),
            weights=weights,
            clip_norm=norm,
            max_norm=bound,
            clip_factor=factor,
            loss_normalizer=head["loss_normalizer"],
            absent=tuple(head["absent"]),
            lineage=lineage,
            _vector=vector,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise LogFormatError(f"a slot's metadata does not parse: {error}") from error


def weights_array(values: Sequence[float] | Tensor | np.ndarray | None, count: int) -> np.ndarray | None:
    """float64 [count] from user-given weights, None stays None; raises ConfigurationError for what is not one number per id."""
    if values is None:
        return None
    try:
        array = np.asarray(values.tolist() if isinstance(values, Tensor) else values, dtype=np.float64).reshape(-1)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"weights are one number per sample id, found {values!r}: {error}") from error
    if not np.isfinite(array).all():
        raise ConfigurationError(f"weights are finite numbers, found {values!r}")
    if len(array) != count:
        raise ConfigurationError(f"{len(array)} weights for {count} sample ids: give one weight per id")
    return array
