"""The part of bench_ops.py that is about propagation, the diagonal and many vectors at once. Baselines do the same work in torch."""

from __future__ import annotations

from _common import Row, compared  # before torch

# isort: split
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lmcleaner_ext import ops
from lmcleaner_ext.engine.fisher_window import fisher_window_

LR, DAMPING = 1e-2, 1e-3


def decode(vector: ops.EncodedVector, out: Tensor) -> Tensor:
    """Eager torch, without an allocation but the scales'."""
    payload, scales = vector
    factors = torch.exp2(scales.float() - 127)
    torch.mul(payload.view(-1, ops.BLOCK), factors[:, None], out=out.view(-1, ops.BLOCK))
    return out


def encode(x: Tensor, payload: Tensor, scales: Tensor) -> None:
    """Eager torch, block-scaled fp16 in place; x is used up."""
    blocks = x.view(-1, ops.BLOCK)
    exponents = (torch.frexp(blocks.abs().amax(1)).exponent - 15 + 127).clamp_(0, 254)
    scales.copy_(exponents)
    payload.view(-1, ops.BLOCK).copy_(blocks.mul_(torch.exp2(127.0 - exponents)[:, None]))


class Problem:
    """P elements, a log of K encoded vectors; P is a multiple of the block."""

    def __init__(self, elements: int, steps: int, device: str, magnitude: float = 1.0):
        self.generator = torch.Generator(device).manual_seed(0)
        self.elements, self.device = elements, device
        self.v = self.plain(1.0)
        self.log = [self.encoded(magnitude) for _ in range(steps)]

    def plain(self, magnitude: float) -> Tensor:
        return torch.randn(self.elements, generator=self.generator, device=self.device) * magnitude

    def encoded(self, magnitude: float) -> ops.EncodedVector:
        return ops.encode(self.plain(magnitude).abs_(), "fp16")


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

    def written() -> Tensor:
        """The formula as one writes it."""
        mine = v
        for payload, scales in log:
            h = payload.float() * torch.exp2(scales.float() - 127).repeat_interleave(ops.BLOCK)
            mine = mine - LR * (h * mine + DAMPING * mine)
        v.copy_(mine)
        return v.square().sum()

    def in_numpy() -> float:
        mine, factors = v.numpy(), x.numpy()
        for payload, scales in log:
            powers = np.exp2(scales.numpy().astype(np.float32) - 127)[:, None]
            np.multiply(payload.numpy().reshape(-1, ops.BLOCK), powers, out=factors.reshape(-1, ops.BLOCK))
            np.multiply(factors, np.float32(-LR), out=factors)
            np.add(factors, np.float32(keep), out=factors)
            np.multiply(mine, factors, out=mine)
        return float(np.dot(mine, mine))

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
        baselines["eager as written"] = written
        baselines["foreach"] = foreach
        if v.device.type == "cpu":
            baselines["numpy"] = in_numpy
        payloads, scales = map(list, zip(*log, strict=True))
        baselines["torch.compile, K unrolled"] = lambda: unrolled(v, payloads, scales)
    size = steps * (2 * elements + elements // ops.BLOCK) + 8 * elements
    window = ops.PropagationWindow(v, log, coefficients, [], torch.empty(0, 2, dtype=torch.float64))
    run = lambda: ops.damped_propagate_window_(window)  # noqa: E731
    return compared(f"damped_propagate_window_ K={steps}", run, baselines, repeats, size, device)


def diagonal_rows(elements: int, repeats: int, device: str) -> list[Row]:
    """The diagonal's average alone; _record_rows.py has it beside the recorder's vectors."""
    problem = Problem(elements, 1, device)
    h, g, x, beta = problem.log[0], problem.plain(1e-4), torch.empty(elements, device=device), 0.99

    def average() -> None:
        decode(h, x).mul_(beta).addcmul_(g, g, value=1 - beta)
        encode(x, *h)

    run = lambda: ops.diag_hessian_update_(h, g, beta)  # noqa: E731
    return compared("diag_hessian_update_", run, {"eager in place": average}, repeats, 8 * elements, device)


def fisher_rows(elements: int, steps: int, repeats: int, device: str, every_baseline: bool) -> list[Row]:
    """v <- v - lr g (g^T v) over K steps: Gram matrices and combinations, against the recursion step by step."""
    problem = Problem(elements, steps, device, magnitude=1e-3)
    log, g = problem.log, torch.empty(elements, device=device)
    requests = torch.stack([problem.plain(1.0) for _ in range(8)])
    coefficients = [(LR, 0.0)] * steps

    def ours(count: int) -> None:
        fisher_window_(requests[:count], log, coefficients)

    def sequential(count: int) -> None:
        for v in requests[:count]:
            for vector in log:
                decode(vector, g)
                v.add_(g, alpha=-LR * float(torch.dot(g, v)))

    def written(count: int) -> None:
        """The formula as one writes it."""
        for v in requests[:count]:
            mine = v
            for payload, scales in log:
                vector = payload.float() * torch.exp2(scales.float() - 127).repeat_interleave(ops.BLOCK)
                mine = mine - LR * vector * (vector @ mine)
            v.copy_(mine)

    rows = []
    for count in (1, 8) if every_baseline else (1,):
        size = 2 * steps * (2 * elements + elements // ops.BLOCK) + 12 * count * elements
        run, baseline = partial(ours, count), {"eager in place": partial(sequential, count)}
        if every_baseline:
            baseline["eager as written"] = partial(written, count)
        rows += compared(f"fisher K={steps}, {count} requests", run, baseline, repeats, size, device)
    return rows


def sample_rows(elements: int, repeats: int, device: str) -> list[Row]:
    samples, clip = 16, 1.0
    generator = torch.Generator(device).manual_seed(0)
    grads = torch.randn(samples, elements // samples, generator=generator, device=device)
    weights = torch.full((samples,), 1 / samples, device=device)

    def eager() -> Tensor:
        factors = weights * (clip / torch.linalg.vector_norm(grads, dim=1)).clamp(max=1)
        return factors @ grads

    run = lambda: ops.scale_sample_grads(grads, weights, clip)  # noqa: E731
    baselines = {"eager": eager, "torch.compile": torch.compile(eager, dynamic=False)}
    return compared(f"scale_sample_grads B={samples}", run, baselines, repeats, 8 * grads.numel(), device)


def vector_rows(elements: int, steps: int, repeats: int, device: str, every_baseline: bool) -> list[Row]:
    rows = propagation_rows(elements, steps, repeats, device, every_baseline)
    rows += fisher_rows(elements, steps, repeats, device, every_baseline)
    rows += sample_rows(16 * elements // 4, repeats, device)
    return rows + diagonal_rows(elements, repeats, device)
