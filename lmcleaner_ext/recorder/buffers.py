"""The bounded memory between the training thread, which fills a buffer, and the writer thread, which empties it.

Of a model on a GPU the buffers are pinned, and copies into them run on a stream of their own beside the training:

    device: encoded vector -> (copy stream) -> pinned buffer -> writer thread -> disk
"""

from __future__ import annotations

import mmap
import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .._native import PAGE
from ..ops import EncodedVector
from .writer import section_sizes


@dataclass
class Buffer:
    """Room for the encoded vectors of one step; every section begins at a page, so that it can be written past the page cache."""

    vectors: tuple[EncodedVector, ...]
    arriving: list[Any] = field(default_factory=list)  # CUDA events of the copies into it that may still be under way

    def wait(self) -> None:
        """Until every copy into it has arrived: before it is read, and before it is filled anew."""
        events, self.arriving = self.arriving, []  # a device that failed is reported once
        for event in events:
            event.synchronize()


class BufferPool:
    """`count` buffers, each made when it is first needed. `take` waits for a free one: that is the back-pressure."""

    def __init__(self, count: int, size: int, dtype: str, vectors: int):
        self.size, self.dtype, self.vectors = size, dtype, vectors
        self._free: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(None)

    def take(self, pinned: bool = False) -> Buffer:
        return self._free.get() or self._new(pinned)

    def give_back(self, buffer: Buffer) -> None:
        buffer.wait()
        self._free.put(buffer)

    def _new(self, pinned: bool) -> Buffer:
        sizes = section_sizes(self.size, self.dtype) * self.vectors
        begins = [0]
        for size in sizes:
            begins.append(begins[-1] + -(-size // PAGE) * PAGE)
        memory = _pages(begins[-1], pinned)
        parts = [
            memory[begin : begin + size].view(ops.payload_dtype(self.dtype) if index % 2 else torch.uint8)
            for index, (begin, size) in enumerate(zip(begins[:-1], sizes, strict=True))
        ]
        return Buffer(tuple(map(EncodedVector, parts[1::2], parts[::2])))


class HostCopies:
    """Copies encoded vectors into a buffer: from a GPU asynchronously, each device on a stream of its own, else at once."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, Any] = {}

    def start(self, buffer: Buffer, source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
        """`target`, a part of `buffer`, will have what `source` holds by the time `buffer.wait` returns."""
        device = source[0].device
        if device.type != "cuda":
            for there, here in zip(target, source, strict=True):
                there.copy_(here)
            return
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))  # the training's, which computes `source`
        with torch.cuda.stream(stream):
            for there, here in zip(target, source, strict=True):
                there.copy_(here, non_blocking=True)
                here.record_stream(stream)  # its memory is not given to anyone before it was copied
            buffer.arriving.append(stream.record_event())


def _pages(size: int, pinned: bool) -> Tensor:
    """uint8 [size] that begins at a page."""
    if pinned:
        room = torch.empty(size + PAGE, dtype=torch.uint8, pin_memory=True)
        begin = -room.data_ptr() % PAGE
        return room[begin : begin + size]
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)  # fewer page faults while it is filled for the first time
    return torch.frombuffer(memory, dtype=torch.uint8)
