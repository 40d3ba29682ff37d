"""Vectors as they lie in the mapped file: no copy until a kernel reads them, no number used before its checksum is."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import ops
from .._native import CHUNK, PAGE, PanelStream, RingReader, VectorChecks
from ..ops import EncodedVector

PANEL_BYTES: int = CHUNK  # of one vector's payload
SAMPLED_PAGES = 16  # of each vector
READERS = 4  # threads of a stream: they wait for the disk, not for a core

_libc = ctypes.CDLL(None)


class VectorWindow(Sequence[EncodedVector]):
    """Several vectors of one ring. `verify` checks a range of all of them at once, on all cores."""

    def __init__(self, ring: RingReader, slots: Sequence[tuple[int, int]], dtype: str, index: int, lease: bool = False):
        self._lease = (
            ring.lease([slot for slot, _ in slots], [generation for _, generation in slots]) if lease else None
        )
        self._ring, self._slots, self._index = ring, list(slots), index
        self._itemsize = ops.payload_dtype(dtype).itemsize
        self.vectors = [section_vector(ring, slot, generation, dtype, index) for slot, generation in slots]
        self._scales_verified = False

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.vectors[index]

    def decode(self, index: int, dtype: torch.dtype) -> Tensor:
        """One vector in full, [P]; not verified."""
        return ops.decode(self.vectors[index].payload, self.vectors[index].scales, out_dtype=dtype)

    def verify(self, begin: int, end: int, copies: Sequence[int] = ()) -> None:
        """Check the checksums over elements [begin, end); raises LogCorruptError(step, chunk), SlotOverwrittenError.

        The block exponents are few and are checked whole, once. copies: addresses of what was read by `in_file`, one per vector,
        checked in the place of the mapped bytes.
        """
        if not self.vectors:
            return
        self._verify_scales()
        self._verify(2 * self._index + 1, begin * self._itemsize, end * self._itemsize, copies)

    def _verify_scales(self) -> None:
        if not self._scales_verified:
            size = self.vectors[0].scales.numel()
            for slot, _ in self._slots:  # all at once; touched one by one, each would also fetch megabytes ahead of it
                self._ring.advise(slot, 2 * self._index, 0, size)
            self._verify(2 * self._index, 0, size)
            self._scales_verified = True

    def _verify(self, section: int, begin: int, end: int, copies: Sequence[int] = ()) -> None:
        slots, generations = map(list, zip(*self._slots, strict=True))
        self._ring.verify(slots, generations, section, begin, end, torch.get_num_threads(), list(copies))

    def in_file(self, begin: int, end: int) -> tuple[str, list[int], int]:
        """(path, offset of each vector, bytes of one): where the payloads' elements [begin, end) lie, for who reads the file itself.

        The path leads to the open file, whatever its name is by now. The bytes reach to the end of their page: the checksums do.
        `begin` is a multiple of a checksum chunk's elements, and so is `end` unless it is the vectors' end.
        """
        places = [self._ring.place(slot, 2 * self._index + 1) for slot, _ in self._slots]
        nbytes = -(-(end - begin) * self._itemsize // PAGE) * PAGE
        return f"/proc/self/fd/{places[0][0]}", [at + begin * self._itemsize for _, at in places], nbytes

    @property
    def checks(self) -> VectorChecks:
        """The payloads' checksums, for a kernel that takes them in the pass in which it reads; exponents are verified here."""
        self._verify_scales()
        slots, generations = map(list, zip(*self._slots, strict=True))
        return self._ring.chunk_checks(slots, generations, 2 * self._index + 1)

    def resident(self) -> float:
        """The share of the payloads that is in the page cache, from a sample of their pages."""
        pages = [
            vector.payload.data_ptr() + at
            for vector in self.vectors
            for at in range(0, vector.payload.numel() * self._itemsize, max(PAGE, vector.nbytes // SAMPLED_PAGES))
        ]
        answer = ctypes.c_ubyte()
        there = 0
        for address in pages:
            failed = _libc.mincore(ctypes.c_void_p(address // PAGE * PAGE), ctypes.c_size_t(1), ctypes.byref(answer))
            there += failed != 0 or answer.value & 1
        return there / len(pages) if pages else 1.0

    def panels(self) -> Iterator[tuple[int, int, list[EncodedVector]]]:
        """(begin, end, the elements [begin, end) of every vector), verified: all of them once, in order, past the page cache.

        For windows larger than memory: a thread reads and checks one panel ahead, into two buffers of PANEL_BYTES per vector. What was
        yielded is valid until the next one. Raises LogCorruptError, SlotOverwrittenError.
        """
        if not self.vectors:
            return
        size, panel = self.vectors[0].payload.numel(), PANEL_BYTES // self._itemsize
        self.verify(0, 0)
        slots, generations = map(list, zip(*self._slots, strict=True))
        stream = PanelStream(self._ring, slots, generations, 2 * self._index + 1, READERS)
        for begin in range(0, size, panel):
            end = min(begin + panel, size)
            dtype, nbytes = self.vectors[0].payload.dtype, (end - begin) * self._itemsize
            yield (
                begin,
                end,
                [
                    EncodedVector(_view((address, nbytes), dtype, stream), vector.narrow(begin, end).scales)
                    for address, vector in zip(stream.next(), self.vectors, strict=True)
                ],
            )

    def check(self) -> None:
        """Raise SlotOverwrittenError if a trainer has overwritten one of the steps since: call it after the last use."""
        if self._slots:
            self._ring.check([slot for slot, _ in self._slots], [generation for _, generation in self._slots])


def section_vector(ring: RingReader, slot: int, generation: int, dtype: str, index: int) -> EncodedVector:
    """What a slot holds of its vector number `index`, as it lies in the mapped file; not verified."""
    return EncodedVector(
        _view(ring.section(slot, generation, 2 * index + 1), ops.payload_dtype(dtype), ring),
        _view(ring.section(slot, generation, 2 * index), torch.uint8, ring),
    )


def _view(place: tuple[int, int], dtype: torch.dtype, owner: object) -> Tensor:
    """A tensor over mapped memory at (address, bytes); it holds `owner`, the mapping, alive."""
    address, nbytes = place
    if nbytes == 0:
        return torch.empty(0, dtype=dtype)
    buffer = (ctypes.c_uint8 * nbytes).from_address(address)
    buffer._owner = owner  # type: ignore[attr-defined]
    return torch.frombuffer(buffer, dtype=dtype)
