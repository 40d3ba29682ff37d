"""Tracked gradients with linear layers and embeddings as factors.

Over the T tokens of one sample, the weight [out, in] of a linear layer has the gradient

    dW = B^T A        A [T, in]: the layer's inputs, B [T, out]: the gradients of its outputs

which takes T (in + out) numbers instead of in * out. An embedding is such a layer of one-hot rows: A [T, width] are the gradients of
its outputs, B [T, rows] says which row each belongs to. A tracked gradient stored that way is a *record* of encoded elements:

    the parameters that are kept dense, in the order of the layout | of each of the others A | B

Every A and B begins at a block: numbers of different magnitude share no exponent. `tokens` says which is which: T of each parameter
kept as factors, None of each dense one. A record that is longer than a slot of the ring lies in several consecutive slots, all
of them full except the last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from .. import ops
from .._native import Ring, RingReader
from ..errors import LogFormatError
from ..layout import ParameterEntry, ParameterLayout
from .record import SampleId
from .vectors import EncodedVector, section_vector

Tokens = tuple[int | None, ...]  # per parameter


def factors_are_smaller(entry: ParameterEntry, tokens: int) -> bool:
    """Whether A and B over so many tokens, in whole blocks, take less than the matrix."""
    if len(entry.shape) != 2:
        return False
    return sum(_blocks(tokens * width) for width in entry.shape) < entry.end - entry.begin


def _blocks(count: int) -> int:
    """Elements of as many whole blocks as `count` elements need."""
    return ops.block_count(count) * ops.BLOCK


class RecordLayout:
    """Where the parts of one record lie, in elements.

    places: per parameter the beginning of its dense values, or of its A and its B;  size: of the record, a multiple of a block.
    Raises ValueError for tokens that no record can have.
    """

    def __init__(self, layout: ParameterLayout, tokens: Tokens):
        self.layout, self.tokens = layout, tokens
        pairs = list(zip(layout.entries, tokens, strict=True))
        if any(t is not None and (t < 0 or len(entry.shape) != 2) for entry, t in pairs):
            raise ValueError("factors are kept of matrices only, over at least 0 tokens")
        dense = [entry.end - entry.begin if t is None else 0 for entry, t in pairs]
        ends = list(accumulate(dense))
        at = _blocks(ends[-1])
        self.places: list[tuple[int, ...]] = []
        for (entry, t), end, count in zip(pairs, ends, dense, strict=True):
            if t is None:
                self.places.append((end - count,))
            else:
                a, b = at, at + _blocks(t * entry.shape[1])
                self.places.append((a, b))
                at = b + _blocks(t * entry.shape[0])
        self.size = at

    @classmethod
    def expected(cls, layout: ParameterLayout, layers: Mapping[int, int], tokens: int) -> RecordLayout:
        """Of a sample of so many tokens, each passing once through each of the layers[i] layers that have parameter i as weight."""
        counts = [tokens * layers.get(i, 0) for i in range(len(layout.entries))]
        pairs = list(zip(layout.entries, counts, strict=True))
        return cls(layout, tuple(n if n and factors_are_smaller(entry, n) else None for entry, n in pairs))


@dataclass
class TrackedUse:
    """What the ring of samples holds of one (step, id): its slots so far, (slot, generation, number) each."""

    step: int
    sample_id: SampleId
    parts: int
    tokens: Tokens | None
    slots: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """All its parts are there, in one run."""
        numbers = [number for _, _, number in self.slots]
        return len(numbers) == self.parts and all(b == a + 1 for a, b in pairwise(numbers))


def encode_part(step: int, identity: SampleId, part: int, parts: int, tokens: Tokens | None) -> bytes:
    """Metadata of one slot. The first part of a record names the tokens; a dense gradient has one part and names none."""
    head: dict[str, object] = {"step": step, "sample_id": identity}
    if tokens is not None:
        head |= {"part": part, "parts": parts}
        if part == 0:
            head["tokens"] = tokens
    return json.dumps(head, separators=(",", ":")).encode()


def decode_part(data: bytes) -> tuple[TrackedUse, int]:
    """(the use without its slots, number of this part); raises LogFormatError."""
    try:
        head = json.loads(data)
        part, parts, tokens = int(head.get("part", 0)), int(head.get("parts", 1)), head.get("tokens")
        if not 0 <= part < parts or not isinstance(head["sample_id"], int | str):
            raise ValueError(f"part {part} of {parts} of sample {head['sample_id']!r}")
        if tokens is not None:
            tokens = tuple(None if t is None else int(t) for t in tokens)
        return TrackedUse(int(head["step"]), head["sample_id"], parts, tokens), part
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LogFormatError(f"the metadata of a tracked gradient does not parse: {error}") from error


def sample_tokens(ring: Ring) -> int | None:
    """The tokens for which a slot of a ring of samples was made, None where it holds dense gradients; raises LogFormatError."""
    try:
        tokens = json.loads(ring.manifest()).get("sample_tokens")
        return None if tokens is None else int(tokens)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise LogFormatError(f"{ring.path}: the manifest does not parse: {error}") from error


class FactoredVector:
    """One tracked gradient [P], made dense, in the layout's dtype, where it is read: `narrow` multiplies the rows it needs."""

    def __init__(self, record: RecordLayout, parts: Sequence[EncodedVector], verify: Callable[[], None]):
        self.record, self._parts, self._verify = record, parts, verify

    @property
    def nbytes(self) -> int:
        """As stored."""
        return sum(part.nbytes for part in self._parts)

    @property
    def payload(self) -> Tensor:
        """All of it, [P], computed anew at each call."""
        return self.narrow(0, self.record.layout.size).payload

    @property
    def scales(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def narrow(self, begin: int, end: int) -> EncodedVector:
        """Elements [begin, end), unscaled; raises LogCorruptError, SlotOverwrittenError."""
        self._verify()
        out = torch.empty(end - begin, dtype=self.record.layout.dtype)
        for entry, tokens, place in zip(
            self.record.layout.entries, self.record.tokens, self.record.places, strict=True
        ):
            lo, hi = max(begin, entry.begin), min(end, entry.end)
            if lo < hi:
                self._fill(out[lo - begin : hi - begin], entry, tokens, place, lo - entry.begin)
        return EncodedVector(out, self.scales)

    def factors(self, index: int) -> tuple[Tensor, Tensor]:
        """(A [T, in], B [T, out]) of parameter `index`, which is kept as factors."""
        self._verify()
        (rows, columns), tokens = self.record.layout.entries[index].shape, self.record.tokens[index]
        assert tokens is not None
        a, b = self.record.places[index]
        return (
            self._elements(a, tokens * columns).view(tokens, columns),
            self._elements(b, tokens * rows).view(tokens, rows),
        )

    def _fill(self, out: Tensor, entry: ParameterEntry, tokens: int | None, place: tuple[int, ...], begin: int) -> None:
        """out: elements [begin, begin + len(out)) of one parameter."""
        if tokens is None:
            out.copy_(self._elements(place[0] + begin, len(out)))
            return
        columns, end = entry.shape[1], begin + len(out)
        a, b = self.factors(self.record.layout.entries.index(entry))
        first, stop = begin // columns, -(-end // columns)
        if begin % columns or end % columns:  # not whole rows
            out.copy_((b[:, first:stop].T @ a).reshape(-1)[begin - first * columns : end - first * columns])
        else:
            torch.mm(b[:, first:stop].T, a, out=out.view(-1, columns))

    def _elements(self, begin: int, count: int) -> Tensor:
        """Decoded elements of the record."""
        out = torch.empty(count, dtype=self.record.layout.dtype)
        at = 0  # where the part begins in the record
        for part in self._parts:
            size = part.payload.numel()
            lo, hi = max(begin - at, 0), min(begin + count - at, size)
            if lo < hi:
                first = lo // ops.BLOCK * ops.BLOCK
                piece = part.narrow(first, hi)
                decoded = ops.decode(piece.payload, piece.scales, out_dtype=out.dtype)
                out[at + lo - begin : at + hi - begin] = decoded[lo - first :]
            at += size
        return out


class FactoredWindow(Sequence[FactoredVector]):
    """Tracked gradients of one ring, with the interface of a VectorWindow. Checksums are verified before the first number is used."""

    def __init__(self, ring: RingReader, uses: Sequence[TrackedUse], layout: ParameterLayout, dtype: str):
        self._ring, self._layout, self._verified = ring, layout, False
        self._slots = [(slot, generation) for use in uses for slot, generation, _ in use.slots]
        self.vectors = [self._vector(use, dtype) for use in uses]

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.vectors[index]

    def decode(self, index: int, dtype: torch.dtype) -> Tensor:
        """One gradient in full, [P]."""
        return self.vectors[index].payload.to(dtype)

    def verify(self, begin: int, end: int) -> None:
        """Check every checksum of these slots, once: any range of a matrix needs all of its tokens."""
        if not self._verified and self._slots:
            for slot, generation in self._slots:
                for section in (0, 1):
                    size = self._ring.section(slot, generation, section)[1]
                    self._ring.verify([slot], [generation], section, 0, size, torch.get_num_threads())
            self._verified = True

    def check(self) -> None:
        """Raise SlotOverwrittenError if a trainer has overwritten one of the slots since: call it after the last use."""
        if self._slots:
            self._ring.check([slot for slot, _ in self._slots], [generation for _, generation in self._slots])

    def _vector(self, use: TrackedUse, dtype: str) -> FactoredVector:
        try:
            record = RecordLayout(self._layout, use.tokens or ())
        except ValueError as error:
            raise LogFormatError(f"the gradient of sample {use.sample_id!r} at step {use.step}: {error}") from error
        parts = [section_vector(self._ring, slot, generation, dtype, 0) for slot, generation, _ in use.slots]
        sizes = [part.payload.numel() for part in parts]
        whole = sum(sizes) == record.size and not any(size % ops.BLOCK for size in sizes)
        if not whole or any(p.scales.numel() != ops.scale_count(n, dtype) for p, n in zip(parts, sizes, strict=True)):
            raise LogFormatError(
                f"the gradient of sample {use.sample_id!r} at step {use.step} has {sizes} elements, the log's layout needs {record.size}: "
                "this file was not written by TrainingLogger, or was altered"
            )
        return FactoredVector(record, parts, lambda: self.verify(0, 0))
