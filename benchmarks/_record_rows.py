"""The part of bench_ops.py that is about what the recorder calls in every step. Baselines do the same work on a whole vector.

On a GPU that is the ops on whole vectors, without the copies to the host. The outputs of all but "eager as written" are
allocated beforehand, as the recorder's are. The baselines round the diagonal
to nearest, not by chance, in their favour.
"""

from __future__ import annotations

from _common import Row, compared  # before torch

# isort: split
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import numpy as np
import torch
from _vector_rows import decode, encode
from torch import Tensor

from lmcleaner_ext import ops
from lmcleaner_ext.ops import EncodedVector
from lmcleaner_ext.ops.recording import average_parts_, encode_parts_difference_

BETA, PART = 0.99, 1 << 20  # elements of a parameter

Work = dict[str, Callable[[], object]]


class Problem:
    """One step's vectors. Two parameter vectors in turn: the difference from the shadow stays an update."""

    def __init__(self, elements: int, device: str):
        self.generator = torch.Generator(device).manual_seed(0)
        self.elements, self.device = elements, torch.device(device)
        theta, update = self.random(0.02), self.random(1e-6)
        self.thetas, self.gradient = (theta, theta + update), self.random(1e-4)

    def random(self, magnitude: float) -> Tensor:
        return torch.randn(self.elements, generator=self.generator, device=self.device) * magnitude

    def room(self) -> EncodedVector:
        payload = torch.zeros(self.elements, dtype=torch.float16, device=self.device)
        scales = torch.full((ops.block_count(self.elements),), 100, dtype=torch.uint8, device=self.device)
        return EncodedVector(payload, scales)

    def start(self) -> tuple[Iterator[Tensor], Tensor, Tensor, EncodedVector]:
        """theta of one step after the other, the shadow, a vector for intermediate results, room for the encoded update."""
        return cycle(self.thetas), self.thetas[1].clone(), torch.empty_like(self.gradient), self.room()


def split(x: Tensor) -> list[Tensor]:
    return list(x.split(PART))


def updates(problem: Problem) -> Work:
    """Each encodes u = theta - shadow and advances the shadow."""
    work: Work = {}
    sizes = [len(part) for part in split(problem.gradient)]
    thetas, shadow, _, out = problem.start()
    if problem.device.type == "cuda":
        work["ours"] = lambda: ops.encode_difference_(next(thetas), shadow, "fp16")
    else:
        work["ours"] = lambda: encode_parts_difference_(split(next(thetas)), sizes, shadow, "fp16", out)

    def in_place(thetas: Iterator[Tensor], shadow: Tensor, x: Tensor, out: EncodedVector) -> None:
        torch.sub(next(thetas), shadow, out=x)
        encode(x, *out)
        shadow.add_(decode(out, x))

    def written(thetas: Iterator[Tensor], shadow: Tensor, x: Tensor, out: EncodedVector) -> None:
        difference = (next(thetas) - shadow).view(-1, ops.BLOCK)
        exponents = torch.frexp(difference.abs().amax(1)).exponent - 15
        payload = (difference * torch.exp2(-exponents.float())[:, None]).half()
        shadow += (payload.float() * torch.exp2(exponents.float())[:, None]).view(-1)

    def foreach(thetas: Iterator[Tensor], shadow: Tensor, x: Tensor, out: EncodedVector) -> None:
        """One list of parameters, as an optimizer's foreach implementation has it."""
        parts, shadows = split(x), split(shadow)
        torch._foreach_copy_(parts, split(next(thetas)))
        torch._foreach_sub_(parts, shadows)
        rooms = list(zip(split(out[0]), out[1].split(PART // ops.BLOCK), strict=True))
        for part, room in zip(parts, rooms, strict=True):
            encode(part, *room)
        for part, room in zip(parts, rooms, strict=True):
            decode(room, part)
        torch._foreach_add_(shadows, parts)

    def compiled(thetas: Iterator[Tensor], shadow: Tensor, x: Tensor, out: EncodedVector) -> None:
        compiled_update(next(thetas), shadow, *out)

    def in_numpy(thetas: Iterator[Tensor], shadow: Tensor, x: Tensor, out: EncodedVector) -> None:
        base, blocks = shadow.numpy(), x.numpy().reshape(-1, ops.BLOCK)
        np.subtract(next(thetas).numpy(), base, out=x.numpy())
        exponents = np.frexp(np.abs(blocks).max(1))[1] - 15
        np.multiply(blocks, np.exp2(-exponents.astype(np.float32))[:, None], out=blocks)
        np.copyto(out[0].numpy(), x.numpy(), casting="same_kind")
        np.multiply(out[0].numpy().reshape(blocks.shape), np.exp2(exponents.astype(np.float32))[:, None], out=blocks)
        base += x.numpy()

    baselines = {"eager in place": in_place, "eager as written": written, "foreach": foreach, "torch.compile": compiled}
    if problem.device.type == "cpu":
        baselines["numpy"] = in_numpy
    for name, run in baselines.items():
        work[name] = partial(run, *problem.start())
    return work


@torch.compile(dynamic=False)
def compiled_update(theta, shadow, payload, scales):  # type: ignore[no-untyped-def]
    """Scaled through the bits of the largest magnitude as the kernel does it."""
    difference = (theta - shadow).view(-1, ops.BLOCK)
    exponents = ((difference.abs().amax(1, keepdim=True).view(torch.int32) >> 23) - 14).clamp(0, 254)
    codes = (difference * ((254 - exponents) << 23).view(torch.float32)).half()
    shadow.add_((codes.float() * (exponents << 23).view(torch.float32)).view(-1))
    payload.copy_(codes.view(-1))
    scales.copy_(exponents.view(-1))


@torch.compile(dynamic=False)
def compiled_average(h, h_scales, g):  # type: ignore[no-untyped-def]
    old = h.view(-1, ops.BLOCK).float() * (h_scales.int()[:, None] << 23).view(torch.float32)
    new = BETA * old + (1 - BETA) * g.view(-1, ops.BLOCK).square()
    exponents = ((new.amax(1, keepdim=True).view(torch.int32) >> 23) - 14).clamp(0, 254)
    h.copy_((new * ((254 - exponents) << 23).view(torch.float32)).half().view(-1))
    h_scales.copy_(exponents.view(-1))


@torch.compile(dynamic=False)
def compiled_gradient(h, h_scales, g, payload, scales):  # type: ignore[no-untyped-def]
    blocks = g.view(-1, ops.BLOCK)
    exponents = ((blocks.abs().amax(1, keepdim=True).view(torch.int32) >> 23) - 14).clamp(0, 254)
    payload.copy_((blocks * ((254 - exponents) << 23).view(torch.float32)).half().view(-1))
    scales.copy_(exponents.view(-1))
    old = h.view(-1, ops.BLOCK).float() * (h_scales.int()[:, None] << 23).view(torch.float32)
    new = BETA * old + (1 - BETA) * blocks.square()
    exponents = ((new.amax(1, keepdim=True).view(torch.int32) >> 23) - 14).clamp(0, 254)
    h.copy_((new * ((254 - exponents) << 23).view(torch.float32)).half().view(-1))
    h_scales.copy_(exponents.view(-1))


def averages(problem: Problem, encoded: bool) -> Work:
    """Each averages g^2 into the diagonal; ``encoded``: and encodes g, ours in the same pass."""
    g, work = problem.gradient, {}
    parts, sizes = split(g), [len(part) for part in split(g)]
    h, out = problem.room(), problem.room()
    seeds = cycle(range(1 << 20))

    def on_gpu() -> None:
        if encoded:
            ops.encode(g, "fp16")
        ops.diag_hessian_update_(h, g, BETA, seed=next(seeds))

    def on_cpu() -> None:
        average_parts_(parts, sizes, h, BETA, 1 - BETA, next(seeds), "fp16", out if encoded else None)

    work["ours"] = on_gpu if problem.device.type == "cuda" else on_cpu

    def in_place(h: EncodedVector, out: EncodedVector, x: Tensor) -> None:
        if encoded:
            encode(x.copy_(g), *out)
        decode(h, x).mul_(BETA).addcmul_(g, g, value=1 - BETA)
        encode(x, *h)

    def written(h: EncodedVector, out: EncodedVector, x: Tensor) -> None:
        if encoded:
            blocks = g.view(-1, ops.BLOCK)
            exponents = torch.frexp(blocks.abs().amax(1)).exponent - 15
            (blocks * torch.exp2(-exponents.float())[:, None]).half()
        old = h[0].float() * torch.exp2(h[1].float() - 127).repeat_interleave(ops.BLOCK)
        new = (BETA * old + (1 - BETA) * g**2).view(-1, ops.BLOCK)
        exponents = torch.frexp(new.amax(1)).exponent - 15
        h[0].copy_((new * torch.exp2(-exponents.float())[:, None]).half().view(-1))
        h[1].copy_(exponents + 127)

    def compiled(h: EncodedVector, out: EncodedVector, x: Tensor) -> None:
        if encoded:
            compiled_gradient(*h, g, *out)
        else:
            compiled_average(*h, g)

    for name, run in {"eager in place": in_place, "eager as written": written, "torch.compile": compiled}.items():
        work[name] = partial(run, problem.room(), problem.room(), torch.empty_like(g))
    return work


def record_rows(elements: int, repeats: int, device: str, every_baseline: bool) -> list[Row]:
    problem, rows = Problem(elements, device), []
    update, average, gradient = updates(problem), averages(problem, False), averages(problem, True)
    both = {name: lambda u=update[name], h=average[name]: (h(), u()) for name in average}
    for title, work, size in (
        ("record u", update, 14),
        ("record g and diagonal", gradient, 10),
        ("record u and diagonal", both, 22),
    ):
        baselines = {name: run for name, run in work.items() if name != "ours"}
        if not every_baseline:
            baselines = {"eager in place": baselines["eager in place"]}
        rows += compared(title, work["ours"], baselines, repeats, size * elements, device)
    return rows
