"""Backend "cuda": the kernels of csrc/cuda, in float32, on torch's current stream.

The encodings wait for the device, because a value that does not fit is an error; nothing else here does: results stay on the
device and workspace is torch's, so that a call can be captured in a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from .cpu import room_for
from .damped_propagation import PropagationWindow
from .encoding import EncodedVector
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


def _module() -> Any:
    from .. import _cuda  # type: ignore[attr-defined]  # not at the top: it exists only where CUDA was built

    return _cuda


def _queue(kernel: str, device: torch.device, *arguments: object) -> None:
    """Queue a kernel of _cuda on the device's current stream."""
    with torch.cuda.device(device):
        getattr(_module(), kernel)(*arguments, torch.cuda.current_stream().cuda_stream)


def _results(kernel: str, device: torch.device, count: int, *arguments: object) -> Tensor:
    """`count` doubles that a kernel writes after its arguments, with the workspace that every such kernel has."""
    results = torch.empty(count, dtype=torch.float64, device=device)
    workspace = torch.empty(_module().workspace_doubles, dtype=torch.float64, device=device)
    _queue(kernel, device, *arguments, results, workspace)
    return results


def _encode(kernel: str, vectors: Sequence[Tensor], dtype: str) -> tuple[Tensor, Tensor, bool]:
    out = room_for(vectors[0], dtype)
    overflowed = torch.zeros((), dtype=torch.int32, device=vectors[0].device)
    _queue(kernel, vectors[0].device, *vectors, out, overflowed)
    return *out, not bool(overflowed)


def encode(x: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    return _encode("encode", [x], dtype)


def encode_difference_(theta: Tensor, shadow: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    return _encode("encode_difference", [theta, shadow], dtype)


def decode(vector: EncodedVector, out: Tensor) -> None:
    _queue("decode", out.device, vector, out)


def dot(a: EncodedVector, b: EncodedVector) -> Tensor:
    return _results("dot", a.payload.device, 1, a, b)[0]


def optimizer_replay_window_(window: ReplayWindow) -> Tensor:
    delta = window.delta
    squares = torch.empty(delta.shape[:-1], dtype=torch.float64, device=delta.device)
    _queue("optimizer_replay_window", delta.device, window, squares)
    return squares


def damped_propagate_window_(window: PropagationWindow) -> tuple[Tensor, Tensor]:
    results = _results("propagate", window.v.device, 2, window)
    return results[0].clone(), results[1].clone()


def diag_hessian_update_(
    h: EncodedVector, a: Tensor, b: Tensor, beta: float, weight: float, seed: int | None
) -> Tensor:
    by_chance = seed is not None
    return _results("update_diagonal", a.device, 1, h, a, b, beta, weight, (seed or 0) % 2**64, by_chance)[0] == 0


def row_squares(vectors: Sequence[EncodedVector]) -> Tensor:
    first = vectors[0].payload
    return _results("row_squares", first.device, len(vectors), vectors, first.numel())


def gram(vectors: Sequence[EncodedVector], rows: int) -> Tensor:
    count, n, device = len(vectors), vectors[0].payload.numel(), vectors[0].payload.device
    size: int = _module().gram_group
    groups = (count + size - 1) // size
    blocks = torch.empty(groups * (groups + 1) // 2, size, size, dtype=torch.float64, device=device)
    workspace = torch.empty(_module().gram_workspace_doubles, dtype=torch.float64, device=device)
    _queue("gram", device, vectors, n, blocks, workspace)
    out = torch.zeros(groups * size, groups * size, dtype=torch.float64, device=device)
    for index, (row, column) in enumerate((r, c) for r in range(groups) for c in range(r + 1)):
        out[row * size : (row + 1) * size, column * size : (column + 1) * size] = blocks[index]
    below = out[:count, :count].tril()
    return (below + below.tril(-1).T)[:rows].contiguous()  # symmetric to the last bit


def combine_(out: Tensor, vectors: Sequence[EncodedVector], coefficients: Tensor) -> None:
    factors = coefficients.to(out.device, torch.float32, non_blocking=True).contiguous()
    _queue("combine", out.device, out, vectors, factors)
