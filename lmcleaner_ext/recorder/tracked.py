"""The tracked samples of a run: their own gradients at each use, and the ring that is made for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._native import RingWriter
from ..errors import ConfigurationError
from ..layout import ParameterLayout
from ..log.record import SampleId
from ..log.tracked import RecordLayout, Tokens, sample_tokens
from ..losses import LossFunction, evaluation_mode
from ..ops import EncodedVector
from .layer_factors import LinearFactors


@dataclass(frozen=True)
class TrackedGradient:
    """The gradient of one tracked sample: encoded elements; tokens: of a record with factors (log/tracked.py), None: all dense, [P]."""

    sample_id: SampleId
    vector: EncodedVector
    tokens: Tokens | None = None


@dataclass(frozen=True)
class SampleRing:
    """What the ring of samples is created for: `capacity` slots of `elements` elements, and metadata of `metadata_bytes`.

    tokens: see TrainingLogger's sample_tokens.
    """

    capacity: int
    elements: int
    metadata_bytes: int
    tokens: int | None

    @classmethod
    def of(
        cls,
        layout: ParameterLayout,
        ids: Iterable[SampleId],
        capacity: int,
        layers: Mapping[int, int],
        tokens: int | None,
    ) -> SampleRing:
        """layers: as `LinearFactors.layers`."""
        room = cls.room(layout, ids, tokens)
        if tokens is None:
            return cls(capacity, layout.size, room, None)
        elements = RecordLayout.expected(layout, layers, tokens).size
        # of a sample of any length: factors are smaller
        longest = RecordLayout.expected(layout, {}, tokens).size + ops.BLOCK
        return cls(max(capacity, -(-longest // elements)), elements, room, tokens)

    @staticmethod
    def room(layout: ParameterLayout, ids: Iterable[SampleId], tokens: int | None) -> int:
        """Bytes of metadata that a slot needs for the longest id and the number of tokens of each parameter."""
        return 128 + max(len(json.dumps(i)) for i in ids) + (0 if tokens is None else 8 * len(layout.entries))


class TrackedSamples:
    """Takes the gradient of a tracked sample from the live model, dense or (with `tokens`) with factors, encoded for the log."""

    def __init__(
        self,
        model: nn.Module,
        layout: ParameterLayout,
        parameters: Sequence[Tensor],
        loss_fn: LossFunction,
        ids: Iterable[SampleId],
        tokens: int | None,
    ):
        self.model, self.layout, self.loss_fn, self.ids, self.tokens = model, layout, loss_fn, frozenset(ids), tokens
        self._parameters = parameters
        self._factors = None if tokens is None else LinearFactors(model, layout, parameters)

    def ring(self, capacity: int | None) -> SampleRing | None:
        """What to create; `capacity` None: four uses of each id."""
        if not self.ids:
            return None
        layers = self._factors.layers if self._factors is not None else {}
        return SampleRing.of(self.layout, self.ids, capacity or 4 * len(self.ids), layers, self.tokens)

    def check_resumed(self, ring: RingWriter | None) -> None:
        """Raise ConfigurationError where the ring of a resumed log cannot take these samples: it stays as it was created."""
        if not self.ids:
            return
        if ring is None:
            raise ConfigurationError('this log was written without track_ids: resume it with mode="batch"')
        if sample_tokens(ring) != self.tokens:
            raise ConfigurationError(
                f"this log was written with sample_tokens={sample_tokens(ring)}, found {self.tokens}"
            )
        need = SampleRing.room(self.layout, self.ids, self.tokens)
        if need > ring.metadata_bytes:
            raise ConfigurationError(
                f"the longest of track_ids takes {need} bytes of metadata, the log was created for {ring.metadata_bytes}: "
                "start a new log for longer ids"
            )

    def gradient(self, identity: SampleId, inputs: object, dtype: str) -> TrackedGradient:
        """grad l(z; theta[t]) of one row; raises NumericalError for what `dtype` cannot hold."""
        gradients = sample_gradient(self.model, self.loss_fn, inputs, self._parameters, self._factors)
        tokens: Tokens | None = None
        if self._factors is not None:
            values, tokens = self._factors.record(gradients)
        else:
            values = self.layout.flatten(gradients)
        payload, scales = ops.encode(values, dtype)
        return TrackedGradient(identity, EncodedVector(payload.cpu(), scales.cpu()), tokens)


def sample_gradient(
    model: nn.Module, loss_fn: LossFunction, inputs: Any, parameters: Sequence[Tensor], factors: LinearFactors | None
) -> Sequence[Tensor | None]:
    """grad l(z; theta[t]) of one row, without a trace in the run: no .grad, no random numbers, no buffers.

    With `factors` without the parts that come from linear layers: those wait in it, for `factors.record`.
    """
    buffers = [(b, b.clone()) for b in model.buffers()]
    watching = nullcontext() if factors is None else factors.watching()
    with torch.random.fork_rng(), torch.enable_grad(), evaluation_mode(model), watching:
        loss = loss_fn(model, inputs).sum()
        gradients: Sequence[Tensor | None] = (
            torch.autograd.grad(loss, parameters, allow_unused=True) if factors is None else factors.gradients(loss)
        )
    with torch.no_grad():
        for buffer, saved in buffers:
            buffer.copy_(saved)
    return gradients
