"""The running average of the curvature's diagonal while a run is recorded, kept in the anchors.

It changes over some hundred steps, an anchor's distance: a copy in every step's slot would double the log and say no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..curvature.diagonal import DIAGONAL, DIAGONAL_UPDATES
from ..log.anchors import Anchor
from ..ops.recording import Copy, average_parts_, copy_now

KINDS: tuple[str, ...] = ("fisher", "gauss_newton")
BETA = 0.99
"""Of the average: a memory of a hundred steps."""


class DiagonalAverage:
    """h, block-scaled fp16 beside the parameters: h <- BETA h + (1 - BETA) d, d = g^2 or B g^2 (ops.diag_hessian_update_).

    g is the gradient before clipping; B g^2 is the Gauss-Newton-Bartlett estimate with the batch's own labels.
    """

    def __init__(self, kind: str, like: Tensor):
        self.kind, self.updates = kind, 0
        self._h = ops.encode(torch.zeros_like(like), "fp16")

    @property
    def description(self) -> dict[str, Any]:
        """What the manifest says about it."""
        return {"kind": self.kind, "beta": BETA}

    def update(
        self,
        gradients: Sequence[Tensor | None],
        sizes: Sequence[int],
        step: int,
        draws: int,
        clip_factor: float,
        dtype: str = "fp16",
        out: ops.EncodedVector | None = None,
        copy: Copy = copy_now,
    ) -> None:
        """The gradient in parts, as the optimizer consumes it; with ``out``, encoded there as ``encode_parts`` does, in one pass.

        Rounded by chance, by the numbers of ``step``. Raises NumericalError.
        """
        # a factor of 0, clipped from an infinite norm, gives what does not fit and is refused
        scale = 1 / clip_factor**2 if clip_factor else math.inf
        factor = scale * (draws if self.kind == "gauss_newton" else 1)
        average_parts_(gradients, sizes, self._h, BETA, (1 - BETA) * factor, step, dtype, out, copy)
        self.updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """What an anchor keeps."""
        return {DIAGONAL: ops.decode(*self._h), DIAGONAL_UPDATES: torch.tensor([self.updates], dtype=torch.float64)}

    def restore(self, anchor: Anchor) -> None:
        """Go on from an anchor of a log that is resumed."""
        if DIAGONAL in anchor.names():
            self.updates = int(anchor.tensor(DIAGONAL_UPDATES))
            self._h = ops.encode(anchor.tensor(DIAGONAL).to(self._h.payload.device), "fp16")
