"""Replay a window on a GPU while log and state stay on the host: memory of any size flows through a few panels.

    disk and host memory -> pinned panel -> (copy stream) -> device -> kernel -> pinned panel -> host memory

Three panels take turns, so that the host fills one while another is copied and a third is computed. The numbers are those
of the kernel run on everything at once: it is elementwise.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .._native import PAGE
from ..ops import dispatch
from .gpu_direct import GpuDirect, PanelRead

SLOTS = 3
PANEL_BYTES = 256 << 20  # of one panel with all its steps and states
ALIGNMENT: int = PAGE  # of a tensor within a panel: GPUDirect reads in pages
COPY_THREADS = min(8, os.cpu_count() or 1)  # one thread does not fill the bus


def replay_device(device: torch.device | None, backend: str | None, dtype: torch.dtype) -> torch.device | None:
    """Where a window should be replayed for a model on `device`: None is the host, where log and state lie.

    A GPU when the model is on one and has a kernel for this arithmetic, or when a GPU backend was asked for.
    Raises BackendUnavailableError where that cannot run.
    """
    if backend in ("cuda", "triton"):
        with ops.use_backend(backend):
            if "cpu" in dispatch.devices(backend):
                return None  # interpreted: it takes the host's tensors as they are
            gpu = device if device is not None and device.type == "cuda" else torch.device("cuda")
            dispatch.select("optimizer_replay_window_", gpu, dtype)
            return gpu
    if backend is not None or device is None or device.type != "cuda" or dtype != torch.float32:
        return None
    return device if any(ops.available_backends()[name] is None for name in ("cuda", "triton")) else None


@dataclass
class _Slot:
    """One panel: pinned memory and device memory of the same layout, and the results that the host still waits for."""

    stream: Any = None  # a CUDA stream of its own for copies; None on the CPU, where the tests run this code
    host: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    device: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    targets: list[Tensor] = field(default_factory=list)  # host tensors to write results to, in the panel's order
    places: list[int] = field(default_factory=list)
    read: PanelRead | None = None  # how the gradients come, where not from pinned memory
    arrived: Any = None  # events
    done: Any = None


class DevicePanels:
    """optimizer_replay_window_ on `device`, for panels given one after the other as windows on the CPU.

    `submit` returns at once; results are in the given tensors after `finish`, which returns the sum of delta^2 over the panels
    since the last one. Use as a context manager: leaving it, by an error too, waits for the device.
    """

    def __init__(self, device: torch.device, backend: str | None = None):
        self._device, self._backend, self._cuda = device, backend, device.type == "cuda"
        self.direct = GpuDirect.if_asked()
        self._slots = [_Slot(torch.cuda.Stream(device) if self._cuda else None) for _ in range(SLOTS)]
        self._compute = torch.cuda.Stream(device) if self._cuda else None
        self._pool = ThreadPoolExecutor(COPY_THREADS)
        self._sent: tuple[_Slot, ops.ReplayWindow] | None = None
        self._squares: list[Tensor] = []
        self._count = 0

    def __enter__(self) -> DevicePanels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if self.direct is not None:
            self.direct.close([slot.read for slot in self._slots if slot.read is not None])
        if self._cuda:
            torch.cuda.synchronize(self._device)  # the panels' memory must not be used when it is given back

    def submit(self, panel: ops.ReplayWindow, read: PanelRead | None = None) -> None:
        """`read`: how the gradients come from the log's file; what `panel` has for them then only tells their shapes."""
        slot = self._slots[self._count % SLOTS]
        self._count += 1
        self._collect(slot)
        on_device = self._send(slot, panel, read)
        self._run()  # the panel before: it was copied while this one was filled
        self._sent = (slot, on_device)

    def finish(self) -> float:
        self._run()
        for slot in self._slots:
            self._collect(slot)
        squares, self._squares = [float(x.sum()) for x in self._squares], []
        return sum(squares)

    # -- the three stages ---------------------------------------------------------------------------------------------

    def _send(self, slot: _Slot, panel: ops.ReplayWindow, read: PanelRead | None) -> ops.ReplayWindow:
        """Fill the pinned panel and start its copy; the window as it will be on the device."""
        slot.targets = panel.updated()
        inputs = [*(x for vector in panel.injections for x in vector), *(v.scales for v in panel.gradients)]
        inputs += [] if panel.diagonal is None else [panel.diagonal]
        inputs = [x for x in (*inputs, *(v.payload for v in panel.gradients)) if x.numel()]
        tensors = [*slot.targets, *inputs]
        copied = tensors if read is None else tensors[: -read.count]  # the gradients are the last ones
        slot.places, at = [], 0
        for x in tensors:
            slot.places.append(at)
            at += -(-x.nbytes // ALIGNMENT) * ALIGNMENT
        if len(slot.host) < at:
            slot.host = torch.empty(at, dtype=torch.uint8, pin_memory=self._cuda)
            slot.device = torch.empty(at, dtype=torch.uint8, device=self._device)
            if self._cuda:  # that memory may still be in use by what was queued before
                slot.stream.wait_stream(torch.cuda.current_stream(self._device))
                if read is not None:  # which knows no stream
                    slot.stream.synchronize()
        if read is not None:
            slot.read, at = read, slot.places[len(copied)]
            read.start(slot.device[at:], slot.host[at:])
        staged = [_part(slot.host, place, x) for place, x in zip(slot.places, copied, strict=False)]
        list(self._pool.map(Tensor.copy_, staged, copied))
        with self._on(slot.stream):
            slot.device[:at].copy_(slot.host[:at], non_blocking=True)
            slot.arrived = self._event()
        there = {id(x): _part(slot.device, place, x) for place, x in zip(slot.places, tensors, strict=True)}

        def moved(x: Tensor) -> Tensor:
            return there[id(x)] if x.numel() else x.to(self._device)

        return panel.mapped(moved, lambda v: ops.EncodedVector(moved(v.payload), moved(v.scales)))

    def _run(self) -> None:
        """The kernel on the panel that was sent last, and the copy of its results back to pinned memory."""
        if self._sent is None:
            return
        (slot, panel), self._sent = self._sent, None
        if slot.read is not None:
            with self._on(slot.stream):
                slot.read.arrive()
        results = slot.places[len(slot.targets) - 1] + slot.targets[-1].nbytes
        with self._on(self._compute):
            self._wait(slot.arrived)
            self._squares.append(ops.optimizer_replay_window_(panel, backend=self._backend))
            computed = self._event()
        with self._on(slot.stream):
            self._wait(computed)
            slot.host[:results].copy_(slot.device[:results], non_blocking=True)
            slot.done = self._event()

    def _collect(self, slot: _Slot) -> None:
        """Wait for a panel's results and write them where they belong."""
        if not slot.targets:
            return
        if slot.done is not None:
            slot.done.synchronize()
        if slot.read is not None:
            slot.read.verify()
        staged = [_part(slot.host, place, x) for place, x in zip(slot.places, slot.targets, strict=False)]
        list(self._pool.map(Tensor.copy_, slot.targets, staged))
        slot.targets, slot.done, slot.read = [], None, None

    # -- streams; on the CPU everything is in order already ------------------------------------------------------------

    def _on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.stream(stream) if self._cuda else contextlib.nullcontext()

    def _event(self) -> Any:
        return torch.cuda.current_stream(self._device).record_event() if self._cuda else None

    def _wait(self, event: Any) -> None:
        if self._cuda:
            torch.cuda.current_stream(self._device).wait_event(event)


@contextlib.contextmanager
def replaying(device: torch.device | None, backend: str | None, dtype: torch.dtype) -> Iterator[DevicePanels | None]:
    """Where windows are replayed for a model on `device`: the panels of a GPU, or None and the host's backend chosen."""
    gpu = replay_device(device, backend, dtype)
    with (
        # a GPU's backend is for the windows alone: everything else lies on the host
        ops.use_backend(backend) if backend is not None and gpu is None else contextlib.nullcontext(),
        DevicePanels(gpu, backend) if gpu is not None else contextlib.nullcontext() as through,
    ):
        yield through


def panel_elements(bytes_per_element: float, chunk: int) -> int:
    """How many elements a panel should have: a multiple of `chunk`, the elements that one checksum covers."""
    return max(1, int(PANEL_BYTES / bytes_per_element / chunk)) * chunk


def _part(buffer: Tensor, place: int, like: Tensor) -> Tensor:
    """The bytes of `buffer` from `place` on, as a tensor like `like`."""
    return buffer[place : place + like.nbytes].view(like.dtype).view(like.shape)
