"""The residual: how far a corrected model is from the one that never saw the forgotten samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmcleaner_ext.errors import ConfigurationError, NumericalError

CHUNK = 1 << 20  # elements per float64 temporary: 8 MB, whatever the size of the model


def residual(theta_hat: Tensor, theta_ideal: Tensor, theta_trained: Tensor) -> float:
    """The residual, a deletion's success in the parameters:

        rho = ||theta_hat - theta_ideal|| / ||theta_trained - theta_ideal||        1: did nothing, 0: exact

    theta_hat: the corrected parameters, theta_ideal: those retrained without the forgotten samples, theta_trained:
    those before the correction; flat `[P]`, any floating dtype and device. Differences and norms are taken in
    float64.

    Raises ConfigurationError for shapes that differ and where theta_trained equals theta_ideal (the forgotten samples
    had no influence, so there is nothing to measure), NumericalError for a NaN or an infinity.
    """
    distance = euclidean_distance(theta_hat, theta_ideal)
    baseline = euclidean_distance(theta_trained, theta_ideal)
    if baseline == 0.0:
        raise ConfigurationError(
            "the trained and the ideal parameters are equal, so the residual is 0/0: the forgotten samples took part "
            "in no step between them, or the retrained run did not leave them out"
        )
    return distance / baseline


def euclidean_distance(a: Tensor, b: Tensor) -> float:
    """||a - b|| in float64 for flat tensors `[P]`; raises as `residual` does."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        raise ConfigurationError(f"expected two tensors [P], found {type(a).__name__} and {type(b).__name__}")
    if a.shape != b.shape or a.dim() != 1:
        raise ConfigurationError(
            f"expected two flat tensors of one size, found shapes {list(a.shape)} and {list(b.shape)}"
        )
    total = 0.0
    for part_a, part_b in zip(a.detach().split(CHUNK), b.detach().split(CHUNK), strict=True):
        difference = part_a.to(torch.float64) - part_b.to(device=part_a.device, dtype=torch.float64)
        total += float(difference.square().sum())
    if not math.isfinite(total):
        raise NumericalError("the parameters hold a NaN or an infinity, or their distance overflows float64")
    return math.sqrt(total)
