"""Backend "cuda": the kernels of csrc/cuda, in float32, on torch's current stream.

Only the replay has a kernel; the encodings of CUDA tensors are computed by the reference, on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _native
from .cpu import RULES, format_of

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


def optimizer_replay_window_(
    delta: Tensor,
    theta: Tensor | None,
    state: Sequence[Tensor],
    counterfactual: Sequence[Tensor],
    coefficients: Tensor,
    segments: Tensor,
    gradients: Sequence[Tensor],
    gradient_scales: Sequence[Tensor],
    injections: Sequence[Tensor],
    injection_scales: Sequence[Tensor],
    injection_table: Tensor,
    diagonal: Tensor | None,
    rule: str,
    lead: int,
) -> Tensor:
    from .. import _cuda  # type: ignore[attr-defined]  # not at the top: it exists only where CUDA was built

    squares = torch.empty((), dtype=torch.float64, device=delta.device)
    with torch.cuda.device(delta.device):
        _cuda.optimizer_replay_window(
            RULES[rule],
            delta.numel(),
            delta.data_ptr(),
            0 if theta is None else theta.data_ptr(),
            [x.data_ptr() for x in state],
            [x.data_ptr() for x in counterfactual],
            coefficients.data_ptr(),
            coefficients.shape[0],
            coefficients.shape[1],
            segments.data_ptr(),
            segments.shape[0],
            [x.data_ptr() for x in gradients],
            [x.data_ptr() for x in gradient_scales],
            format_of(gradients),
            [x.data_ptr() for x in injections],
            [x.data_ptr() for x in injection_scales],
            format_of(injections),
            injection_table.data_ptr(),
            0 if diagonal is None else diagonal.data_ptr(),
            lead,
            squares.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
    return squares
