"""Running a model for measurement only: no gradient, evaluation mode, everything put back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lmcleaner_ext.datasets.batches import IGNORE
from lmcleaner_ext.errors import ConfigurationError

# A model, or any callable that takes a batch as keyword arguments (a functional_call over other parameters, say) and
# returns logits [B, L, V] or an object that has them as `.logits`.
Predictor = Callable[..., Any]


@contextmanager
def evaluating(*models: Predictor) -> Iterator[None]:
    """No gradients, and every module of `models` in evaluation mode; on exit each module's own mode is restored.

    Each module has its own because a frozen part of a model in training may be in evaluation mode.
    """
    modes = [
        (module, module.training) for model in models if isinstance(model, nn.Module) for module in model.modules()
    ]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def logits_of(model: Predictor, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits `[B, L, V]` of a batch, on the model's device; labels are not passed on."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    if isinstance(model, nn.Module):
        device = next((parameter.device for parameter in model.parameters()), None)
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    output = model(**inputs)
    logits: Tensor = output.logits if hasattr(output, "logits") else output
    return logits


def labels_of(batch: Mapping[str, Tensor]) -> Tensor:
    """The batch's labels `[B, L]`; raises ConfigurationError where it has none."""
    if "labels" not in batch:
        raise ConfigurationError(f"the batch has no labels, only {', '.join(map(str, batch)) or 'nothing'}")
    return batch["labels"]


def predictions(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The positions that predict a label which counts: logits `[N, V]`, their labels `[N]`, their rows `[N]`.

    logits: `[B, L, V]`; labels: `[B, L]`, not shifted: position t predicts labels[:, t + 1]. Raises
    ConfigurationError if a shape does not fit or a row has no label that counts.
    """
    if logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise ConfigurationError(
            f"expected logits [B, L, V] and labels [B, L], found {list(logits.shape)} and {list(labels.shape)}"
        )
    labels = labels[:, 1:].to(logits.device)
    valid = labels != IGNORE  # [B, L - 1]
    empty = (~valid.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ConfigurationError(f"rows {empty} of the batch have no label that counts: nothing to measure there")
    return logits[:, :-1][valid], labels[valid], valid.nonzero()[:, 0]
