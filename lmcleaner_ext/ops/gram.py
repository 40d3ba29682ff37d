"""Many vectors at once: their inner products, their linear combinations, and samples' gradients added up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigurationError
from . import checks
from .encoding import EncodedVector, Vector
from .registry import call, compute, register


def scale_sample_grads(
    grads: Tensor, weights: Tensor, clip: float = math.inf, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """sum over j of w_j min(1, clip / |g_j|) g_j, and the norms |g_j|: two passes over the samples' gradients, no copy.

    Args:
        grads: [B, P], contiguous: float32, float64, float16 or bfloat16.
        weights: w [B], on the same device.
        clip: the largest norm a sample may have, > 0.

    Returns:
        The sum [P], float32 (float64 for float64), and the norms [B], float64, accumulated in float64. A NaN or an infinity is
        not refused: it shows in its sample's norm.

    Raises ConfigurationError.
    """
    return call("scale_sample_grads", backend, grads, weights, clip)


def gram(vectors: Sequence[Vector], rows: int | None = None, *, backend: str | None = None) -> Tensor:
    """U U^T, the inner product of each two of K vectors [n] in one pass over them: float64 [K, K].

    With ``rows``, only the products of the first ``rows`` vectors with all K: [rows, K]. Those among the others are not computed.

    The vectors may have different formats. Products are summed in float32 over up to 128 elements and in float64 from there on; the
    result is bitwise the same for any number of threads. Raises ConfigurationError.
    """
    return call("gram", backend, *_pairs(vectors), len(vectors) if rows is None else rows)


def combine(
    vectors: Sequence[Vector], coefficients: Tensor, out: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """U^T c: the sum over k of c[k] u[k], in one pass over the K vectors for all requests at once.

    Args:
        vectors: K encoded vectors [n]; the formats may differ.
        coefficients: c [K], or [R, K] for R requests.
        out: [n] or [R, n], float32 or float64, to which the result is added in place; None: a new one, float32, or float64
            where a vector is.

    Returns out. Raises ConfigurationError.
    """
    found, scales = _pairs(vectors)
    if out is None:
        wide = any(payload.dtype == torch.float64 for payload in found)
        shape = [*coefficients.shape[:-1], found[0].numel() if found else 0]
        out = coefficients.new_zeros(shape, dtype=torch.float64 if wide else torch.float32)
        out = out.to(found[0].device) if found else out
    rows, factors = (out[None], coefficients[None]) if coefficients.dim() == 1 else (out, coefficients)
    call("combine_", backend, rows, found, scales, factors)
    return out


def _pairs(vectors: Sequence[Vector]) -> tuple[list[Tensor], list[Tensor]]:
    found = [EncodedVector.of(vector) for vector in vectors]
    return [payload for payload, _ in found], [scales for _, scales in found]


def _scale_sample_grads(grads: Tensor, weights: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    if grads.dim() != 2 or not grads.is_contiguous() or grads.dtype not in checks.PAYLOADS:
        raise ConfigurationError(
            "grads must be a contiguous matrix [B, P] of float16, bfloat16, float32 or float64; "
            f"found {grads.dtype} {list(grads.shape)}, strides {list(grads.stride())}"
        )
    if weights.shape != grads.shape[:1] or weights.device != grads.device:
        raise ConfigurationError(
            f"weights must be one number per sample, [{grads.shape[0]}] on {grads.device}; "
            f"found {list(weights.shape)} on {weights.device}"
        )
    if not clip > 0:
        raise ConfigurationError(f"clip must be positive; found {clip}")
    total = grads.new_zeros(grads.shape[1], dtype=_sum_dtype(grads))
    if not grads.numel():
        return total, grads.new_zeros(grads.shape[0], dtype=torch.float64)
    rows = [EncodedVector.of(row) for row in grads.unbind()]
    norms = compute("row_squares", [total], rows).sqrt()
    factors = weights.double() * (clip / norms).clamp(max=1)
    compute("combine_", [total], total[None], rows, factors[None])
    return total, norms


def _sum_dtype(grads: Tensor) -> torch.dtype:
    return torch.float64 if grads.dtype == torch.float64 else torch.float32


def _checked(payloads: Sequence[Tensor], scales: Sequence[Tensor]) -> list[EncodedVector]:
    if not payloads or len(payloads) != len(scales):
        raise ConfigurationError(f"one or more vectors, with as many scales: found {len(payloads)} and {len(scales)}")
    vectors = list(map(EncodedVector, payloads, scales))
    for index, vector in enumerate(vectors):
        checks.encoded(f"vectors[{index}]", vector, payloads[0].numel(), payloads[0].device)
    return vectors


def _gram(payloads: Sequence[Tensor], scales: Sequence[Tensor], rows: int) -> Tensor:
    vectors = _checked(payloads, scales)
    if not 1 <= rows <= len(payloads):
        raise ConfigurationError(
            f"rows is the number of the first vectors whose products are wanted, 1 to {len(payloads)}; found {rows}"
        )
    return compute("gram", payloads, vectors, rows)


def _combine_(out: Tensor, payloads: Sequence[Tensor], scales: Sequence[Tensor], coefficients: Tensor) -> None:
    vectors = _checked(payloads, scales)
    n = payloads[0].numel()
    if out.dim() != 2 or not out.is_contiguous() or out.shape[1] != n or out.dtype not in checks.ARITHMETIC:
        raise ConfigurationError(
            f"out must be a contiguous float32 or float64 matrix [R, {n}]; "
            f"found {out.dtype} {list(out.shape)}, strides {list(out.stride())}"
        )
    if coefficients.shape != (out.shape[0], len(payloads)) or out.device != payloads[0].device:
        raise ConfigurationError(
            f"coefficients must be [{out.shape[0]}, {len(payloads)}], and out on {payloads[0].device}; "
            f"found {list(coefficients.shape)} and {out.device}"
        )
    compute("combine_", [out, *payloads], out, vectors, coefficients)


def _fake_scale_sample_grads(grads: Tensor, weights: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    total = grads.new_empty(grads.shape[1], dtype=_sum_dtype(grads))
    return total, grads.new_empty(grads.shape[0], dtype=torch.float64)


register(_scale_sample_grads, _fake_scale_sample_grads)
register(_gram, lambda payloads, scales, rows: payloads[0].new_empty(rows, len(payloads), dtype=torch.float64))
register(_combine_, lambda out, payloads, scales, coefficients: None, updates=["out"])
