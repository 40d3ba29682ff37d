"""Vectors of the log (encoding.py has the format) in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..encoding import BLOCK, EXPONENT_BIAS, SCALED, EncodedVector, block_count, payload_dtype


def _per_element(per_block: Tensor, n: int) -> Tensor:
    """Repeat one value per block to one value per element: [ceil(n/256)] -> [n]."""
    return per_block.repeat_interleave(BLOCK)[:n]


def power_of_two(exponents: Tensor) -> Tensor:
    """2.0 ** exponents, float64, exact: the exponent goes into its bits of the IEEE format."""
    return ((exponents.to(torch.int64) + 1023) << 52).view(torch.float64)


SIGNIFICANT_BITS = {torch.float16: 11, torch.int8: 7, torch.float8_e4m3fn: 4}


def block_exponents(x: Tensor, target: torch.dtype) -> Tensor:
    """E8M0 exponent of each block: with largest magnitude m * 2^k, 1 <= m < 2, e = clamp(k - SCALED + 127, 0, 254)."""
    blocks = block_count(x.numel())
    padded = torch.zeros(blocks * BLOCK, dtype=x.dtype, device=x.device)
    padded[: x.numel()] = x.abs()
    largest = padded.view(blocks, BLOCK).amax(dim=1)  # [blocks]
    mantissa, exponent = torch.frexp(largest)  # the mantissa is in [0.5, 1): k is exponent - 1
    if target == torch.int8:
        exponent = exponent + (mantissa >= 127.5 / 128).int()  # would round to 128
    biased = (exponent - 1 - SCALED[target] + EXPONENT_BIAS).clamp(0, 254)
    return torch.where(largest == 0, EXPONENT_BIAS, biased).to(torch.int32)


def encode(x: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    """Encode ``x`` ``[P]``, rounding to nearest even: (payload, scales, whether every element decodes to a finite one)."""
    target = payload_dtype(dtype)
    if target not in SCALED:
        payload = x.to(target, copy=True)
        return payload, torch.empty(0, dtype=torch.uint8, device=x.device), bool(torch.isfinite(payload).all())
    # from the overflow on, a value rounds to 2^128, which a float32 cannot be decoded to
    overflow = 2.0**128 * (1 - 2.0 ** -(SIGNIFICANT_BITS[target] + 1))
    if not bool((x.abs() < overflow).all()):
        return x.to(target), torch.full((block_count(x.numel()),), 127, dtype=torch.uint8, device=x.device), False
    exponents = block_exponents(x, target)
    scaled = x * _per_element(power_of_two(EXPONENT_BIAS - exponents).to(x.dtype), x.numel())
    payload = (scaled.round() if target == torch.int8 else scaled).to(target)
    return payload, exponents.to(torch.uint8), True


def decode(vector: EncodedVector, out: Tensor) -> None:
    """out[i] = payload[i] * 2 ** (scales[i // 256] - 127), in the dtype of ``out`` (float32 or float64)."""
    payload, scales = vector
    out.copy_(payload)
    if scales.numel():
        exponents = scales.to(torch.int32) - EXPONENT_BIAS
        # in float64: 2^-127 and 2^127 are both exact there, so the one rounding is the one into `out`
        out.copy_(out.double() * _per_element(power_of_two(exponents), out.numel()))


def encode_difference_(theta: Tensor, shadow: Tensor, dtype: str) -> tuple[Tensor, Tensor, bool]:
    """Encode q = Q(theta - shadow) and advance shadow by what q decodes to (error feedback, docs/method.md, section 7)."""
    payload, scales, finite = encode(theta - shadow, dtype)
    if finite:
        decoded = torch.empty_like(shadow)
        decode(EncodedVector(payload, scales), decoded)
        shadow += decoded
    return payload, scales, finite


def dot(a: EncodedVector, b: EncodedVector) -> Tensor:
    """Inner product of two encoded vectors, accumulated in float64."""
    return torch.dot(decoded(a), decoded(b))


def decoded(vector: EncodedVector, like: Tensor | None = None) -> Tensor:
    """Its values in the dtype of ``like``, or float64; zeros for an empty payload."""
    if like is None:
        like = torch.empty(vector.payload.shape, dtype=torch.float64, device=vector.payload.device)
    out = torch.zeros_like(like)
    if vector.payload.numel():
        decode(vector, out)
    return out
