"""Backend "cuda": the kernels of csrc/cuda, in float32, on torch's current stream.

The encodings wait for the device, because a value that does not fit is an error; nothing else here does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _native
from .cpu import FORMATS, replay_arguments
from .encoding import payload_dtype, scale_count
from .optimizer_replay import ReplayWindow

DEVICES = ("cuda",)


def unavailable_reason() -> str | None:
    build = _native.build_info()
    if not build["cuda"]:
        return str(build["cuda_reason"])
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device (or no working driver) on this machine"
    major, minor = torch.cuda.get_device_capability()
    oldest = min(int(architecture) for architecture in build["cuda_architectures"].split(","))
    if 10 * major + minor < oldest:
        return f"the device has compute capability {major}.{minor}; the kernels need {oldest / 10:.1f} or newer"
    from .. import _cuda  # type: ignore[attr-defined]  # noqa: F401 - an ImportError is the reason

    return None


def _kernels() -> Any:
    from .. import _cuda  # type: ignore[attr-defined]  # not at the top: it exists only where CUDA was built

    return _cuda


def _encode(kernel: str, vectors: tuple[Tensor, ...], dtype: str) -> tuple[Tensor, Tensor, bool]:
    x = vectors[0]
    payload = torch.empty_like(x, dtype=payload_dtype(dtype))
    scales = torch.empty(scale_count(x.numel(), dtype), dtype=torch.uint8, device=x.device)
    overflowed = torch.zeros((), dtype=torch.int32, device=x.device)
    with torch.cuda.device(x.device):
        getattr(_kernels(), kernel)(
            *(vector.data_ptr() for vector in vectors),
            x.numel(),
            FORMATS[payload.dtype],
            payload.data_ptr(),
            scales.data_ptr(),
            overflowed.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
    return payload, scales, not bool(overflowed)


def encode(x: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    return _encode("encode", (x,), dtype)


def encode_difference_(theta: Tensor, shadow: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    return _encode("encode_difference", (theta, shadow), dtype)


def decode(payload: Tensor, scales: Tensor, out: Tensor) -> None:
    with torch.cuda.device(out.device):
        _kernels().decode(
            payload.data_ptr(),
            scales.data_ptr(),
            out.numel(),
            FORMATS[payload.dtype],
            out.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )


def dot(payload_a: Tensor, scales_a: Tensor, payload_b: Tensor, scales_b: Tensor) -> Tensor:
    product = torch.empty((), dtype=torch.float64, device=payload_a.device)
    workspace = torch.empty(_kernels().workspace_doubles, dtype=torch.float64, device=payload_a.device)
    with torch.cuda.device(payload_a.device):
        _kernels().dot(
            payload_a.data_ptr(),
            scales_a.data_ptr(),
            FORMATS[payload_a.dtype],
            payload_b.data_ptr(),
            scales_b.data_ptr(),
            FORMATS[payload_b.dtype],
            payload_a.numel(),
            product.data_ptr(),
            workspace.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
    return product


def optimizer_replay_window_(window: ReplayWindow) -> Tensor:
    delta = window.delta
    squares = torch.empty(delta.shape[:-1], dtype=torch.float64, device=delta.device)
    with torch.cuda.device(delta.device):
        stream = torch.cuda.current_stream().cuda_stream
        _kernels().optimizer_replay_window(*replay_arguments(window), squares.data_ptr(), stream)
    return squares
