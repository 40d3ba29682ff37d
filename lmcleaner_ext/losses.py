"""Per-sample losses, and the weighted sums of their gradients that the engine asks for.

A loss function is a callable (model, batch) -> losses [n], one per sample in the batch's order (preferred), or their mean.
A step's loss is  L = sum_j w_j l_j  with the weights of the log's record, so any normalisation can be written as weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .errors import ConfigurationError, MissingDataError
from .layout import ParameterLayout

Batch = Mapping[str, Any]
LossFunction = Callable[[nn.Module, Any], Tensor]
Data = Callable[[list[Any]], Any]
Weights = Mapping[Any, float]


class CausalLMLoss:
    """Mean next-token cross-entropy of each row: l_j = mean over {t: labels[j, t+1] != -100} of CE(logits[j, t], labels[j, t+1]).

    batch: input_ids [n, L], optionally attention_mask [n, L] and labels [n, L] (default: input_ids where attended).
    """

    def outputs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(logits [n, L-1, V], targets [n, L-1], weights [n, L-1]): l_j = sum_t weights[j, t] CE(logits[j, t], targets[j, t])."""
        _require(batch, "input_ids")
        inputs = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "position_ids")}
        labels = batch.get("labels")
        if labels is None:
            mask = batch.get("attention_mask")
            labels = batch["input_ids"] if mask is None else batch["input_ids"].masked_fill(mask == 0, -100)
        options = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
        output = model(**inputs, **options)
        logits = output.logits if hasattr(output, "logits") else output
        targets = labels[:, 1:]
        valid = (targets != -100).to(logits.dtype)
        return logits[:, :-1], targets, valid / valid.sum(1, keepdim=True).clamp(min=1)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return weighted_cross_entropy(*self.outputs(model, batch))


class ClassificationLoss:
    """Cross-entropy of each row: l_j = CE(model(inputs)[j], targets[j]).  batch: inputs [n, ...], targets [n]."""

    def outputs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(logits [n, V], targets [n], ones [n])."""
        _require(batch, "inputs", "targets")
        logits = model(batch["inputs"])
        return logits, batch["targets"], torch.ones_like(logits[..., 0])

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return weighted_cross_entropy(*self.outputs(model, batch))


def _require(batch: Any, *keys: str) -> None:
    """Raise ConfigurationError unless the batch is a mapping that has these."""
    if not isinstance(batch, Mapping) or not set(keys) <= set(batch):
        found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise ConfigurationError(
            f"this loss takes a batch with {' and '.join(keys)}, found {found}: pass loss_fn= for batches of another form"
        )


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """sum over the inner dimensions of weights * CE: [n, ..., V], [n, ...], [n, ...] -> [n]; targets of -100 count nothing."""
    token = nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none", ignore_index=-100
    )
    return (token.view(targets.shape) * weights).reshape(len(targets), -1).sum(1)


class _LossModule(nn.Module):
    """loss_fn(model, batch) as a module, so that functional_call can put other parameters under it."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Any], Any]):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: Any) -> Any:
        return self.function(self.model, batch)


class LossGradients:
    """Derivatives of sum_j w_j l_j(theta) at any theta, without touching the model's own weights.

    data: ids -> batch;  micro_batch: rows per forward pass, which bounds memory.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: ParameterLayout,
        data: Data | None,
        loss_fn: LossFunction | None,
        micro_batch: int,
    ):
        self.model, self.layout, self.data, self.micro_batch = model, layout, data, micro_batch
        if loss_fn is not None and not callable(loss_fn):
            raise ConfigurationError(
                f"loss_fn is a callable (model, batch) -> losses [n], found {type(loss_fn).__name__}"
            )
        self.loss_fn: LossFunction = loss_fn or CausalLMLoss()
        layout.check(model)
        self.names = ["model." + entry.name for entry in layout.entries]
        self.device = next(model.parameters()).device
        self.calls = 0

    def parameters(self, theta: Tensor) -> tuple[Tensor, ...]:
        """theta [P] as one tensor per parameter, in the model's dtypes and on its device."""
        own = dict(self.model.named_parameters(remove_duplicate=False))
        return tuple(
            view.to(self.device, own[entry.name].dtype)
            for entry, view in zip(self.layout.entries, self.layout.views(theta), strict=True)
        )

    def call(
        self, parameters: tuple[Tensor, ...], batch: Any, function: Callable[[nn.Module, Any], Any] | None = None
    ) -> Any:
        """function(model with these parameters, batch); default: the loss."""
        self.calls += 1
        module = _LossModule(self.model, function or self.loss_fn)
        return functional_call(module, dict(zip(self.names, parameters, strict=True)), (batch,))

    def batches(self, weights: Weights) -> Iterator[tuple[Any, Tensor]]:
        """(batch, weights [rows]) in pieces of at most `micro_batch` rows; rows of weight zero are left out."""
        if self.data is None:
            raise MissingDataError(
                "this needs the training samples: pass data=, a callable from a list of ids to a batch"
            )
        ids = [i for i, weight in weights.items() if weight]
        for at in range(0, len(ids), self.micro_batch):
            piece = ids[at : at + self.micro_batch]
            batch = to_device(self.data(piece), self.device)
            yield batch, torch.tensor([weights[i] for i in piece], device=self.device, dtype=torch.float64)

    def losses(self, parameters: tuple[Tensor, ...], batch: Any, rows: int) -> Tensor:
        """Per-sample losses [rows]; a loss_fn that returns the mean is accepted for single rows."""
        value = self.call(parameters, batch)
        if not isinstance(value, Tensor):
            raise ConfigurationError(f"loss_fn returned {type(value).__name__}: return a tensor of one loss per sample")
        if value.ndim == 0 and rows == 1:
            return value[None]
        if value.shape != (rows,):
            raise ConfigurationError(
                f"loss_fn returned shape {tuple(value.shape)} for {rows} samples: return one loss per sample, shape [{rows}]"
                + (" (or pass micro_batch=1 for a loss that is a mean)" if value.ndim == 0 else "")
            )
        return value

    def gradient(self, theta: Tensor, weights: Weights) -> Tensor:
        """sum_j w_j grad l_j(theta): [P], zeros for no weights."""
        total = torch.zeros(self.layout.size, dtype=self.layout.dtype)
        with evaluation_mode(self.model):
            for batch, w in self.batches(weights):
                parameters = tuple(p.detach().requires_grad_() for p in self.parameters(theta))
                loss = (self.losses(parameters, batch, len(w)) * w).sum()
                total += self.layout.flatten(torch.autograd.grad(loss, parameters, allow_unused=True)).cpu()
        return total


def to_device(batch: Any, device: torch.device) -> Any:
    """Tensors of a (possibly nested) batch on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(v, device) for v in batch)
    return batch


def data_source(data: Any) -> Data | None:
    """`data=` as users give it: a callable, or (dataset, collator) whose ids are the dataset's row numbers."""
    if data is None or callable(data):
        return data
    if isinstance(data, tuple) and len(data) == 2 and callable(data[1]):
        dataset, collate = data
        return lambda ids: collate([_row(dataset, i) for i in ids])
    raise ConfigurationError(
        f"data is a callable from ids to a batch, or a pair (dataset, collator); found {type(data).__name__}"
    )


def _row(dataset: Any, identity: Any) -> Any:
    try:
        return dataset[identity]
    except (IndexError, KeyError, TypeError) as error:
        raise MissingDataError(
            f"the data set has no row {identity!r} ({type(error).__name__}: {error}): with data=(dataset, collator) the ids that were "
            "logged are row numbers of the data set"
        ) from error


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, every module's own mode back afterwards: gradients here must not depend on a random mask."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
