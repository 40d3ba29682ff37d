"""One sample's gradient with the weights of linear layers and embeddings as factors: dW = B^T A (log/tracked.py).

While the sample's loss is computed, `torch.nn.Linear` runs through a function of its own, whose backward pass notes its input A and
the gradient B of its output, and hands no gradient on to the weight. `torch.nn.Embedding` is such a layer too, of one-hot rows: the
gradient of its output is A, the rows are B. What autograd still finds for the weight came in by another way (used by hand,
a penalty on it). Then the two are added, and the sum is kept dense: whatever the model does with its weights, the gradient
that is stored is all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layout import ParameterLayout
from ..log.tracked import RecordLayout, Tokens, factors_are_smaller


class LinearFactors:
    """The layers of a model whose weights have factors, and the factors that one backward pass leaves behind."""

    def __init__(self, model: nn.Module, layout: ParameterLayout, parameters: Sequence[Tensor]):
        self.layout = layout
        owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                owners.setdefault(id(p), []).append((module, name))
        self._layers: dict[int, list[nn.Module]] = {
            index: [module for module, _ in owners[id(p)]]
            for index, p in enumerate(parameters)
            if all(name == "weight" and _is_plain(module) for module, name in owners[id(p)])
        }
        self._parameters = parameters
        self._noted: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.noting = False

    @property
    def layers(self) -> dict[int, int]:
        """{number of a parameter that has factors: how many layers share it}."""
        return {index: len(layers) for index, layers in self._layers.items()}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Layers called inside take part. One whose forward someone else has replaced, or whose weight has a hook that may change its
        gradient, is left alone and stays dense."""
        self._noted = {}
        patched = []
        try:
            for index, layers in self._layers.items():
                for layer in layers:
                    if "forward" not in vars(layer) and not self._parameters[index]._backward_hooks:
                        layer.forward = self._forward(index, layer)
                        patched.append(layer)
            yield
        finally:
            for layer in patched:
                del layer.forward

    def gradients(self, loss: Tensor) -> tuple[Tensor | None, ...]:
        """What autograd finds besides the factors, which are noted."""
        self.noting = True  # not before: a loss may itself differentiate
        try:
            return torch.autograd.grad(loss, self._parameters, allow_unused=True)
        finally:
            self.noting = False

    def note(self, index: int, a: Tensor, b: Tensor) -> None:
        """Factors of one call. B is brought to at most 1 by a power of two: then the A of all calls that share a weight, and blocks with
        one exponent, have the magnitudes of what they contribute."""
        a, b = a.detach().to(self.layout.dtype), b.detach().to(self.layout.dtype)
        if b.numel():
            scale = 2.0 ** max(-100, min(100, int(torch.frexp(b.abs().amax()).exponent)))
            a, b = a * scale, b / scale
        self._noted.setdefault(index, []).append((a, b))

    def record(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor, Tokens]:
        """(the record's elements, tokens per parameter), from `gradients` and what was noted; the factors are forgotten."""
        kept: list[Tensor | tuple[Tensor, Tensor] | None] = []
        for index, (entry, gradient) in enumerate(zip(self.layout.entries, gradients, strict=True)):
            factors = self._factors(index) if index in self._layers else None
            if factors is None or (gradient is None and factors_are_smaller(entry, len(factors[0]))):
                kept.append(gradient if factors is None else factors)
                continue
            product = factors[1].T @ factors[0]
            kept.append(product if gradient is None else gradient + product)
        tokens = tuple(len(k[0]) if isinstance(k, tuple) else None for k in kept)
        layout, first = RecordLayout(self.layout, tokens), self._parameters[0]
        record = torch.zeros(layout.size, dtype=self.layout.dtype, device=first.device)
        for parts, places in zip(kept, layout.places, strict=True):
            for part, place in zip(parts if isinstance(parts, tuple) else (parts,), places, strict=True):
                if part is not None:
                    record[place : place + part.numel()] = part.detach().reshape(-1)
        self._noted = {}
        return record, tokens

    def _factors(self, index: int) -> tuple[Tensor, Tensor]:
        """(A, B) over all calls; tokens whose output has no gradient (padding) are left out."""
        dtype, (rows, columns) = self.layout.dtype, self.layout.entries[index].shape
        device = self._parameters[index].device
        empty = (torch.empty(0, columns, dtype=dtype, device=device), torch.empty(0, rows, dtype=dtype, device=device))
        a, b = (torch.cat(side) for side in zip(empty, *self._noted.get(index, []), strict=True))
        used = (a != 0).any(1) & (b != 0).any(1)
        return (a, b) if bool(used.all()) else (a[used], b[used])

    def _forward(self, index: int, layer: nn.Module) -> Any:
        original = layer.forward

        def forward(input: Tensor) -> Tensor:
            known = layer.weight is self._parameters[index]  # and not another one that torch.func has put in its place
            if not known or not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
                return original(input)
            if isinstance(layer, nn.Embedding):
                return _Embedding.apply(input, layer.weight, layer.padding_idx, index, self)
            assert isinstance(layer, nn.Linear)
            flat = input.reshape(-1, input.shape[-1])  # here: a view that is made inside could not be changed in place
            return _Linear.apply(flat, layer.weight, layer.bias, index, self).view(
                *input.shape[:-1], layer.out_features
            )

        return forward


def _is_plain(module: nn.Module) -> bool:
    """Whether the gradient of its weight is the sum over its tokens that is written here."""
    if type(module) is nn.Embedding:
        return not module.sparse and not module.scale_grad_by_freq and module.max_norm is None
    return type(module) is nn.Linear


class _Linear(torch.autograd.Function):
    """x W^T + bias, [T, in] -> [T, out], whose backward pass notes the factors of the weight's gradient instead of multiplying them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, index: int, factors: LinearFactors) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.index, ctx.factors = index, factors
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        a = x.to(b.dtype)  # under autocast the product is taken in its type
        of_input, of_weight, of_bias = ctx.needs_input_grad[:3]
        if ctx.factors.noting:
            ctx.factors.note(ctx.index, a, b)
        return (
            b @ weight.to(b.dtype) if of_input else None,
            b.T @ a if of_weight and not ctx.factors.noting else None,
            b.sum(0) if of_bias else None,
            None,
            None,
        )


class _Embedding(torch.autograd.Function):
    """weight[rows], whose backward pass notes (gradients of the output, one-hot rows)."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, padding: int | None, index: int, factors: LinearFactors
    ) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape, ctx.padding, ctx.index, ctx.factors = weight.shape, padding, index, factors
        return nn.functional.embedding(rows, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rows, a = ctx.saved_tensors[0].reshape(-1), gradient.reshape(-1, ctx.shape[1])
        if ctx.padding is not None:  # torch gives this row no gradient
            used = rows != ctx.padding
            rows, a = rows[used], a[used]
        if not ctx.factors.noting:
            return None, a.new_zeros(ctx.shape).index_add(0, rows, a), None, None, None
        ctx.factors.note(ctx.index, a, a.new_zeros(len(rows), ctx.shape[0]).scatter_(1, rows[:, None].long(), 1))
        return None, None, None, None, None
