"""The order in which a model's trainable parameters lie in one flat vector theta [P].

    theta = concat(p.reshape(-1) for (name, p) in model.named_parameters() if p is trained by the optimizer)

Tied parameters appear once (as `named_parameters` gives them), frozen ones not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigurationError, WrongModelError


@dataclass(frozen=True)
class ParameterEntry:
    """One parameter's place in the flat vector."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    begin: int
    end: int
    group: int  # index into optimizer.param_groups


@dataclass(frozen=True)
class ParameterLayout:
    """Names, shapes and offsets of the trainable parameters, and the description of the whole model that they belong to."""

    entries: tuple[ParameterEntry, ...]
    # of all parameters: (name, shape, dtype, tied to, trainable)
    signature: tuple[tuple[str, tuple[int, ...], str, str, bool], ...]

    @classmethod
    def of(cls, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> ParameterLayout:
        """Read the layout off a model; without an optimizer every parameter that requires a gradient is in group 0.

        Raises ConfigurationError when the optimizer holds parameters that the model does not have.
        """
        if not isinstance(model, nn.Module):
            raise ConfigurationError(f"model is a torch.nn.Module, found {type(model).__name__}")
        if optimizer is not None and not hasattr(optimizer, "param_groups"):
            raise ConfigurationError(f"optimizer is a torch.optim.Optimizer, found {type(optimizer).__name__}")
        if optimizer is None:
            group_of = {id(p): 0 for p in model.parameters() if p.requires_grad}
        else:
            group_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        first_name: dict[int, str] = {}
        entries, signature, begin = [], [], 0
        for name, p in model.named_parameters(remove_duplicate=False):
            tied_to = first_name.setdefault(id(p), name)
            trainable = p.requires_grad and id(p) in group_of
            dtype = str(p.dtype).removeprefix("torch.")
            signature.append((name, tuple(p.shape), dtype, "" if tied_to == name else tied_to, trainable))
            if trainable and tied_to == name:
                entries.append(ParameterEntry(name, tuple(p.shape), dtype, begin, begin + p.numel(), group_of[id(p)]))
                begin += p.numel()
        foreign = set(group_of) - set(first_name)
        if foreign:
            raise ConfigurationError(
                f"the optimizer holds {len(foreign)} parameter(s) that the model does not have; "
                "pass the same model that the optimizer was built for"
            )
        if not entries:
            raise ConfigurationError(
                "no parameter of this model is trainable and in the optimizer: there is nothing to log"
            )
        return cls(tuple(entries), tuple(signature))

    @property
    def size(self) -> int:
        """P, the number of trainable elements."""
        return self.entries[-1].end

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of everything computed about this model: float64 if any parameter is, else float32."""
        return torch.float64 if any(e.dtype == "float64" for e in self.entries) else torch.float32

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """The model's trainable parameters in layout order; raises WrongModelError at the first difference."""
        self.check(model)
        own = dict(model.named_parameters(remove_duplicate=False))
        return [own[e.name] for e in self.entries]

    def check(self, model: nn.Module) -> None:
        """Raise WrongModelError naming the first parameter whose name, shape or dtype differs."""
        if not isinstance(model, nn.Module):
            raise ConfigurationError(f"model is a torch.nn.Module, found {type(model).__name__}")
        found = [
            (n, tuple(p.shape), str(p.dtype).removeprefix("torch."))
            for n, p in model.named_parameters(remove_duplicate=False)
        ]
        logged = [(name, shape, dtype) for name, shape, dtype, _, _ in self.signature]
        for a, b in zip(logged, found, strict=False):
            if a != b:
                raise WrongModelError(
                    f"the log has parameter {a[0]} {list(a[1])} {a[2]}, the model has {b[0]} {list(b[1])} {b[2]}"
                )
        if len(logged) != len(found):
            raise WrongModelError(f"the log describes {len(logged)} parameters, the model has {len(found)}")

    def flatten(self, tensors: Iterable[Tensor | None], out: Tensor | None = None) -> Tensor:
        """Concatenate per-parameter tensors (None means zeros) into `out` [P]."""
        tensors = list(tensors)
        if out is None:
            first = next((t for t in tensors if t is not None), None)
            out = torch.empty(self.size, dtype=self.dtype, device=first.device if first is not None else "cpu")
        for entry, tensor in zip(self.entries, tensors, strict=True):
            target = out[entry.begin : entry.end]
            if tensor is None:
                target.zero_()
            else:
                target.copy_(tensor.detach().reshape(-1))
        return out

    def views(self, flat: Tensor) -> Iterator[Tensor]:
        """Each parameter's part of `flat` [P], in its own shape, without a copy."""
        for entry in self.entries:
            yield flat[entry.begin : entry.end].view(entry.shape)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """`views` by name, as torch.func.functional_call takes them."""
        return {entry.name: view for entry, view in zip(self.entries, self.views(flat), strict=True)}

    def to_json(self) -> dict[str, Any]:
        groups = {e.name: e.group for e in self.entries}
        return {"parameters": [[*row, groups.get(row[0], -1)] for row in self.signature]}

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> ParameterLayout:
        entries, signature, begin = [], [], 0
        for name, shape, dtype, tied_to, trainable, group in table["parameters"]:
            signature.append((str(name), tuple(int(n) for n in shape), str(dtype), str(tied_to), bool(trainable)))
            if trainable and not tied_to:
                count = 1
                for n in shape:
                    count *= int(n)
                entries.append(ParameterEntry(name, tuple(shape), dtype, begin, begin + count, int(group)))
                begin += count
        return cls(tuple(entries), tuple(signature))

    def fingerprint(self, run_id: bytes, weights_digest: str) -> bytes:
        """SHA-256 over the ordered parameter table, the run and the weights it started from: 32 bytes."""
        text = json.dumps([self.signature, run_id.hex(), weights_digest], separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()
