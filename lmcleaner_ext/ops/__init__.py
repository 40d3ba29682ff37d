"""Kernels on flat vectors, each with several backends.

    encode, encode_difference_, decode, dot    vectors of the log in low precision (encoding.py has the format)
    quantize, dequantize                       the names of encode and decode outside of this package
    optimizer_replay_window_                   the optimizer run twice over a window of the log
    damped_propagate_ and others               what the curvature modes and the recorder compute (vector.py)

Every function takes ``backend="reference" | "cpu" | "cuda" | "triton"``; dispatch.py has the rule for the default. The
same ops are registered with torch.library as ``torch.ops.lmcleaner.*``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigurationError
from . import library as _library  # noqa: F401 - registers torch.ops.lmcleaner
from .damped_propagation import PropagationWindow, damped_propagate_, damped_propagate_window_
from .dispatch import available_backends, call, use_backend
from .encoding import BLOCK, PAYLOAD_DTYPES, EncodedVector, Vector, block_count, payload_dtype, scale_count
from .optimizer_replay import ReplayWindow, optimizer_replay_window_
from .vector import (
    combine,
    diag_hessian_update_,
    gram,
    prefix_accumulate_,
    prefix_propagate_,
    scale_sample_grads,
)

__all__ = [
    "BLOCK",
    "PAYLOAD_DTYPES",
    "EncodedVector",
    "PropagationWindow",
    "ReplayWindow",
    "Vector",
    "available_backends",
    "block_count",
    "combine",
    "damped_propagate_",
    "damped_propagate_window_",
    "decode",
    "dequantize",
    "diag_hessian_update_",
    "dot",
    "encode",
    "encode_difference_",
    "gram",
    "optimizer_replay_window_",
    "payload_dtype",
    "prefix_accumulate_",
    "prefix_propagate_",
    "quantize",
    "scale_count",
    "scale_sample_grads",
    "use_backend",
]

_ops = torch.ops.lmcleaner


def encode(x: Tensor, dtype: str, *, backend: str | None = None) -> EncodedVector:
    """Encode a vector ``[P]`` (float32 or float64), rounding to nearest even: (payload, scales).

    ``dtype`` is "fp16", "int8", "fp8" (e4m3; these three with one power-of-two scale per 256 elements), "bf16", "fp32" or
    "fp64".
    Raises NumericalError for a NaN, an infinity or a value that the format cannot hold.

    >>> payload, scales = encode(torch.tensor([1e-7, -3e-9]), "fp16")
    >>> decode(payload, scales)
    tensor([ 9.9986e-08, -2.9995e-09])
    """
    return EncodedVector(*call(_ops.encode, backend, x, dtype))


def encode_difference_(theta: Tensor, shadow: Tensor, dtype: str, *, backend: str | None = None) -> EncodedVector:
    """Encode q = Q(theta - shadow) and advance ``shadow`` in place by what q decodes to, in one pass.

    This is error feedback (docs/method.md, section 7): the sum of all q stays within one quantisation step of theta.
    Raises NumericalError like ``encode``; shadow is then of no further use.
    """
    return EncodedVector(*call(_ops.encode_difference_, backend, theta, shadow, dtype))


def decode(
    payload: Tensor,
    scales: Tensor,
    out_dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """payload[i] * 2 ** (scales[i // 256] - 127) as ``out_dtype`` (float32 or float64), into ``out`` if given."""
    if out is None:
        out = torch.empty(payload.shape, dtype=out_dtype, device=payload.device)
    call(_ops.decode, backend, payload, scales, out)
    return out


def quantize(x: Tensor, dtype: str, block: int = BLOCK, *, backend: str | None = None) -> EncodedVector:
    """``encode``, with the size of a block as an argument. Raises ConfigurationError for any other than 256.

    The rings on disk and the replay kernels share one block size. A block of 32 would lower int8's error by a factor of
    1.3 to 1.8 (fp8's not at all) for eight times as many scales; fp8 is the more accurate byte for gradients.

    >>> payload, scales = quantize(torch.tensor([3.0, -1.5, 0.1]), "int8")
    >>> payload, dequantize(payload, scales)
    (tensor([ 96, -48,   3], dtype=torch.int8), tensor([ 3.0000, -1.5000,  0.0938]))
    """
    if block != BLOCK:
        raise ConfigurationError(f"blocks have {BLOCK} elements, found block={block}: leave it out")
    return encode(x, dtype, backend=backend)


dequantize = decode


def dot(a: Vector, b: Vector, *, backend: str | None = None) -> Tensor:
    """Inner product of two vectors ``[P]``, each a plain tensor or (payload, scales): a float64 scalar tensor.

    Accumulates in float64; the result does not depend on the number of threads.
    """
    return call(_ops.dot, backend, *EncodedVector.of(a), *EncodedVector.of(b))
