"""Where the logged vectors of a window come from, panel of parameters by panel: mapped, streamed past the page cache, or read by the
device itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ..log import EncodedVector, VectorWindow
from .gpu_direct import GpuDirect, PanelRead

ENOUGH_RESIDENT = 0.5  # of a window in the page cache; below it, reading past the cache is faster


@dataclass(frozen=True)
class Panel:
    """Elements [begin, end) of the logged vectors, one per step; read: how they get to the device, if it reads them itself."""

    begin: int
    end: int
    gradients: Sequence[EncodedVector]
    read: PanelRead | None = None


class Source(Protocol):
    @property
    def unverified(self) -> Sequence[VectorWindow]:
        """What must be verified over a panel's elements before they are used."""

    def panels(self, size: int, elements: int) -> Iterator[Panel]:
        """All `size` elements, in order, `elements` at a time."""


class Mapped:
    """The vectors where they lie in mapped memory; where no logged vectors are read, zeros."""

    def __init__(self, window: VectorWindow | None, steps: int):
        nothing = EncodedVector(torch.empty(0), torch.empty(0, dtype=torch.uint8))
        self.unverified = () if window is None else (window,)
        self._vectors = [nothing] * steps if window is None else window.vectors

    def panels(self, size: int, elements: int) -> Iterator[Panel]:
        for begin in range(0, size, elements):
            end = min(begin + elements, size)
            yield Panel(begin, end, [vector.narrow(begin, end) for vector in self._vectors])


class Streamed:
    """Copies, read and verified one panel ahead of the kernel: a panel is what one checksum covers, and valid until the next one."""

    unverified = ()

    def __init__(self, window: VectorWindow):
        self._window = window

    def panels(self, size: int, elements: int) -> Iterator[Panel]:
        for begin, end, gradients in self._window.panels():
            yield Panel(begin, end, gradients)


class Direct:
    """The mapped vectors for their shapes and block exponents; the payloads are verified when they come back from the device."""

    unverified = ()

    def __init__(self, window: VectorWindow, steps: int, direct: GpuDirect):
        self._window, self._mapped, self._direct = window, Mapped(window, steps), direct
        window.verify(0, 0)

    def panels(self, size: int, elements: int) -> Iterator[Panel]:
        for panel in self._mapped.panels(size, elements):
            yield replace(panel, read=self._direct.read(self._window, panel.begin, panel.end))


def source_of(window: VectorWindow | None, steps: int, *, host: bool, direct: GpuDirect | None) -> Source:
    """The quickest source; host: it is the host that computes; direct: what lets the device read files, where that was asked for."""
    if window is None:
        return Mapped(None, steps)
    if direct is not None:
        return Direct(window, steps, direct)
    if host and window.resident() < ENOUGH_RESIDENT:
        return Streamed(window)
    return Mapped(window, steps)
