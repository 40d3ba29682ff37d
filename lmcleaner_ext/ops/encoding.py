"""The format of an encoded vector, and what each ``dtype`` name means.

An encoded vector of n elements is a pair ``(payload, scales)``:

- ``payload`` ``[n]``: float16, bfloat16, int8, float8_e4m3fn, float32 or float64;
- ``scales`` ``[ceil(n / 256)]``: uint8 exponents e of the E8M0 format, or an empty tensor when the payload is unscaled.

    value[i] = payload[i] * 2 ** (scales[i // 256] - 127)

fp16, int8 and fp8 are block-scaled: at a learning rate of 1e-5 the raw values lie below fp16's smallest normal number.
With 2^k <= largest magnitude of the block < 2^(k+1), the exponent brings that magnitude into

    fp16    e = k - 14 + 127    [2^14, 2^15]    eleven bits for every value down to 2^-28 of the largest
    fp8     e = k - 7 + 127     [2^7, 2^8]      e4m3: four bits down to 2^-13 of the largest; NaN codes are never written
    int8    e = k - 6 + 127     [2^6, 127]      steps of the same size, 1/64 of 2^k; what would round to 128 takes k + 1

and never under e = 0; a block of zeros has e = 127. bfloat16 has the exponent range of float32 and needs no scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .._native import BLOCK as _BLOCK
from ..errors import ConfigurationError

BLOCK: int = _BLOCK
"""Elements that share one scale. The last block of a vector may be shorter."""

EXPONENT_BIAS = 127
"""The exponent byte that means 2^0."""

PAYLOAD_DTYPES: dict[str, torch.dtype] = {
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
"""Payload type of each ``dtype`` name."""

SCALED: dict[torch.dtype, int] = {torch.float16: 14, torch.float8_e4m3fn: 7, torch.int8: 6}
"""The block-scaled payload types: exponent of two to which the largest magnitude of a block is brought."""


def payload_dtype(dtype: str) -> torch.dtype:
    """Payload type of the format ``dtype``; raises ConfigurationError for an unknown name."""
    try:
        return PAYLOAD_DTYPES[dtype]
    except KeyError:
        raise ConfigurationError(f"unknown vector dtype {dtype!r}; expected one of {sorted(PAYLOAD_DTYPES)}") from None


def block_count(n: int) -> int:
    """Blocks in a vector of ``n`` elements."""
    return (n + BLOCK - 1) // BLOCK


def scale_count(n: int, dtype: str) -> int:
    """Scales of a vector of ``n`` elements in the format ``dtype``: one per block, or none."""
    return block_count(n) if payload_dtype(dtype) in SCALED else 0


class EncodedVector(NamedTuple):
    """A vector [n] in one of these formats; an unscaled one has no scales, and an empty payload stands for zeros."""

    payload: Tensor
    scales: Tensor

    @classmethod
    def of(cls, vector: Vector) -> EncodedVector:
        """A plain tensor is a vector without scales."""
        if isinstance(vector, Tensor):
            return cls(vector, torch.empty(0, dtype=torch.uint8, device=vector.device))
        return cls(*vector)

    def narrow(self, begin: int, end: int) -> EncodedVector:
        """Elements [begin, end), the same memory; `begin` is a multiple of the block size."""
        scales = self.scales[begin // BLOCK : -(-end // BLOCK)] if self.scales.numel() else self.scales
        return EncodedVector(self.payload[begin:end], scales)

    @property
    def nbytes(self) -> int:
        return self.payload.nbytes + self.scales.nbytes


Vector = Tensor | tuple[Tensor, Tensor]
"""What an op takes as a vector: a plain tensor, or (payload, scales)."""


def payloads(vectors: Iterable[EncodedVector]) -> list[Tensor]:
    return [payload for payload, _ in vectors]
