"""Which samples the next optimizer step consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import ConfigurationError
from ..log.record import SampleId, normalize_ids, weights_array


@dataclass
class PendingStep:
    """What log.batch() was told since the last step, over all micro-batches."""

    sample_ids: list[SampleId] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    weighted: list[bool] = field(default_factory=list)
    batch_id: SampleId | None = None
    loss_normalizer: float | None = None
    clip: tuple[float, float] | None = None  # (norm, max_norm)
    backward: bool = False  # a gradient has arrived since

    def add(self, sample_ids: Any, batch_id: Any, weights: Any, loss_normalizer: Any) -> tuple[SampleId, ...]:
        """Take in one micro-batch and return its ids; raises ConfigurationError and is then unchanged."""
        ids = normalize_ids(sample_ids)
        given = weights_array(weights, len(ids))
        batch = self.batch_id if batch_id is None else normalize_ids([batch_id])[0]
        normalizer = self.loss_normalizer if loss_normalizer is None else number("loss_normalizer", loss_normalizer)
        if self.weighted and self.weighted[-1] != (given is not None):
            raise ConfigurationError(
                "some micro-batches of this step came with weights and some without: give them for all or none"
            )
        self.batch_id, self.loss_normalizer = batch, normalizer
        self.sample_ids += ids
        self.weighted.append(given is not None)
        self.weights.append(given if given is not None else np.ones(len(ids)))
        return ids

    def shares(self) -> np.ndarray:
        """Each draw's share of the loss, float64; default: 1 / number of draws, over all micro-batches."""
        weights = np.concatenate(self.weights) if self.weights else np.empty(0)
        return weights if not self.weighted or self.weighted[0] else weights / max(1, len(weights))


def number(name: str, value: Any) -> float:
    """A plain number from what users give: an int stays one, as the log's JSON keeps it. Raises ConfigurationError."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigurationError(f"{name} is a number, found {type(value).__name__}: {value!r}")
    return value if isinstance(value, int | float) else float(value)


class DiscardWatch:
    """Tells when gradients were thrown away without a step (a loss-scale overflow): the pending ids then belong to no step.

    There is no hook for that moment. What can be seen: a gradient arrived after log.batch(), and zero_grad() was called before any
    optimizer step. So zero_grad is wrapped on the two instances while the log is attached.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        arrived: Callable[[], None],
        discarded: Callable[[], None],
    ):
        self._wrapped: list[tuple[Any, Any]] = []
        self._handles = [
            p.register_post_accumulate_grad_hook(lambda _: arrived())
            for p in model.parameters()
            if p.requires_grad and p.is_leaf
        ]
        for owner in (model, optimizer):
            self._wrap(owner, discarded)

    def _wrap(self, owner: Any, discarded: Callable[[], None]) -> None:
        original = owner.zero_grad

        def zero_grad(*args: Any, **kwargs: Any) -> None:
            discarded()
            original(*args, **kwargs)

        owner.zero_grad = zero_grad
        self._wrapped.append((owner, zero_grad))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for owner, wrapper in self._wrapped:
            if owner.__dict__.get("zero_grad") is wrapper:
                del owner.zero_grad


def rows(inputs: Any, index: list[int], count: int) -> Any:
    """The given rows of a batch: tensors whose first dimension is the batch are indexed, the rest passed on."""
    if isinstance(inputs, torch.Tensor):
        return inputs[index] if inputs.ndim and inputs.shape[0] == count else inputs
    if hasattr(inputs, "items"):
        return {k: rows(v, index, count) for k, v in inputs.items()}
    if isinstance(inputs, list | tuple):
        if len(inputs) == count and not any(
            isinstance(v, torch.Tensor) and v.ndim and v.shape[0] == count for v in inputs
        ):
            return type(inputs)(inputs[i] for i in index)
        return type(inputs)(rows(v, index, count) for v in inputs)
    return inputs
