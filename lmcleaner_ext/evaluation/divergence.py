"""Kullback-Leibler divergence between what two models say, and its ratio before and after a deletion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lmcleaner_ext.errors import ConfigurationError, NumericalError
from lmcleaner_ext.evaluation.forward import Predictor, evaluating, labels_of, logits_of, predictions

TOKENS = 512  # positions per float64 temporary: 200 MB at a vocabulary of 49,152


def kl_divergence(p_logits: Tensor, q_logits: Tensor, labels: Tensor) -> float:
    """Mean over the answer's tokens of KL(p || q), in nats:

        (1/N) sum_{n counts} sum_v p_n(v) (log p_n(v) - log q_n(v))

    p_logits, q_logits: `[B, L, V]`, any floating dtype. labels: `[B, L]`, not shifted; position t counts if labels[:,
    t + 1] is not -100. Taken in float64: the divergence is of second order in a difference of logits, and rounding in
    float32 would drown a good deletion's. Raises ConfigurationError for shapes that do not fit, NumericalError if the
    result is not finite.
    """
    total, count = _kl_sum(p_logits, q_logits, labels)
    return _finite(total / count)


def model_kl(p_model: Predictor, q_model: Predictor, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """`kl_divergence` of two models over all tokens that count in `batches`; one batch in memory at a time."""
    total, count = 0.0, 0
    with evaluating(p_model, q_model):
        for batch in batches:
            part, tokens = _kl_sum(logits_of(p_model, batch), logits_of(q_model, batch), labels_of(batch))
            total, count = total + part, count + tokens
    if count == 0:
        raise ConfigurationError("no batches to measure on")
    return _finite(total / count)


def kl_ratio(
    ideal: Predictor, estimate: Predictor, trained: Predictor, batches: Iterable[Mapping[str, Tensor]]
) -> float:
    """The KL ratio, a deletion's success in what the model says:

        KL(p_ideal || p_estimate) / KL(p_ideal || p_trained)        1: did nothing, 0: exact

    ideal, estimate, trained: models, or callables from a batch to logits; they may share modules, as functional calls
    do. batches: dicts with `labels` (see `kl_divergence`), read once. Raises ConfigurationError where the trained and
    the ideal model say the same on these batches.
    """
    corrected, baseline, count = 0.0, 0.0, 0
    with evaluating(ideal, estimate, trained):
        for batch in batches:
            p_logits = logits_of(ideal, batch)
            part, tokens = _kl_sum(p_logits, logits_of(estimate, batch), labels_of(batch))
            corrected, count = corrected + part, count + tokens
            baseline += _kl_sum(p_logits, logits_of(trained, batch), labels_of(batch))[0]
    if count == 0:
        raise ConfigurationError("no batches to measure on")
    if _finite(baseline) <= 0.0:
        raise ConfigurationError("the trained and the ideal model agree on these batches, so the KL ratio is 0/0")
    return _finite(corrected) / baseline


@torch.no_grad()
def _kl_sum(p_logits: Tensor, q_logits: Tensor, labels: Tensor) -> tuple[float, int]:
    if p_logits.shape != q_logits.shape:
        raise ConfigurationError(f"logits of different shapes: {list(p_logits.shape)} and {list(q_logits.shape)}")
    p_selected, _, _ = predictions(p_logits, labels)  # [N, V]
    q_selected, _, _ = predictions(q_logits, labels)
    total = 0.0
    for p_part, q_part in zip(p_selected.split(TOKENS), q_selected.split(TOKENS), strict=True):
        log_p = p_part.to(torch.float64).log_softmax(dim=-1)
        log_q = q_part.to(p_part.device, torch.float64).log_softmax(dim=-1)
        total += float(torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True))
    return total, len(p_selected)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise NumericalError(f"the KL divergence is {value}: the logits hold a NaN or an infinity")
    return value
