"""Inputs of `optimizer_replay_window_`: cases that together reach every branch, and how to run one in a given precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lmcleaner_ext import ops
from lmcleaner_ext.ops import coefficients as column
from support.backends import device_of

NO_SCALES = torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True)
class Case:
    """One call. `flags` maps (class, step) to flag bits; `injections` are (step, weight); gradients in `missing` are empty."""

    rule: str
    n: int
    steps: int = 6
    momentum: float = 0.9
    dampening: float = 0.0
    theta: bool = True
    dtype: str = "fp16"
    segments: tuple[tuple[int, int, int], ...] = ()  # empty: one class, all elements
    flags: dict[tuple[int, int], int] = field(default_factory=dict)
    injections: tuple[tuple[int, float], ...] = ((0, 0.5), (0, 0.25), (3, 1.0))
    missing: tuple[int, ...] = ()
    lead: int = 0
    gain: float = 1.0
    keep: float = 1.0  # ALPHA / GAIN at the steps with an injection
    lr: float = 1e-3
    decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    damping: float = 0.0
    curvature: float = 0.0
    magnitude: float = 1e-4  # of the gradients
    taken: int = 3  # optimizer steps before the window
    seed: int = 0

    @property
    def classes(self) -> int:
        return 1 + max((c for _, _, c in self.spans), default=0)

    @property
    def spans(self) -> tuple[tuple[int, int, int], ...]:
        return self.segments or ((0, self.n, 0),)

    @property
    def states(self) -> int:
        counts = {"sgd": int(self.momentum != 0), "update": 0, "rmsprop": 1 + (self.momentum != 0), "lion": 1}
        return counts.get(self.rule, 2)


@dataclass
class Vectors:
    """Everything a call updates; float32 at the start of a case, so that every precision starts from the same numbers."""

    delta: Tensor
    theta: Tensor | None
    state: list[Tensor]
    counterfactual: list[Tensor]

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Vectors:
        return Vectors(
            self.delta.to(device, dtype, copy=True),
            None if self.theta is None else self.theta.to(device, dtype, copy=True),
            [x.to(device, dtype, copy=True) for x in self.state],
            [x.to(device, dtype, copy=True) for x in self.counterfactual],
        )

    def named(self) -> dict[str, Tensor]:
        found = {"delta": self.delta}
        if self.theta is not None:
            found["theta"] = self.theta
        found |= {f"state{i}": x for i, x in enumerate(self.state)}
        return found | {f"counterfactual{i}": x for i, x in enumerate(self.counterfactual)}


@dataclass
class Inputs:
    """A case with its tensors."""

    case: Case
    start: Vectors
    coefficients: Tensor
    segments: Tensor
    gradients: list[ops.EncodedVector]
    injections: list[ops.EncodedVector]
    injection_table: Tensor
    diagonal: Tensor | None

    def run(
        self, vectors: Vectors, backend: str | None = None, steps: range | None = None, lead: int | None = None
    ) -> Tensor:
        """Take `vectors` through the window, or a part of it, on their device; returns what the op returns."""
        device = vectors.delta.device
        steps = range(self.case.steps) if steps is None else steps
        used = [i for i, (step, _) in enumerate(self.injection_table.tolist()) if int(step) in steps]
        table = self.injection_table[used].clone()
        table[:, 0] -= steps.start
        window = ops.ReplayWindow(
            delta=vectors.delta,
            theta=vectors.theta,
            state=vectors.state,
            counterfactual=vectors.counterfactual,
            coefficients=self.coefficients[:, steps.start : steps.stop].contiguous(),
            segments=self.segments,
            gradients=[moved(self.gradients[t], device) for t in steps],
            injections=[moved(self.injections[i], device) for i in used],
            injection_table=table,
            diagonal=None if self.diagonal is None else self.diagonal.to(vectors.delta),
            rule=self.case.rule,
            lead=self.case.lead if lead is None else lead,
        )
        return ops.optimizer_replay_window_(window, backend=backend)

    def outcome(self, dtype: torch.dtype, backend: str | None = None) -> tuple[Vectors, Tensor]:
        """The vectors after the window in this precision, and the returned sum of delta^2."""
        vectors = self.start.to(dtype, device_of(backend))
        squares = self.run(vectors, backend)
        return vectors.to(dtype), squares.cpu()


def moved(vector: ops.EncodedVector, device: str | torch.device) -> ops.EncodedVector:
    return ops.EncodedVector(vector.payload.to(device), vector.scales.to(device))


def coefficient_table(case: Case, gains: Sequence[float] | None = None) -> Tensor:
    """The table of the specification, class c with a learning rate of lr / (1 + c); Adam's counters follow the flags."""
    injected = {step for step, _ in case.injections}
    table = torch.zeros(case.classes, case.steps, column.COLUMNS, dtype=torch.float64)
    for c in range(case.classes):
        taken = taken_counterfactual = case.taken
        for t in range(case.steps):
            row, flags, lr = table[c, t], case.flags.get((c, t), 0), case.lr / (1 + c)
            both = not flags & column.SKIP or t < case.lead
            if not flags & column.ABSENT:
                taken, taken_counterfactual = taken + 1, taken_counterfactual + both
            row[column.FLAGS], row[column.GAIN], row[column.LR], row[column.DECAY] = flags, case.gain, lr, case.decay
            row[column.ALPHA] = case.gain * (case.keep if t in injected else 1.0)
            row[column.CURVATURE], row[column.DAMPING] = case.curvature, case.damping
            row[column.BETA1], row[column.BETA2] = {
                "sgd": (case.momentum, case.dampening),
                "rmsprop": (case.momentum, case.betas[1]),
            }.get(case.rule, case.betas)
            row[column.EPS] = case.eps
            row[column.SIZE], row[column.ROOT] = _size_and_root(lr, case.betas, taken)
            row[column.SIZE_CF], row[column.ROOT_CF] = _size_and_root(lr, case.betas, taken_counterfactual)
    return table


def _size_and_root(lr: float, betas: tuple[float, float], count: int) -> tuple[float, float]:
    count = max(count, 1)
    return lr / (1 - betas[0] ** count), 1 / math.sqrt(1 - betas[1] ** count)


def build(case: Case) -> Inputs:
    """Random tensors of a case, the same at every call."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(magnitude: float) -> Tensor:
        return torch.randn(case.n, generator=generator) * magnitude

    def encoded(magnitude: float) -> ops.EncodedVector:
        return ops.encode(normal(magnitude), case.dtype, backend="reference")

    gradients = [encoded(case.magnitude) for _ in range(case.steps)]
    for t in case.missing:
        gradients[t] = ops.EncodedVector(torch.empty(0), NO_SCALES)
    injections = [encoded(0.2 * case.magnitude) for _ in case.injections]
    start = Vectors(normal(1e-3 * case.lr), normal(0.02) if case.theta else None, [], [])
    for i in range(case.states):
        # averages of the gradients' size, averages of squares of their square's; both sides close, as they are in a run
        squares = i == (0 if case.rule == "rmsprop" else 1)
        state = normal(case.magnitude).square() * 0.1 if squares else normal(0.3 * case.magnitude)
        if case.rule == "rmsprop" and not squares:
            state = normal(1.0)  # the buffer adds up normalised gradients
        other = state * (1 + 0.1 * torch.rand(case.n, generator=generator))
        start.state.append(state)
        start.counterfactual.append(other - state if case.rule == "sgd" else other)
    table = torch.tensor(case.injections, dtype=torch.float64).view(-1, 2)
    diagonal = normal(1.0).abs() if case.curvature else None
    segments = torch.tensor(case.spans, dtype=torch.int64).view(-1, 3)
    return Inputs(case, start, coefficient_table(case), segments, gradients, injections, table, diagonal)


# -- the cases ---------------------------------------------------------------------------------------------------------

RULES: dict[str, Case] = {
    "sgd": Case("sgd", 0, momentum=0.0, lr=0.1),
    "momentum": Case("sgd", 0, lr=0.1),
    "dampened": Case("sgd", 0, lr=0.1, dampening=0.3),
    "update": Case("update", 0, lr=0.1),
    "adam": Case("adam", 0),
    "adamw": Case("adamw", 0),
    # Seeds for which the rounding of theta, on which g + w theta leans where the two nearly cancel, does not decide.
    "rmsprop": Case("rmsprop", 0, momentum=0.0, betas=(0.0, 0.99), seed=2),
    "rmsprop-momentum": Case("rmsprop", 0, betas=(0.0, 0.99), seed=2),
    "lion": Case("lion", 0, lr=1e-4, betas=(0.9, 0.99)),
}

SIZES = (0, 1, 127, 128, 129, 255, 256, 257, 10_000)


def sizes() -> dict[str, Case]:
    return {f"{rule}-{n}": replace(case, n=n) for rule, case in RULES.items() for n in SIZES}


def variants() -> dict[str, Case]:
    """One departure from the plain case at a time, for every rule that it concerns."""
    n = 1000
    segments = ((3, 130, 1), (130, 131, 0), (200, 700, 2), (701, 990, 1))
    every: dict[str, dict] = {
        "bf16": {"dtype": "bf16"},
        "fp32": {"dtype": "fp32"},
        "int8": {"dtype": "int8"},
        "fp8": {"dtype": "fp8"},
        "classes": {"segments": segments, "flags": {(1, 2): column.ABSENT, (2, 0): column.ABSENT}},
        "skip": {"flags": {(0, 1): column.SKIP, (0, 4): column.SKIP}},
        "lead": {"lead": 2, "injections": ((2, 1.0), (4, -0.5))},
        "lead-absent": {"lead": 2, "injections": ((3, 1.0),), "flags": {(0, 1): column.ABSENT, (0, 2): column.ABSENT}},
        "lead-skip": {"lead": 3, "injections": ((3, 1.0),), "flags": {(0, 1): column.SKIP, (0, 3): column.SKIP}},
        "lead-all": {"lead": 6, "injections": ()},
        "lead-no-theta": {"lead": 3, "injections": ((3, 1.0),), "theta": False, "decay": 0.0},
        "missing": {"missing": (0, 3)},
        "all-missing": {"missing": tuple(range(6))},
        "quiet": {"injections": ()},
        "renormalize": {"keep": 1.3},
        "damping": {"damping": 0.01},
        "diagonal": {"damping": 0.005, "curvature": 0.02},
        "lr-zero": {"lr": 0.0},
        "no-decay": {"decay": 0.0},
        "large": {"magnitude": 30.0},
        "tiny": {"magnitude": 1e-20},
        "denormal": {"magnitude": 1e-40, "dtype": "fp32"},
        "zeros": {"magnitude": 0.0},
        "one-step": {"steps": 1, "injections": ((0, 1.0),)},
    }
    found = {
        f"{rule}-{name}": replace(case, n=n, **options)
        for rule, case in RULES.items()
        for name, options in every.items()
    }
    # the counterfactual of "update" is written for GAIN = 1
    found |= {f"{r}-maximize": replace(c, n=n, gain=-1.0) for r, c in RULES.items() if r != "update"}
    # without theta: where no coefficient needs it
    without = {"theta": False, "decay": 0.0}
    found |= {f"{rule}-no-theta": replace(case, n=n, **without) for rule, case in RULES.items()}
    found |= {
        f"{rule}-no-theta-skip": replace(case, n=n, flags={(0, 2): column.SKIP}, **without)
        for rule, case in RULES.items()
    }
    found["adamw-no-theta-decay"] = replace(RULES["adamw"], n=n, theta=False, decay=0.1)
    found["adamw-no-theta-damping"] = replace(RULES["adamw"], n=n, theta=False, damping=0.01, steps=12)

    first, both = column.FIRST, column.FIRST | column.FIRST_CF
    sgd = replace(RULES["dampened"], n=n)
    found["momentum-first"] = replace(sgd, flags={(0, 0): both})
    found["momentum-first-skipped"] = replace(sgd, flags={(0, 0): first | column.SKIP, (0, 1): column.FIRST_CF})
    nesterov = {(0, t): column.NESTEROV for t in range(6)}
    found["nesterov"] = replace(RULES["momentum"], n=n, flags=nesterov)
    found["nesterov-skip"] = replace(found["nesterov"], flags=nesterov | {(0, 0): both | 16, (0, 3): column.SKIP | 16})

    adamw = replace(RULES["adamw"], n=n)
    found["adamw-betas-zero"] = replace(adamw, betas=(0.0, 0.0))
    found["adamw-long"] = replace(adamw, steps=250, injections=((10, 1.0), (100, 1.0)))
    found["adamw-long-skip"] = replace(found["adamw-long"], flags={(0, 60): column.SKIP, (0, 200): column.SKIP})
    found["adamw-large-steps"] = replace(adamw, steps=200, lr=0.1, magnitude=3.0, taken=0)
    found["adamw-eps-tiny"] = replace(adamw, eps=1e-25)
    found["adamw-eps-large"] = replace(adamw, eps=1e-2)
    found["adamw-decay-one"] = replace(adamw, decay=1 / adamw.lr)

    # without theta AdamW has steps of less work, between others, in every unit
    for name, case in [item for item in found.items() if item[0].startswith("adamw-")]:
        if case.theta:
            skips = any(flags & column.SKIP for flags in case.flags.values())
            found[f"{name}-without-theta"] = replace(case, theta=False, decay=0.0 if skips else case.decay)
    found["adamw-without-theta-absent"] = replace(adamw, theta=False, decay=1.0, flags={(0, 2): column.ABSENT})
    stands_still = {(0, t): column.FACTUAL_ONLY for t in (2, 5)}
    found["adamw-without-theta-truncated"] = replace(adamw, theta=False, decay=1.0, flags=stands_still)
    return found
