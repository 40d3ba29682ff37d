"""A fine-tuning run that can be done again: as it was, while being logged, or without some of its samples.

The loop is plain torch, with the step's loss as transformers has it: the sum of the tokens' cross-entropies over the
number of tokens in the batch. The retrained run leaves the forgotten rows out of the batch and keeps that number
("placeholder", docs/method.md, section 1), so it is what a user would run, and it does not use the library at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import lmcleaner_ext as lmc
from lmcleaner_ext.datasets import IGNORE, token_weights
from lmcleaner_ext.layout import ParameterLayout

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Schedule:
    """Which samples each step takes and at which learning rate, and where their tokens come from.

    batches: sample ids, one list per step; rates: learning rates; data: sample ids -> padded batch with `labels`
    """

    batches: Sequence[Sequence[int]]
    rates: Sequence[float]
    data: Callable[[Sequence[int]], Batch]

    def __len__(self) -> int:
        return len(self.batches)

    def uses(self, ids: Collection[int]) -> list[tuple[int, int]]:
        """(step, id) of every use of `ids`, in order."""
        return [(step, i) for step, batch in enumerate(self.batches) for i in batch if i in ids]


def shuffled_batches(ids: Sequence[int], size: int, steps: int, seed: int) -> list[list[int]]:
    """`steps` batches of `size` ids, epoch after epoch, each in its own random order."""
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-steps * size // len(ids))
    order = [ids[i] for _ in range(epochs) for i in torch.randperm(len(ids), generator=generator).tolist()]
    return [order[at : at + size] for at in range(0, steps * size, size)]


def token_count(batch: Mapping[str, Tensor]) -> int:
    return int((batch["labels"][:, 1:] != IGNORE).sum())


def summed_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Sum of the next-token cross-entropies, in the model's own precision. The labels move, so no logit is copied."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    targets = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE)
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORE)


class Training:
    """One run over a schedule, a step at a time: so two runs can be interleaved and compared step by step."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        without: Collection[int] = (),
        clip: float | None = None,
        log: lmc.TrainingLogger | None = None,
    ):
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.without, self.clip, self.log = frozenset(without), clip, log

    def step(self, t: int) -> None:
        self.backward(t)
        self.move(t)

    def backward(self, t: int) -> None:
        """The gradient of step t, without those of the samples that are left out."""
        ids = self.schedule.batches[t]
        batch = self.schedule.data(ids)
        tokens = token_count(batch)
        if self.log is not None:
            self.log.batch(ids, weights=token_weights(batch["labels"]), inputs=batch, loss_normalizer=tokens)
        kept = [i for i in ids if i not in self.without]
        if len(kept) < len(ids):
            if not kept:
                raise ValueError(f"step {t} holds forgotten samples only; choose another seed or a larger batch")
            batch = self.schedule.data(kept)
        (summed_loss(self.model, batch) / tokens).backward()

    def move(self, t: int) -> None:
        """The optimizer's step t with the gradient that is there."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rates[t]
        if self.clip is not None and self.log is not None:
            self.log.clip_grad_norm_(self.clip)
        elif self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self) -> None:
        for t in range(len(self.schedule)):
            self.step(t)


def published_recursion(log: lmc.StepLog, uses: Sequence[tuple[int, int]]) -> Tensor:
    """delta of docs/method.md, section 3 without curvature: the sum of -(lr/B) grad l(z_j; theta[t_z]) over all uses, [P].

    With C = 0 nothing changes an injected vector afterwards, so K = 0 and every other K agree.
    """
    gradients = log.sample_window(uses)
    gradients.verify(0, log.layout.size)
    delta = torch.zeros(log.layout.size, dtype=log.layout.dtype)
    for index, (step, identity) in enumerate(uses):
        record = log[step]
        weight = sum(w for i, w in zip(record.sample_ids, record.weights, strict=True) if i == identity)
        delta.add_(gradients.decode(index, log.layout.dtype), alpha=-record.lr[0] * float(weight))
    return delta


def predictor(model: nn.Module, layout: ParameterLayout, theta: Tensor) -> Callable[..., Any]:
    """The model with the parameters theta [P] instead of its own, for lmcleaner_ext.evaluation."""
    parameters = layout.named(theta)

    def predict(**batch: Tensor) -> Any:
        return functional_call(model, parameters, kwargs={**batch, "use_cache": False})

    return predict


def flat_parameters(model: nn.Module, layout: ParameterLayout) -> Tensor:
    """theta [P], a copy."""
    return layout.flatten(layout.parameters(model))


@torch.no_grad()
def load_parameters(model: nn.Module, layout: ParameterLayout, theta: Tensor) -> None:
    for p, view in zip(layout.parameters(model), layout.views(theta), strict=True):
        p.copy_(view)


def pieces(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """`ids` in pieces of at most `size`."""
    for at in range(0, len(ids), size):
        yield ids[at : at + size]
