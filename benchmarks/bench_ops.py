"""The ops against eager torch, and against torch.compile where that is the tougher baseline.

    python benchmarks/bench_ops.py --quick
    python benchmarks/bench_ops.py --out benchmarks/results/ops-cpu.json
    python benchmarks/bench_ops.py --device cuda      # against the bandwidth of a copy; backends cuda and triton

The replay's baseline is not the readable reference but an eager AdamW written for speed: two sides, in place, no
allocation, no pass that could be saved. For the encodings eager torch is the reference itself.
"""

from __future__ import annotations

from _common import Row, compared, parser, report  # before torch

# isort: split
import math
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _record_rows import record_rows
from _vector_rows import vector_rows
from torch import Tensor

from lmcleaner_ext import ops
from lmcleaner_ext.ops import coefficients as column

LR, DECAY, BETA1, BETA2, EPS = 1e-4, 0.01, 0.9, 0.999, 1e-8
TAKEN = 100  # optimizer steps before the window
REQUESTS = 8  # independent ones in one call


class ReplayProblem:
    """AdamW on P elements over K steps of a block-scaled fp16 log; three gradients are taken out along the way."""

    def __init__(self, elements: int, steps: int, device: str, damping: float = 0.0):
        generator = torch.Generator(device).manual_seed(0)

        def encoded(magnitude: float) -> tuple[Tensor, Tensor]:
            return ops.encode(torch.randn(elements, generator=generator, device=device) * magnitude, "fp16")

        self.elements, self.steps, self.damping = elements, steps, damping
        self.gradients = [encoded(1e-4) for _ in range(steps)]
        self.injections = [encoded(1e-5) for _ in range(3)]
        self.injection_steps = (0, steps // 3, steps // 2)
        self.table = torch.tensor([[t, 1.0] for t in self.injection_steps], dtype=torch.float64)
        self.segments = torch.tensor([[0, elements, 0]])
        self.delta = torch.zeros(elements, device=device)
        self.m = torch.randn(elements, generator=generator, device=device) * 1e-5
        self.v = torch.rand(elements, generator=generator, device=device) * 1e-9
        self.m_cf, self.v_cf = self.m.clone(), self.v.clone()
        self.coefficients = torch.zeros(1, steps, column.COLUMNS, dtype=torch.float64)
        for t in range(steps):
            row, count = self.coefficients[0, t], TAKEN + t + 1
            row[column.GAIN] = row[column.ALPHA] = 1.0
            row[column.LR], row[column.DECAY], row[column.DAMPING] = LR, DECAY, damping
            row[column.BETA1], row[column.BETA2], row[column.EPS] = BETA1, BETA2, EPS
            row[column.SIZE] = row[column.SIZE_CF] = LR / (1 - BETA1**count)
            row[column.ROOT] = row[column.ROOT_CF] = 1 / math.sqrt(1 - BETA2**count)

    @property
    def bytes(self) -> int:
        """The log and its scales once; delta and both moments of both sides, read and written."""
        log = (self.steps + len(self.injections)) * (2 * self.elements + self.elements // ops.BLOCK)
        return log + 2 * 5 * 4 * self.elements

    def op(self, backend: str | None = None) -> Callable[[], Tensor]:
        window = ops.ReplayWindow(
            self.delta, None, [self.m, self.v], [self.m_cf, self.v_cf], self.coefficients, self.segments, self.gradients,
            self.injections, self.table, None, "adamw",
        )  # fmt: skip
        return lambda: ops.optimizer_replay_window_(window, backend=backend)

    def requests(self, count: int, backend: str | None = None) -> Callable[[], Tensor]:
        """`count` requests with the same injections in one call."""
        delta, m_cf, v_cf = (x.expand(count, -1).clone() for x in (self.delta, self.m, self.v))
        coefficients = self.coefficients.expand(count, -1, -1, -1).contiguous()
        rows = [[*row, r] for r in range(count) for row in self.table.tolist()]
        table = torch.tensor(rows, dtype=torch.float64)
        window = ops.ReplayWindow(
            delta, None, [self.m, self.v], [m_cf, v_cf], coefficients, self.segments, self.gradients,
            self.injections * count, table, None, "adamw",
        )  # fmt: skip
        return lambda: ops.optimizer_replay_window_(window, backend=backend)

    def eager(self) -> Callable[[], None]:
        """The same in eager torch: 15 passes over memory per step, all in place."""
        g, g_cf, step, step_cf = (torch.empty_like(self.delta) for _ in range(4))

        def decode(payload: Tensor, scales: Tensor, out: Tensor) -> None:
            factors = torch.exp2(scales.float() - 127)
            torch.mul(payload.view(-1, ops.BLOCK), factors[:, None], out=out.view(-1, ops.BLOCK))

        def side(gradient: Tensor, m: Tensor, v: Tensor, root: float, out: Tensor) -> None:
            m.lerp_(gradient, 1 - BETA1)
            v.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            torch.sqrt(v, out=out).mul_(root).add_(EPS)
            torch.div(m, out, out=out)

        def run() -> None:
            for t, (payload, scales) in enumerate(self.gradients):
                row = self.coefficients[0, t].tolist()
                decode(payload, scales, g)
                seen = g
                if t in self.injection_steps or self.damping:
                    seen = g_cf
                    g_cf.copy_(g)
                    for index, injected_at in enumerate(self.injection_steps):
                        if injected_at == t:
                            decode(*self.injections[index], step)
                            g_cf.sub_(step)
                    if self.damping:
                        g_cf.sub_(self.delta, alpha=self.damping)
                side(g, self.m, self.v, row[column.ROOT], step)
                side(seen, self.m_cf, self.v_cf, row[column.ROOT_CF], step_cf)
                step_cf.sub_(step)
                self.delta.mul_(1 - LR * DECAY).add_(step_cf, alpha=row[column.SIZE])

        return run

    def compiled(self) -> Callable[[], None]:
        """torch.compile of one whole step, so that it makes one pass per step. The injections are left out, in its favour."""

        @torch.compile(dynamic=False)
        def one(payload, scales, delta, m, v, m_cf, v_cf, size, root, damping):  # type: ignore[no-untyped-def]
            factors = torch.exp2(scales.float() - 127)
            g = (payload.view(-1, ops.BLOCK).float() * factors[:, None]).view(-1)
            seen = g - damping * delta
            m.lerp_(g, 1 - BETA1)
            v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            m_cf.lerp_(seen, 1 - BETA1)
            v_cf.mul_(BETA2).addcmul_(seen, seen, value=1 - BETA2)
            step = m / (v.sqrt() * root + EPS)
            step_cf = m_cf / (v_cf.sqrt() * root + EPS)
            delta.mul_(1 - LR * DECAY).add_(size * (step_cf - step))

        table = self.coefficients[0].float()
        sizes, roots = table[:, column.SIZE].unbind(), table[:, column.ROOT].unbind()
        damping = torch.tensor(self.damping)

        def run() -> None:
            for t, (payload, scales) in enumerate(self.gradients):
                one(payload, scales, self.delta, self.m, self.v, self.m_cf, self.v_cf, sizes[t], roots[t], damping)

        return run


def replay_rows(elements: int, steps: int, repeats: int, device: str, every_baseline: bool) -> list[Row]:
    rows = []
    for damping in (0.0, 1e-4):
        problem = ReplayProblem(elements, steps, device, damping)
        name = f"replay adamw K={steps}" + (" damped" if damping else "")
        candidates: dict[str, Callable[[], object]] = {"eager in place": problem.eager()}
        if every_baseline:
            candidates["torch.compile per step"] = problem.compiled()
        for backend in backends(device):
            rows += compared(_named(name, backend), problem.op(backend), candidates, repeats, problem.bytes, device)
        if not damping:
            for backend in backends(device):
                single = problem.op(backend)
                calls = {f"{REQUESTS} calls": lambda single=single: [single() for _ in range(REQUESTS)]}
                size = problem.bytes + (REQUESTS - 1) * 2 * 3 * 4 * elements
                together = problem.requests(REQUESTS, backend)
                rows += compared(
                    _named(f"{name}, {REQUESTS} requests", backend), together, calls, repeats, size, device
                )
                del together
        if every_baseline and not damping:
            candidates = {"readable reference": problem.op("reference")}
            rows += compared(name, problem.op(), candidates, 1, problem.bytes, device)  # tens of seconds each
    return rows


def encoding_rows(elements: int, repeats: int, device: str) -> list[Row]:
    generator = torch.Generator(device).manual_seed(0)
    theta = torch.randn(elements, generator=generator, device=device) * 0.02
    update = torch.randn(elements, generator=generator, device=device) * 1e-6
    shadow, shadow_of_reference = theta - update, theta - update
    out = torch.empty(elements, device=device)

    def encode(dtype: str, backend: str | None) -> object:
        return ops.encode(update, dtype, backend=backend)

    def encode_difference(dtype: str, backend: str | None) -> object:
        return ops.encode_difference_(
            theta, shadow_of_reference if backend == "reference" else shadow, dtype, backend=backend
        )

    def decode(dtype: str, backend: str | None) -> object:
        return ops.decode(*vectors[dtype], out=out, backend=backend)

    def dot(dtype: str, backend: str | None) -> object:
        return ops.dot(vectors[dtype], vectors[dtype], backend=backend)

    vectors = {dtype: ops.encode(update, dtype) for dtype in ("fp16", "int8", "fp8")}
    work = {"encode": (encode, 4, 1), "encode_difference_": (encode_difference, 12, 1), "decode": (decode, 4, 1)}
    rows = []
    for dtype, (payload, _) in vectors.items():
        for name, (run, plain_bytes, payloads) in (work | {"dot": (dot, 0, 2)}).items():
            size = (plain_bytes + payloads * payload.element_size()) * elements
            baselines: dict[str, Callable[[], object]] = {"eager torch": partial(run, dtype, "reference")}
            for backend in backends(device):
                title = _named(f"{name} {dtype}", backend)
                rows += compared(title, partial(run, dtype, backend), baselines, repeats, size, device)
    return rows


def backends(device: str) -> list[str | None]:
    """The best one there is (None); on a GPU, Triton's kernels beside it."""
    return [None, "triton"] if torch.device(device).type == "cuda" else [None]


def _named(name: str, backend: str | None) -> str:
    return name if backend is None else f"{name} ({backend})"


def main() -> None:
    options = parser(__doc__).parse_args()
    gpu = torch.device(options.device).type == "cuda"
    elements = (1 << 21) if options.quick else 20_000_000 // ops.BLOCK * ops.BLOCK
    encoded = max(elements, 1 << 23)  # no smaller: it would fit the cache
    if gpu:
        elements, encoded = (1 << 25, 1 << 27) if options.quick else (1 << 26, 1 << 28)
    steps, repeats = 32, 10 if gpu else 3
    every = not options.quick
    sections: tuple[Callable[[], list[Row]], ...] = (
        lambda: replay_rows(elements, steps, repeats, options.device, every),
        lambda: encoding_rows(encoded, 2 * repeats, options.device),
        lambda: vector_rows(elements, steps, repeats, options.device, every),
        lambda: record_rows(encoded, repeats, options.device, every),
    )
    rows, failed = [], False
    for section in sections:
        try:  # minutes of measurement should not be lost with it
            rows += section()
        except Exception:
            traceback.print_exc()
            failed = True
    settings: dict[str, Any] = {"elements": elements, "steps": steps}
    report("ops", [row.to_json() for row in rows], options, **settings)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
