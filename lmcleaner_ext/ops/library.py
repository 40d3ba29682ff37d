"""The ops as ``torch.ops.lmcleaner.*``: schemas, and fake kernels for tracing.

One kernel per op is registered for every device; it checks the arguments and hands them to the backend that dispatch.py
chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import NumericalError
from . import checks, dispatch
from .encoding import payload_dtype, scale_count
from .optimizer_replay import ReplayWindow

_library = torch.library.Library("lmcleaner", "DEF")  # the registrations live as long as this object

_SCHEMAS = (
    "encode(Tensor x, str dtype) -> (Tensor, Tensor)",
    "encode_difference_(Tensor theta, Tensor(a!) shadow, str dtype) -> (Tensor, Tensor)",
    "decode(Tensor payload, Tensor scales, Tensor(a!) out) -> ()",
    "dot(Tensor payload_a, Tensor scales_a, Tensor payload_b, Tensor scales_b) -> Tensor",
    f"optimizer_replay_window_({ReplayWindow.schema()}) -> Tensor",
)
for _schema in _SCHEMAS:
    _library.define(_schema)


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    _library.impl(function.__name__, function, "CompositeExplicitAutograd")
    return function


def _fake(function: Callable[..., Any]) -> Callable[..., Any]:
    torch.library.register_fake(f"lmcleaner::{function.__name__.removeprefix('fake_')}", function, lib=_library)
    return function


def _arithmetic(*tensors: Tensor) -> torch.dtype:
    """float64 as soon as one tensor is: only the reference computes in it."""
    return torch.float64 if torch.float64 in [x.dtype for x in tensors] else torch.float32


def _refuse_non_finite(what: str, dtype: str, finite: bool) -> None:
    if not finite:
        raise NumericalError(
            f"{what} has a NaN, an infinity or a value outside the range of {dtype}: it cannot be encoded as {dtype}"
        )


@_kernel
def encode(x: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    checks.vector("x", x)
    arithmetic = torch.float64 if payload_dtype(dtype) == torch.float64 else x.dtype
    payload, scales, finite = dispatch.select("encode", x.device, arithmetic)(x, dtype)
    _refuse_non_finite("the vector", dtype, finite)
    return payload, scales


@_kernel
def encode_difference_(theta: Tensor, shadow: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    checks.vector("theta", theta)
    checks.vector("shadow", shadow, theta.shape[0], theta)
    arithmetic = torch.float64 if payload_dtype(dtype) == torch.float64 else theta.dtype
    payload, scales, finite = dispatch.select("encode_difference_", theta.device, arithmetic)(theta, shadow, dtype)
    _refuse_non_finite("theta - shadow", dtype, finite)
    return payload, scales


@_kernel
def decode(payload: Tensor, scales: Tensor, out: Tensor) -> None:
    checks.vector("out", out)
    checks.encoded("the vector", payload, scales, out.shape[0], out.device)
    dispatch.select("decode", out.device, _arithmetic(payload, out))(payload, scales, out)


@_kernel
def dot(payload_a: Tensor, scales_a: Tensor, payload_b: Tensor, scales_b: Tensor) -> Tensor:
    n, device = payload_a.numel(), payload_a.device
    checks.encoded("a", payload_a, scales_a, n, device)
    checks.encoded("b", payload_b, scales_b, n, device)
    compute = dispatch.select("dot", device, _arithmetic(payload_a, payload_b))
    return compute(payload_a, scales_a, payload_b, scales_b)


@_kernel
def optimizer_replay_window_(*arguments: Any) -> Tensor:
    window = ReplayWindow.of(*arguments)
    checks.replay(window)
    vectors = [window.delta, *(v.payload for v in (*window.gradients, *window.injections))]
    return dispatch.select("optimizer_replay_window_", window.delta.device, _arithmetic(*vectors))(window)


@_fake
def fake_encode(x: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    scales = x.new_empty(scale_count(x.shape[0], dtype), dtype=torch.uint8)
    return x.new_empty(x.shape, dtype=payload_dtype(dtype)), scales


@_fake
def fake_encode_difference_(theta: Tensor, shadow: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    return fake_encode(theta, dtype)


@_fake
def fake_decode(payload: Tensor, scales: Tensor, out: Tensor) -> None:
    return None


@_fake
def fake_dot(payload_a: Tensor, scales_a: Tensor, payload_b: Tensor, scales_b: Tensor) -> Tensor:
    return payload_a.new_empty((), dtype=torch.float64)


@_fake
def fake_optimizer_replay_window_(delta: Tensor, *arguments: Any) -> Tensor:
    return delta.new_empty(delta.shape[:-1], dtype=torch.float64)
