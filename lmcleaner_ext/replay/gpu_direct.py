"""Logged payloads read from their file straight into device memory, by kvikio (GPUDirect Storage); LMCLEANER_GPUDIRECT=1 asks for it.

    disk -> device -> kernel -> results           block exponents, states and results go through pinned memory, as without
              \\-> pinned memory -> checksums      before the results are taken

What is checked is what arrived: it is copied back, in the direction of the bus that is free, while the kernel runs.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from ..errors import BackendUnavailableError, ConfigurationError, LogTruncatedError
from ..log import VectorWindow

VARIABLE = "LMCLEANER_GPUDIRECT"


def missing() -> str | None:
    """Why kvikio cannot read into device memory here; None if it can.

    Its own fallback, reading through host memory, counts only where KVIKIO_COMPAT_MODE=ON asks for it.
    """
    try:
        kvikio, defaults, driver = map(importlib.import_module, ("kvikio", "kvikio.defaults", "kvikio.cufile_driver"))
        undecided = defaults.get("compat_mode") == kvikio.CompatMode.AUTO
        if undecided and not driver.get("is_gds_available"):
            return (
                "there is no GPUDirect Storage driver (nvidia-fs), and kvikio would read through host memory. "
                "KVIKIO_COMPAT_MODE=ON allows that, OFF insists on cuFile"
            )
    except ModuleNotFoundError as error:
        if error.name == "kvikio":
            return "kvikio is not installed: pip install kvikio-cu13"
        return f"kvikio lacks a module: {error}"
    except Exception as error:  # it loads libraries and opens a driver: whatever keeps it from that is the reason
        return f"kvikio does not load: {error}"
    return None


class GpuDirect:
    """The files of a log, opened by kvikio."""

    def __init__(self) -> None:
        self._files: dict[str, Any] = {}

    @classmethod
    def if_asked(cls) -> GpuDirect | None:
        """None unless LMCLEANER_GPUDIRECT is 1; raises BackendUnavailableError where that cannot be served."""
        value = os.environ.get(VARIABLE, "")
        if value not in ("", "0", "1"):
            raise ConfigurationError(f"{VARIABLE} is 0 or 1, found {value!r}")
        if value != "1":
            return None
        if reason := missing():
            raise BackendUnavailableError("gpudirect", reason)
        return cls()

    def read(self, window: VectorWindow, begin: int, end: int) -> PanelRead:
        """To read the payloads' elements [begin, end) of every vector of a window."""
        path, offsets, nbytes = window.in_file(begin, end)
        if path not in self._files:
            self._files[path] = importlib.import_module("kvikio").CuFile(path, "r")
        return PanelRead(self._files[path], offsets, nbytes, window, begin, end)

    def close(self, reads: Sequence[PanelRead]) -> None:
        """Wait for what is still under way: memory must not be written to once it is given back."""
        for read in reads:
            read.abandon()
        for file in self._files.values():
            file.close()
        self._files.clear()


class PanelRead:
    """One panel's payloads: `start`, `arrive`, and `verify` when the copy back is done."""

    def __init__(self, file: Any, offsets: list[int], nbytes: int, window: VectorWindow, begin: int, end: int):
        self._file, self._offsets, self._nbytes = file, offsets, nbytes
        self._window, self._begin, self._end = window, begin, end
        self._futures: list[Any] = []

    @property
    def count(self) -> int:
        return len(self._offsets)

    def start(self, device: Tensor, host: Tensor) -> None:
        """Begin to read all vectors, one after the other in `device`, bytes; `host` is where they will go back to."""
        nbytes = self._nbytes
        self._device, self._host = device[: self.count * nbytes], host[: self.count * nbytes]
        for i, offset in enumerate(self._offsets):
            self._futures.append(self._file.pread(self._device[i * nbytes : (i + 1) * nbytes], nbytes, offset))

    def arrive(self) -> None:
        """Wait until everything is on the device, and start the copy back on the current stream.

        Raises LogTruncatedError, SlotOverwrittenError, or what kvikio raises where the file itself is sound.
        """
        while self._futures:
            try:
                found = self._futures.pop().get()
            except Exception:
                self._window.check()
                raise
            if found != self._nbytes:
                self._window.check()
                raise LogTruncatedError(
                    f"kvikio read {found} bytes of a logged vector where {self._nbytes} were asked for: nothing was changed. "
                    f"If `lmcleaner log verify` finds the log whole, unset {VARIABLE}"
                )
        self._host.copy_(self._device, non_blocking=True)

    def verify(self) -> None:
        """Check what has come back; raises LogCorruptError, SlotOverwrittenError."""
        first = self._host.data_ptr()
        self._window.verify(self._begin, self._end, [first + i * self._nbytes for i in range(self.count)])

    def abandon(self) -> None:
        while self._futures:
            with suppress(Exception):
                self._futures.pop().get()
