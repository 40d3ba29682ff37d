"""How likely a model finds given answers: loss, probability and truth ratio.

Source of the last two: TOFU (Maini et al., 2024, arXiv:2401.06121), section 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lmcleaner_ext.errors import ConfigurationError
from lmcleaner_ext.evaluation.forward import Predictor, evaluating, labels_of, logits_of, predictions


class AnswerLoss(NamedTuple):
    """Cross-entropy of a batch, in nats per token."""

    mean: float  # over all tokens of the batch: what a transformers model returns as its loss
    per_sample: Tensor  # [B] float64, cpu: mean over each sample's tokens
    tokens: Tensor  # [B] int64, cpu: how many tokens count in each sample


def answer_loss(model: Predictor, batch: Mapping[str, Tensor]) -> AnswerLoss:
    """The loss of a batch {"input_ids", "labels", ...: [B, L]}, labels not shifted, -100 where they do not count:

        loss_j = -(1/|a_j|) sum_{t in a_j} log p(token_t | tokens before)

    Token losses are taken in float32, or float64 for a float64 model. No gradient; the model's mode is restored. Raises
    ConfigurationError for a row in which no token counts.
    """
    labels = labels_of(batch)
    with evaluating(model):
        selected, targets, rows = predictions(logits_of(model, batch), labels)
        wide = selected if selected.dtype == torch.float64 else selected.float()
        losses = cross_entropy(wide, targets, reduction="none").double().cpu()  # [N]
    sums = torch.zeros(len(labels), dtype=torch.float64).index_add_(0, rows.cpu(), losses)
    tokens = torch.bincount(rows.cpu(), minlength=len(labels))
    return AnswerLoss(float(sums.sum() / tokens.sum()), sums / tokens, tokens)


def answer_probability(model: Predictor, batch: Mapping[str, Tensor]) -> Tensor:
    """TOFU's probability of each answer, `[B]` float64:  P(a|q)^(1/|a|) = exp(-loss_j), the tokens' geometric mean."""
    return torch.exp(-answer_loss(model, batch).per_sample)


def truth_ratio(
    model: Predictor,
    paraphrased: Mapping[str, Tensor],
    perturbed: Sequence[Mapping[str, Tensor]],
    *,
    mean: str = "arithmetic",
) -> Tensor:
    """TOFU's truth ratio of each sample, `[B]` float64:

        R = mean_{a' perturbed} P(a'|q)^(1/|a'|)  /  P(a~|q)^(1/|a~|)        a~: the paraphrased true answer

    Near 0 the model tells the truth from the falsehoods, near 1 it does not. paraphrased: a batch of B rows.
    perturbed: N batches of B rows, the n-th holding each sample's n-th perturbed answer. mean: "arithmetic" as in the
    paper's equation 1 and its model utility, or "geometric" as in the code of its forget quality test.
    """
    if not perturbed:
        raise ConfigurationError("a truth ratio needs at least one batch of perturbed answers")
    true = answer_probability(model, paraphrased)  # [B]
    wrong = torch.stack([answer_probability(model, batch) for batch in perturbed], dim=1)  # [B, N]
    return ratio_of_probabilities(true, wrong, mean=mean)


def ratio_of_probabilities(true: Tensor, wrong: Tensor, *, mean: str = "arithmetic") -> Tensor:
    """The truth ratio `[B]` from P(true answer) `[B]` and P(perturbed answers) `[B, N]`."""
    if mean == "arithmetic":
        return wrong.mean(dim=1) / true
    if mean == "geometric":
        return torch.exp(wrong.log().mean(dim=1) - true.log())
    raise ConfigurationError(f"mean must be 'arithmetic' or 'geometric', found {mean!r}")


def truth_ratio_score(ratios: Tensor, *, forget: bool) -> float:
    """TOFU's mean over samples, higher is better: min(R, 1/R) on the forget set, max(0, 1 - R) on every other."""
    scores = torch.minimum(ratios, 1 / ratios) if forget else (1 - ratios).clamp(min=0)
    return float(scores.mean())
