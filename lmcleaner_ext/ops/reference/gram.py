"""Many vectors at once in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..encoding import EncodedVector
from .encoded_vector import decode, decoded


def row_squares(vectors: Sequence[EncodedVector]) -> Tensor:
    """The sum of squares of each vector, float64 [K]."""
    return torch.stack([decoded(x).square().sum() for x in vectors])


def gram(vectors: Sequence[EncodedVector], rows: int) -> Tensor:
    """The inner product of each of the first `rows` vectors with each of all K, float64 [rows, K]."""
    values = [decoded(x) for x in vectors]
    return torch.stack([torch.stack([torch.dot(a, b) for b in values]) for a in values[:rows]])


def combine_(out: Tensor, vectors: Sequence[EncodedVector], coefficients: Tensor) -> None:
    """out [R, n] += coefficients [R, K] times the K vectors."""
    for k, x in enumerate(vectors):
        vector = torch.empty_like(out[0])
        decode(x, vector)
        out += coefficients[:, k, None].to(out) * vector
