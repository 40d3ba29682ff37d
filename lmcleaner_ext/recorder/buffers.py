"""The bounded memory between the training thread, which fills a buffer, and the writer thread, which empties it."""

from __future__ import annotations

import mmap
import queue
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from .storage import Vector, section_sizes

PAGE = 4096


@dataclass(frozen=True)
class Buffer:
    """Room for the encoded vectors of one step; every section begins at a page, so that it can be written past the page cache."""

    vectors: tuple[Vector, ...]
    _memory: mmap.mmap


class BufferPool:
    """`count` buffers, each made when it is first needed. `take` waits for a free one: that is the back-pressure."""

    def __init__(self, count: int, size: int, dtype: str, vectors: int):
        self.size, self.dtype, self.vectors = size, dtype, vectors
        self._free: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(None)

    def take(self) -> Buffer:
        return self._free.get() or self._new()

    def give_back(self, buffer: Buffer) -> None:
        self._free.put(buffer)

    def _new(self) -> Buffer:
        sizes = section_sizes(self.size, self.dtype) * self.vectors
        begins = [0]
        for size in sizes:
            begins.append(begins[-1] + -(-size // PAGE) * PAGE)
        memory = mmap.mmap(-1, begins[-1], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)  # fewer page faults while it is filled for the first time
        parts: list[Tensor] = []
        for index, (begin, size) in enumerate(zip(begins[:-1], sizes, strict=True)):
            dtype = ops.payload_dtype(self.dtype) if index % 2 else torch.uint8
            parts.append(
                torch.frombuffer(memory, dtype=dtype, count=size // dtype.itemsize, offset=begin)
                if size
                else torch.empty(0, dtype=dtype)
            )
        return Buffer(tuple(zip(parts[1::2], parts[::2], strict=True)), memory)
