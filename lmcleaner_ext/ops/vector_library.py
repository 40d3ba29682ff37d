"""The ops of vector.py as ``torch.ops.lmcleaner.*``: schemas, what they accept, fake kernels for tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigurationError, NumericalError
from . import checks, dispatch
from .damped_propagation import PropagationWindow
from .encoding import block_count
from .library import _arithmetic, _fake, _kernel, _library

_SCHEMAS = (
    f"damped_propagate_window_({PropagationWindow.schema()}) -> (Tensor, Tensor)",
    "prefix_accumulate_(Tensor(a!) prefix, Tensor h, Tensor scales, float lr, float damping) -> Tensor",
    "prefix_propagate_(Tensor(a!) v, Tensor[] prefixes, float[] signs) -> Tensor",
    "diag_hessian_update_(Tensor(a!) h, Tensor(b!) scales, Tensor a, Tensor b, float beta, float weight, int? seed) "
    "-> Tensor",
    "scale_sample_grads(Tensor grads, Tensor weights, float clip) -> (Tensor, Tensor)",
    "gram(Tensor[] payloads, Tensor[] scales, int rows) -> Tensor",
    "combine_(Tensor(a!) out, Tensor[] payloads, Tensor[] scales, Tensor coefficients) -> ()",
)
for _schema in _SCHEMAS:
    _library.define(_schema)


DIAGONAL_OVERFLOW = (
    "the diagonal of the curvature has a NaN, an infinity or a value beyond float32: h is of no further use"
)


@_kernel
def damped_propagate_window_(*arguments: Any) -> tuple[Tensor, Tensor]:
    window = PropagationWindow.of(*arguments)
    checks.propagation(window)
    vectors = [window.v, *(x.payload for x in (*window.diagonals, *window.injections))]
    squares, largest = dispatch.select("damped_propagate_window_", window.v.device, _arithmetic(*vectors))(window)
    return squares, torch.where(squares.isnan(), squares, largest)  # no backend's maximum need see a NaN


@_kernel
def prefix_accumulate_(prefix: Tensor, h: Tensor, scales: Tensor, lr: float, damping: float) -> Tensor:
    checks.vector("prefix", prefix)
    checks.encoded("h", h, scales, prefix.shape[0], prefix.device)
    compute = dispatch.select("prefix_accumulate_", prefix.device, _arithmetic(prefix, h))
    return compute(prefix, h, scales, lr, damping)


@_kernel
def prefix_propagate_(v: Tensor, prefixes: Sequence[Tensor], signs: Sequence[float]) -> Tensor:
    checks.vector("v", v)
    if len(prefixes) != len(signs):
        raise ConfigurationError(f"found {len(prefixes)} prefixes and {len(signs)} signs; these must be equal")
    for index, prefix in enumerate(prefixes):
        checks.vector(f"prefixes[{index}]", prefix, v.shape[0], v)
    return dispatch.select("prefix_propagate_", v.device, v.dtype)(v, prefixes, signs)


@_kernel
def diag_hessian_update_(
    h: Tensor, scales: Tensor, a: Tensor, b: Tensor, beta: float, weight: float, seed: int | None
) -> Tensor:
    checks.vector("the gradient", a, h.shape[0])
    checks.vector("the probe", b, h.shape[0], a)
    checks.encoded("h", h, scales, a.shape[0], a.device)
    if h.dtype != torch.float16 or scales.numel() != block_count(h.numel()):
        raise ConfigurationError(f"h must be in block-scaled fp16; found {h.dtype} with {scales.numel()} scales")
    compute = dispatch.select("diag_hessian_update_", a.device, a.dtype)
    fits = compute(h, scales, a, b, beta, weight, seed)
    if fits.device.type == "cpu" and not fits:
        raise NumericalError(DIAGONAL_OVERFLOW)
    return fits


@_kernel
def scale_sample_grads(grads: Tensor, weights: Tensor, clip: float) -> tuple[Tensor, Tensor]:
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
    rows, none = list(grads.unbind()), [grads.new_empty(0, dtype=torch.uint8)] * grads.shape[0]
    norms = dispatch.select("row_squares", grads.device, total.dtype)(rows, none).sqrt()
    factors = weights.double() * (clip / norms).clamp(max=1)
    dispatch.select("combine_", grads.device, total.dtype)(total[None], rows, none, factors[None])
    return total, norms


def _sum_dtype(grads: Tensor) -> torch.dtype:
    return torch.float64 if grads.dtype == torch.float64 else torch.float32


def _check_vectors(payloads: Sequence[Tensor], scales: Sequence[Tensor]) -> None:
    if not payloads or len(payloads) != len(scales):
        raise ConfigurationError(f"one or more vectors, with as many scales: found {len(payloads)} and {len(scales)}")
    for index, (payload, exponents) in enumerate(zip(payloads, scales, strict=True)):
        checks.encoded(f"vectors[{index}]", payload, exponents, payloads[0].numel(), payloads[0].device)


@_kernel
def gram(payloads: Sequence[Tensor], scales: Sequence[Tensor], rows: int) -> Tensor:
    _check_vectors(payloads, scales)
    if not 1 <= rows <= len(payloads):
        raise ConfigurationError(
            f"rows is the number of the first vectors whose products are wanted, 1 to {len(payloads)}; found {rows}"
        )
    return dispatch.select("gram", payloads[0].device, _arithmetic(*payloads))(payloads, scales, rows)


@_kernel
def combine_(out: Tensor, payloads: Sequence[Tensor], scales: Sequence[Tensor], coefficients: Tensor) -> None:
    _check_vectors(payloads, scales)
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
    dispatch.select("combine_", out.device, _arithmetic(out, *payloads))(out, payloads, scales, coefficients)


@_fake
def fake_damped_propagate_window_(v: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return v.new_empty((), dtype=torch.float64), v.new_empty((), dtype=torch.float64)


@_fake
def fake_prefix_accumulate_(prefix: Tensor, h: Tensor, scales: Tensor, lr: float, damping: float) -> Tensor:
    return prefix.new_empty((), dtype=torch.int64)


@_fake
def fake_prefix_propagate_(v: Tensor, prefixes: Sequence[Tensor], signs: Sequence[float]) -> Tensor:
    return v.new_empty((), dtype=torch.float64)


@_fake
def fake_diag_hessian_update_(
    h: Tensor, scales: Tensor, a: Tensor, b: Tensor, beta: float, weight: float, seed: int | None
) -> Tensor:
    return h.new_empty((), dtype=torch.bool)


@_fake
def fake_scale_sample_grads(grads: Tensor, weights: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    total = grads.new_empty(grads.shape[1], dtype=_sum_dtype(grads))
    return total, grads.new_empty(grads.shape[0], dtype=torch.float64)


@_fake
def fake_gram(payloads: Sequence[Tensor], scales: Sequence[Tensor], rows: int) -> Tensor:
    return payloads[0].new_empty(rows, len(payloads), dtype=torch.float64)


@_fake
def fake_combine_(out: Tensor, payloads: Sequence[Tensor], scales: Sequence[Tensor], coefficients: Tensor) -> None:
    return None
