"""Vectors of the log in low precision (encoding.py has the format): encode, encode_difference_, decode and dot."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigurationError, NumericalError
from . import checks
from .encoding import BLOCK, EncodedVector, Vector, payload_dtype, scale_count
from .registry import call, compute, register


def encode(x: Tensor, dtype: str, *, backend: str | None = None) -> EncodedVector:
    """Encode a vector ``[P]`` (float32 or float64), rounding to nearest even: (payload, scales).

    ``dtype`` is "fp16", "int8", "fp8" (e4m3; these three with one power-of-two scale per 256 elements), "bf16", "fp32" or
    "fp64".
    Raises NumericalError for a NaN, an infinity or a value that the format cannot hold.

    >>> payload, scales = encode(torch.tensor([1e-7, -3e-9]), "fp16")
    >>> decode(payload, scales)
    tensor([ 9.9986e-08, -2.9995e-09])
    """
    return EncodedVector(*call("encode", backend, x, dtype))


def encode_difference_(theta: Tensor, shadow: Tensor, dtype: str, *, backend: str | None = None) -> EncodedVector:
    """Encode q = Q(theta - shadow) and advance ``shadow`` in place by what q decodes to, in one pass.

    This is error feedback (docs/method.md, section 7): the sum of all q stays within one quantisation step of theta.
    Raises NumericalError like ``encode``; shadow is then of no further use.
    """
    return EncodedVector(*call("encode_difference_", backend, theta, shadow, dtype))


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
    call("decode", backend, payload, scales, out)
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
    return call("dot", backend, *EncodedVector.of(a), *EncodedVector.of(b))


def require_finite(what: str, dtype: str, finite: bool) -> None:
    if not finite:
        raise NumericalError(
            f"{what} has a NaN, an infinity or a value outside the range of {dtype}: it cannot be encoded as {dtype}"
        )


def _encode(x: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    checks.vector("x", x)
    payload, scales, finite = compute("encode", [x, torch.empty(0, dtype=payload_dtype(dtype))], x, dtype)
    require_finite("the vector", dtype, finite)
    return payload, scales


def _encode_difference_(theta: Tensor, shadow: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    checks.vector("theta", theta)
    checks.vector("shadow", shadow, theta.shape[0], theta)
    tensors = [theta, torch.empty(0, dtype=payload_dtype(dtype))]
    payload, scales, finite = compute("encode_difference_", tensors, theta, shadow, dtype)
    require_finite("theta - shadow", dtype, finite)
    return payload, scales


def _decode(payload: Tensor, scales: Tensor, out: Tensor) -> None:
    vector = EncodedVector(payload, scales)
    checks.vector("out", out)
    checks.encoded("the vector", vector, out.shape[0], out.device)
    compute("decode", [out, payload], vector, out)


def _dot(payload_a: Tensor, scales_a: Tensor, payload_b: Tensor, scales_b: Tensor) -> Tensor:
    a, b = EncodedVector(payload_a, scales_a), EncodedVector(payload_b, scales_b)
    checks.encoded("a", a, payload_a.numel(), payload_a.device)
    checks.encoded("b", b, payload_a.numel(), payload_a.device)
    return compute("dot", [payload_a, payload_b], a, b)


def _fake_encode(x: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    scales = x.new_empty(scale_count(x.shape[0], dtype), dtype=torch.uint8)
    return x.new_empty(x.shape, dtype=payload_dtype(dtype)), scales


register(_encode, _fake_encode)
register(_encode_difference_, lambda theta, shadow, dtype: _fake_encode(theta, dtype), updates=["shadow"])
register(_decode, lambda payload, scales, out: None, updates=["out"])
register(_dot, lambda a, scales_a, b, scales_b: a.new_empty((), dtype=torch.float64))
