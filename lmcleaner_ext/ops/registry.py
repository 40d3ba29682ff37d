"""The ops as ``torch.ops.lmcleaner.*``: what every op file registers here is its schema, its kernel and its fake kernel.

One kernel per op serves every device: it checks the arguments and hands them to the backend that dispatch.py chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .window import Window

_library = torch.library.Library("lmcleaner", "DEF")  # the registrations live as long as this object


def register(kernel: Callable[..., Any], fake: Callable[..., Any], updates: Sequence[str] = ()) -> None:
    """Make ``kernel`` an op of its name without the leading underscore, with the schema of its signature.

    fake: what it returns, for tracing; updates: the arguments that it changes in place.
    """
    _register(kernel, fake, torch.library.infer_schema(kernel, mutates_args=updates))


def register_window(window: type[Window], kernel: Callable[..., Any], fake: Callable[..., Any], returns: str) -> None:
    """The same for a kernel that takes a window: its fields are the op's arguments. returns: in torch.library's language."""

    def flat(*arguments: Any) -> Any:
        return kernel(window.of(*arguments))

    flat.__name__ = kernel.__name__
    _register(flat, lambda *arguments: fake(window.of(*arguments)), f"({window.schema()}) -> {returns}")


def _register(kernel: Callable[..., Any], fake: Callable[..., Any], schema: str) -> None:
    name = kernel.__name__.removeprefix("_")
    _library.define(name + schema)
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lmcleaner::{name}", fake, lib=_library)


def call(name: str, backend: str | None, *arguments: Any) -> Any:
    """The op of this name, computed by ``backend`` if one is named."""
    op = getattr(torch.ops.lmcleaner, name)
    if backend is None:
        return op(*arguments)
    with dispatch.use_backend(backend):
        return op(*arguments)


def compute(name: str, tensors: Sequence[Tensor], *arguments: Any) -> Any:
    """The op of this name by the backend for these tensors' device; in float64 as soon as one of them is: the reference."""
    arithmetic = torch.float64 if torch.float64 in [x.dtype for x in tensors] else torch.float32
    return dispatch.select(name, tensors[0].device, arithmetic)(*arguments)
