"""Kernels beside the replay: what the curvature modes and the recorder do with vectors of the log.

An encoded vector is given as (payload, scales) or, unscaled, as a plain tensor; ``encoding.py`` has the formats. Every
function takes ``backend=`` like those of ``lmcleaner_ext.ops``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigurationError
from . import vector_library as _vector_library  # noqa: F401 - registers the ops
from .dispatch import call
from .encoding import EncodedVector, Vector

_ops = torch.ops.lmcleaner


def _pairs(vectors: Sequence[Vector]) -> tuple[list[Tensor], list[Tensor]]:
    found = [EncodedVector.of(vector) for vector in vectors]
    return [payload for payload, _ in found], [scales for _, scales in found]


def prefix_accumulate_(prefix: Tensor, h: Vector, lr: float, damping: float, *, backend: str | None = None) -> Tensor:
    """C <- C + log(1 - lr (h + damping)), in place: one step of the prefix form, in which K steps cost what one does.

    A logarithm has no place for a factor that is zero or negative (lr (h + damping) >= 1, no contraction): factors under
    2^-24 count as 2^-24, so such a contribution is taken to have died out. How many were clamped is returned; where there
    are many, ``damped_propagate_window_`` has no such limit. lr and damping are fixed here, not at deletion time.
    Begin again at zero every few hundred steps and keep C in float32: its rounding error grows with its magnitude.

    Args:
        prefix: C [n], float32 or float64.
        h: the diagonal [n], plain or encoded.

    Returns the number of clamped elements, an int64 scalar tensor. Raises ConfigurationError.
    """
    return call(_ops.prefix_accumulate_, backend, prefix, *EncodedVector.of(h), lr, damping)


def prefix_propagate_(
    v: Tensor, prefixes: Sequence[Tensor], signs: Sequence[float], *, backend: str | None = None
) -> Tensor:
    """v <- v exp(sum of sign[j] C[j]), in place: the steps from t to t' inside one window are C[t'] - C[t].

    Args:
        v: the deviation [n], float32 or float64.
        prefixes: any number of C [n], like v: over several windows, the last C of each and the C at both ends.
        signs: +1 or -1 for each.

    Returns the sum of v^2 afterwards, a float64 scalar tensor. Raises ConfigurationError.
    """
    return call(_ops.prefix_propagate_, backend, v, list(prefixes), list(signs))


DIAGONAL_KINDS = ("fisher", "gauss_newton", "hutchinson")


def diag_hessian_update_(
    h: tuple[Tensor, Tensor],
    g: Tensor,
    beta: float,
    kind: str = "fisher",
    *,
    batch_size: int = 1,
    probe: Tensor | None = None,
    seed: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """h <- beta h + (1 - beta) d, in place: the running average of an estimate d of the curvature's diagonal.

        "fisher"         d = g^2             g the batch gradient: the empirical Fisher diagonal
        "gauss_newton"   d = B g^2           g the mean gradient of B losses against labels sampled from the model
        "hutchinson"     d = z (H z)         g = H z, probe = z with elements +1 and -1

    h is stored in block-scaled fp16, eleven bits: rounded to nearest, steps of the average under half of the last bit are
    lost, and it stops short of its limit by up to 2^-11 / (1 - beta) of itself (a half at beta = 0.999). With a ``seed``, a new
    one for every step (the step's number), h is rounded up or down by chance, which is right on average.

    Args:
        h: (payload float16 [n], scales uint8 [ceil(n / 256)]); begin with ``encode(torch.zeros(n), "fp16")``. After k steps
            from zero, h / (1 - beta^k) is the average without its bias.
        g: [n], float32 or float64.

    Returns whether every element fits, a bool scalar tensor. On the CPU a NaN, an infinity or an overflow raises
    NumericalError; on CUDA look at the result where a synchronisation does not hurt. Raises ConfigurationError.

    Sources: GNB: https://arxiv.org/abs/2305.14342, algorithm 2; Hutchinson: https://arxiv.org/abs/2006.00719, equation 6
    """
    if kind not in DIAGONAL_KINDS:
        raise ConfigurationError(f"kind is one of {DIAGONAL_KINDS}, found {kind!r}")
    if (probe is None) == (kind == "hutchinson"):
        raise ConfigurationError(f'kind "hutchinson" needs the probe z, and only that; found {kind!r}, probe {probe}')
    factor = batch_size if kind == "gauss_newton" else 1
    other = g if probe is None else probe
    return call(_ops.diag_hessian_update_, backend, *h, g, other, beta, (1 - beta) * factor, seed)


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
    return call(_ops.scale_sample_grads, backend, grads, weights, clip)


def gram(vectors: Sequence[Vector], rows: int | None = None, *, backend: str | None = None) -> Tensor:
    """U U^T, the inner product of each two of K vectors [n] in one pass over them: float64 [K, K].

    With ``rows``, only the products of the first ``rows`` vectors with all K: [rows, K]. Those among the others are not computed.

    The vectors may have different formats. Products are summed in float32 over up to 128 elements and in float64 from there on; the
    result is bitwise the same for any number of threads. Raises ConfigurationError.
    """
    return call(_ops.gram, backend, *_pairs(vectors), len(vectors) if rows is None else rows)


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
    payloads, scales = _pairs(vectors)
    if out is None:
        wide = any(payload.dtype == torch.float64 for payload in payloads)
        shape = [*coefficients.shape[:-1], payloads[0].numel() if payloads else 0]
        out = coefficients.new_zeros(shape, dtype=torch.float64 if wide else torch.float32)
        out = out.to(payloads[0].device) if payloads else out
    rows, factors = (out[None], coefficients[None]) if coefficients.dim() == 1 else (out, coefficients)
    call(_ops.combine_, backend, rows, payloads, scales, factors)
    return out
