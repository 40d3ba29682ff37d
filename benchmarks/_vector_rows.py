"""The part of bench_ops.py that is about the ops of lmcleaner_ext/ops/vector.py. Baselines do the same work in torch."""

from __future__ import annotations

from _common import Row, compared  # before torch

# isort: split
from collections.abc import Callable

import torch
from torch import Tensor

from lmcleaner_ext import ops

LR, DAMPING = 1e-2, 1e-3
Encoded = tuple[Tensor, Tensor]


def decode(vector: Encoded, out: Tensor) -> Tensor:
    """Eager torch, without an allocation but the scales'."""
    payload, scales = vector
    factors = torch.exp2(scales.float() - 127)
    torch.mul(payload.view(-1, ops.BLOCK), factors[:, None], out=out.view(-1, ops.BLOCK))
    return out


class Problem:
    """P elements, a log of K encoded vectors; P is a multiple of the block."""

    def __init__(self, elements: int, steps: int, device: str, magnitude: float = 1.0):
        self.generator = torch.Generator().manual_seed(0)
        self.elements, self.device = elements, device
        self.v = self.plain(1.0)
        self.log = [self.encoded(magnitude) for _ in range(steps)]

    def plain(self, magnitude: float) -> Tensor:
        return (torch.randn(self.elements, generator=self.generator) * magnitude).to(self.device)

    def encoded(self, magnitude: float) -> Encoded:
        payload, scales = ops.encode(torch.randn(self.elements, generator=self.generator).abs_() * magnitude, "fp16")
        return payload.to(self.device), scales.to(self.device)


def propagation_rows(elements: int, steps: int, repeats: int, device: str, every_baseline: bool) -> list[Row]:
    """The factors are not reduced to their maximum in the baselines, in their favour."""
    problem = Problem(elements, steps, device)
    v, log, x = problem.v, problem.log, torch.empty(elements, device=device)
    coefficients = torch.tensor([[LR, DAMPING]] * steps, dtype=torch.float64)
    keep = 1 - LR * DAMPING

    def eager() -> Tensor:
        for vector in log:
            v.mul_(decode(vector, x).mul_(-LR).add_(keep))
        return v.square().sum()

    parts = list(v.split(1 << 20))
    scratch = [torch.empty_like(part) for part in parts]

    def foreach() -> Tensor:
        """One list of parameters per step, as an optimizer's foreach implementation has it."""
        for payload, scales in log:
            factors = torch.exp2(scales.float() - 127).repeat_interleave(ops.BLOCK).split(1 << 20)
            torch._foreach_copy_(scratch, payload.split(1 << 20))
            torch._foreach_mul_(scratch, factors)
            torch._foreach_mul_(scratch, -LR)
            torch._foreach_add_(scratch, keep)
            torch._foreach_mul_(parts, scratch)
        return torch.stack(torch._foreach_norm(parts)).square().sum()

    @torch.compile(dynamic=False)
    def unrolled(v: Tensor, payloads: list[Tensor], scales: list[Tensor]) -> Tensor:
        """All K steps in one function, so that v stays in registers."""
        blocks = v.view(-1, ops.BLOCK)
        for payload, exponents in zip(payloads, scales, strict=True):
            h = payload.view(-1, ops.BLOCK).float() * torch.exp2(exponents.float() - 127)[:, None]
            blocks = blocks * (keep - LR * h)
        return v.copy_(blocks.view(-1)).square().sum()

    baselines: dict[str, Callable[[], object]] = {"eager in place": eager}
    if every_baseline:
        baselines["foreach"] = foreach
        payloads, scales = map(list, zip(*log, strict=True))
        baselines["torch.compile, K unrolled"] = lambda: unrolled(v, payloads, scales)
    size = steps * (2 * elements + elements // ops.BLOCK) + 8 * elements
    run = lambda: ops.damped_propagate_window_(v, log, coefficients)  # noqa: E731
    rows = compared(f"damped_propagate_window_ K={steps}", run, baselines, repeats, size, device)

    first, last = torch.zeros(elements, device=device), problem.plain(1e-3)
    run = lambda: ops.prefix_propagate_(v, [last, first], [1.0, -1.0])  # noqa: E731
    return rows + compared(f"prefix form of K={steps}", run, {"eager in place": eager}, repeats, 16 * elements, device)


def vector_rows(elements: int, steps: int, repeats: int, device: str, every_baseline: bool) -> list[Row]:
    return propagation_rows(elements, steps, repeats, device, every_baseline)
