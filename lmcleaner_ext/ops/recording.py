"""Encoding a vector [P] that lies in parts, one tensor per parameter (None: zeros), into memory that is already there.

    encode_parts(parts, dtype, out)                       out = encode(concat(parts))
    encode_parts_difference_(parts, shadow, dtype, out)   out = encode_difference_(concat(parts), shadow)
    average_parts_(parts, h, beta, weight, seed)          h = beta h + weight concat(parts)^2; encode_parts in the same pass

On the CPU in float32 this is one pass: the concatenation never exists. Elsewhere it is what the formulas say, and `copy` moves the
result to `out`, which may be in other memory; it may still be moving it when the function returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import _native
from ..errors import NumericalError
from . import cpu, dispatch
from .diagonal_hessian import DIAGONAL_OVERFLOW
from .encoded_vector import require_finite
from .encoding import EncodedVector, payload_dtype

Copy = Callable[[EncodedVector, EncodedVector], None]  # (source, target)


def copy_now(source: EncodedVector, out: EncodedVector) -> None:
    for target, tensor in zip(out, source, strict=True):
        target.copy_(tensor)


def encode_parts(
    parts: Sequence[Tensor | None], sizes: Sequence[int], dtype: str, out: EncodedVector, copy: Copy = copy_now
) -> None:
    """Encode the concatenation of `parts`, with `sizes` elements each; raises NumericalError as `ops.encode` does."""
    if not _in_place("encode", parts, dtype):
        device = next((part.device for part in parts if part is not None), out[0].device)
        copy(EncodedVector(*torch.ops.lmcleaner.encode(_joined(parts, sizes, device, dtype), dtype)), out)
        return
    require_finite("the vector", dtype, _native.encode_parts(parts, sizes, out, cpu.threads()))


def encode_parts_difference_(
    parts: Sequence[Tensor], sizes: Sequence[int], shadow: Tensor, dtype: str, out: EncodedVector, copy: Copy = copy_now
) -> None:
    """Encode concat(parts) - shadow and advance `shadow` [P]; raises NumericalError as `ops.encode_difference_` does."""
    if not _in_place("encode_difference_", parts, dtype):
        theta = _joined(parts, sizes, shadow.device, dtype)
        copy(EncodedVector(*torch.ops.lmcleaner.encode_difference_(theta, shadow, dtype)), out)
        return
    finite = _native.encode_parts_difference(parts, sizes, shadow, out, cpu.threads())
    require_finite("theta - shadow", dtype, finite)


def average_parts_(
    parts: Sequence[Tensor | None],
    sizes: Sequence[int],
    h: EncodedVector,
    beta: float,
    weight: float,
    seed: int,
    dtype: str = "fp16",
    out: EncodedVector | None = None,
    copy: Copy = copy_now,
) -> None:
    """h <- beta h + weight g^2 of a gradient g in parts, rounded by the numbers of ``seed``, as ``ops.diag_hessian_update_``.

    With ``out``, g is encoded there as ``dtype`` in the same pass, as ``encode_parts`` does. Raises NumericalError like both.
    """
    if not all(_in_place(op, parts, dtype) for op in ("encode", "diag_hessian_update_")):
        g = _joined(parts, sizes, h[0].device, dtype)
        if out is not None:
            copy(EncodedVector(*torch.ops.lmcleaner.encode(g, dtype)), out)
        torch.ops.lmcleaner.diag_hessian_update_(*h, g, g, beta, weight, seed)
        return
    encoded, averaged = _native.record_gradient(parts, sizes, h, beta, weight, seed % 2**64, out, cpu.threads())
    require_finite("the vector", dtype, encoded)
    if not averaged:
        raise NumericalError(DIAGONAL_OVERFLOW)


def _in_place(op: str, parts: Sequence[Tensor | None], dtype: str) -> bool:
    """Whether the CPU kernel can read these parts where they are, and is the one that would be chosen."""
    if payload_dtype(dtype) == torch.float64:
        return False
    present = [part for part in parts if part is not None]
    if not all(p.dtype == torch.float32 and p.device.type == "cpu" and p.is_contiguous() for p in present):
        return False
    return dispatch.select(op, torch.device("cpu"), torch.float32) is getattr(cpu, op)


def _joined(parts: Sequence[Tensor | None], sizes: Sequence[int], device: torch.device, dtype: str) -> Tensor:
    wide = payload_dtype(dtype) == torch.float64 or any(p is not None and p.dtype == torch.float64 for p in parts)
    joined = torch.zeros(sum(sizes), dtype=torch.float64 if wide else torch.float32, device=device)
    for target, part in zip(joined.split(list(sizes)), parts, strict=True):
        if part is not None:
            target.copy_(part.detach().reshape(-1))
    return joined
