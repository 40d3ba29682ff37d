"""Which backend computes an op: one table, one rule, no silent fallback.

A backend is asked for by the ``backend=`` keyword, by ``use_backend`` or by the environment variable
``LMCLEANER_BACKEND``, in this order; one that cannot serve the call raises ``BackendUnavailableError`` with the reason.
When nobody asks, the first backend of ``PREFERENCE`` for the tensors' device and dtype that has the op is taken. That is
the reference for float64, in which only the reference computes.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextvars import ContextVar, Token
from functools import cache
from types import TracebackType
from typing import Any

import torch

from ..errors import BackendUnavailableError, ConfigurationError

BACKENDS = ("reference", "cpu", "cuda", "triton")

PREFERENCE: dict[tuple[str, torch.dtype], tuple[str, ...]] = {
    ("cpu", torch.float32): ("cpu", "reference"),
    ("cuda", torch.float32): ("cuda", "triton", "reference"),
}
"""Best first, by device and arithmetic; whatever is not listed goes to the reference."""

_asked: ContextVar[str | None] = ContextVar("lmcleaner_backend", default=None)


class use_backend:
    """Choose the backend of every op from here on, or inside a ``with`` block: ``with use_backend("reference"): ...``.

    ``None`` returns to the default choice. Raises ValueError for an unknown name and BackendUnavailableError for one
    that cannot run on this machine.
    """

    def __init__(self, name: str | None):
        if name is not None:
            reason = unavailable_reason(name)
            if reason is not None:
                raise BackendUnavailableError(name, reason)
        self._token: Token[str | None] | None = _asked.set(name)

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _asked.reset(self._token)
            self._token = None


@cache
def unavailable_reason(name: str) -> str | None:
    """Why the backend ``name`` cannot run on this machine, or None if it can."""
    if name not in BACKENDS:
        raise ConfigurationError(f"unknown backend {name!r}; expected one of {', '.join(BACKENDS)}")
    if name == "reference":
        return None
    try:
        return _module(name).unavailable_reason()
    except ImportError as error:
        return f"it does not load: {error}"


def _module(name: str) -> Any:
    """The module of a backend, imported when it is first needed: cuda.py may not load everywhere."""
    return importlib.import_module(f".{name}", __package__)


def devices(name: str) -> tuple[str, ...]:
    """Types of the devices whose tensors a backend that is available here takes."""
    return tuple(_module(name).DEVICES)


def available_backends() -> dict[str, str | None]:
    """Every backend by name, with the reason why it cannot run here, or None if it can."""
    return {name: unavailable_reason(name) for name in BACKENDS}


def select(op: str, device: torch.device, dtype: torch.dtype) -> Callable[..., Any]:
    """The function that computes ``op`` in ``dtype`` arithmetic for tensors on ``device``."""
    asked = _asked.get() or os.environ.get("LMCLEANER_BACKEND") or None
    return _select(op, device.type, dtype, asked)


@cache
def _select(op: str, device: str, dtype: torch.dtype, asked: str | None) -> Callable[..., Any]:
    if asked is not None:
        reason = _cannot_serve(asked, op, device, dtype)
        if reason is not None:
            raise BackendUnavailableError(asked, reason)
        return _found(asked, op)
    for name in PREFERENCE.get((device, dtype), ()):
        if _cannot_serve(name, op, device, dtype) is None:
            return _found(name, op)
    return _found("reference", op)


def _found(name: str, op: str) -> Callable[..., Any]:
    function = _function(name, op)
    assert function is not None
    return function


def _function(name: str, op: str) -> Callable[..., Any] | None:
    return getattr(_module(name), op, None)


def _cannot_serve(name: str, op: str, device: str, dtype: torch.dtype) -> str | None:
    reason = unavailable_reason(name)
    if reason is not None or name == "reference":
        return reason
    if device not in devices(name):
        return f"the tensors are on the device {device!r}"
    if dtype != torch.float32:
        return f"it computes in float32 and this call is {dtype}, which the reference computes"
    if _function(name, op) is None:
        return f"it has no kernel for {op}"
    return None
