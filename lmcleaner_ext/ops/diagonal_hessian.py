"""The running average of an estimate of the curvature's diagonal, kept in block-scaled fp16."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigurationError, NumericalError
from . import checks
from .encoding import EncodedVector, block_count
from .registry import call, compute, register

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
    return call("diag_hessian_update_", backend, *h, g, other, beta, (1 - beta) * factor, seed)


DIAGONAL_OVERFLOW = (
    "the diagonal of the curvature has a NaN, an infinity or a value beyond float32: h is of no further use"
)


def _diag_hessian_update_(
    h: Tensor, scales: Tensor, a: Tensor, b: Tensor, beta: float, weight: float, seed: int | None
) -> Tensor:
    checks.vector("the gradient", a, h.shape[0])
    checks.vector("the probe", b, h.shape[0], a)
    checks.encoded("h", EncodedVector(h, scales), a.shape[0], a.device)
    if h.dtype != torch.float16 or scales.numel() != block_count(h.numel()):
        raise ConfigurationError(f"h must be in block-scaled fp16; found {h.dtype} with {scales.numel()} scales")
    fits = compute("diag_hessian_update_", [a], EncodedVector(h, scales), a, b, beta, weight, seed)
    if fits.device.type == "cpu" and not fits:
        raise NumericalError(DIAGONAL_OVERFLOW)
    return fits


def _fake(h: Tensor, scales: Tensor, a: Tensor, b: Tensor, beta: float, weight: float, seed: int | None) -> Tensor:
    return h.new_empty((), dtype=torch.bool)


register(_diag_hessian_update_, _fake, updates=["h", "scales"])
