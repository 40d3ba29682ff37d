"""Kernels on flat vectors, each with several backends.

    encode, encode_difference_, decode, dot    vectors of the log in low precision (encoding.py has the format)
    quantize, dequantize                       the names of encode and decode outside of this package
    optimizer_replay_window_                   the optimizer run twice over a window of the log
    damped_propagate_ and others               what the curvature modes and the recorder compute (vector.py)

Every function takes ``backend="reference" | "cpu" | "cuda" | "triton"``; dispatch.py has the rule for the default. The
same ops are registered with torch.library as ``torch.ops.lmcleaner.*``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigurationError
from . import library as _library  # noqa: F401 - registers torch.ops.lmcleaner
from .dispatch import available_backends, use_backend
from .encoding import BLOCK, PAYLOAD_DTYPES, block_count, payload_dtype, scale_count
from .vector import (
    combine,
    damped_propagate_,
    damped_propagate_window_,
    diag_hessian_update_,
    gram,
    prefix_accumulate_,
    prefix_propagate_,
    scale_sample_grads,
)

__all__ = [
    "BLOCK",
    "PAYLOAD_DTYPES",
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


def _call(op: Callable[..., Any], backend: str | None, *arguments: Any) -> Any:
    if backend is None:
        return op(*arguments)
    with use_backend(backend):
        return op(*arguments)


def encode(x: Tensor, dtype: str, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Encode a vector ``[P]`` (float32 or float64), rounding to nearest even: (payload, scales).

    ``dtype`` is "fp16", "int8", "fp8" (e4m3; these three with one power-of-two scale per 256 elements), "bf16", "fp32" or
    "fp64".
    Raises NumericalError for a NaN, an infinity or a value that the format cannot hold.

    >>> payload, scales = encode(torch.tensor([1e-7, -3e-9]), "fp16")
    >>> decode(payload, scales)
    tensor([ 9.9986e-08, -2.9995e-09])
    """
    return _call(_ops.encode, backend, x, dtype)


def encode_difference_(
    theta: Tensor, shadow: Tensor, dtype: str, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Encode q = Q(theta - shadow) and advance ``shadow`` in place by what q decodes to, in one pass.

    This is error feedback (METHOD.md section 7): the sum of all q stays within one quantisation step of theta.
    Raises NumericalError like ``encode``; shadow is then of no further use.
    """
    return _call(_ops.encode_difference_, backend, theta, shadow, dtype)


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
    _call(_ops.decode, backend, payload, scales, out)
    return out


def quantize(x: Tensor, dtype: str, block: int = BLOCK, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
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


def dot(a: Tensor | tuple[Tensor, Tensor], b: Tensor | tuple[Tensor, Tensor], *, backend: str | None = None) -> Tensor:
    """Inner product of two vectors ``[P]``, each a plain tensor or (payload, scales): a float64 scalar tensor.

    Accumulates in float64; the result does not depend on the number of threads.
    """
    return _call(_ops.dot, backend, *_pair(a), *_pair(b))


def _pair(vector: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if isinstance(vector, Tensor):
        return vector, torch.empty(0, dtype=torch.uint8, device=vector.device)
    return vector


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
    lead: int = 0,
    *,
    backend: str | None = None,
) -> Tensor:
    """Run the optimizer over T logged steps twice, as it was and without the removed gradient (METHOD.md section 4).

        removed = (GAIN - ALPHA) g + sum of weight * injection + (CURVATURE h + DAMPING) delta
        (theta,  state)  = Opt(theta,  state,  g)                  factual
        (theta', state') = Opt(theta', state', g - removed)        counterfactual
        delta            = theta - theta'

    The capitals are columns of ``coefficients`` (coefficients.py). Elementwise, all T steps in one pass.

    R independent requests over the same steps share the pass: the log is read and decoded once, theta and state are
    stepped once, and each request has its own row of ``delta`` [R, n] and of every ``counterfactual`` [R, n], its own
    ``coefficients`` [R, classes, T, 16] (equal where they are the factual side's) and its own injections.

    Args:
        delta: the deviation theta - theta' [n] or [R, n], updated in place, float32 or float64; each row contiguous.
        theta: the parameters [n], updated in place; None where no coefficient needs them.
        state: the optimizer's vectors, updated in place: [m, v] for "adam" and "adamw", [b] for "sgd" with momentum,
            else []. An empty tensor begins at zero and is not wanted afterwards: nothing is read or written for it.
        counterfactual: the same for the counterfactual side: [m', v']; for "sgd" the deviation [b - b']. Shaped as delta.
        coefficients: float64 [classes, T, 16] or [R, classes, T, 16] on the CPU.
        segments: int64 [S, 3] on the CPU, (begin, end, class), sorted and disjoint; elements outside are untouched.
        gradients, gradient_scales: T encoded vectors [n]: g, or for "update" u = theta[t+1] - theta[t]. Empty: zeros.
        injections, injection_scales: encoded vectors [n], in gradient units. Empty: zeros.
        injection_table: float64 [I, 2] on the CPU, (step, weight), sorted by step; where delta is [R, n], [I, 3] with
            the request as a third column, sorted by request and then by step.
        diagonal: h, the diagonal of the curvature [n], or None.
        rule: "sgd", "update" (plain SGD from its logged updates), "adam" (L2 decay) or "adamw" (decoupled decay).
        lead: how many of the first steps are the same on both sides; the counterfactual begins after them.
        backend: None for the best one.

    Returns:
        The sum of delta^2 over all n elements, float64, a scalar tensor or one number per request [R]; bitwise the same
        for any number of threads.

    Raises:
        ConfigurationError: a wrong shape, dtype, device or count; nothing has been changed.
        BackendUnavailableError: the backend asked for cannot serve this call.
    """
    return _call(
        _ops.optimizer_replay_window_,
        backend,
        delta,
        theta,
        state,
        counterfactual,
        coefficients,
        segments,
        gradients,
        gradient_scales,
        injections,
        injection_scales,
        injection_table,
        diagonal,
        rule,
        lead,
    )
