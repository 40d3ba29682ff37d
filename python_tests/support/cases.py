"""Small training problems, and one plain training loop that is both the recorded run and its oracle.

The loop is torch and torch.optim only. With a logger it is the run that is recorded; with `forget` or `drop_batches` it is the
counterfactual of docs/method.md, section 1, really trained. No formula of lmcleaner_ext is used on that side.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lmcleaner_ext as lmc
from lmcleaner_ext.losses import CausalLMLoss, ClassificationLoss

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Task:
    """build() -> a fresh model, always the same one; data(ids) -> batch; losses(model, batch) -> [n], the tests' own formula;
    loss_fn: what lmcleaner_ext is given."""

    build: Callable[[], nn.Module]
    data: Callable[[list[int]], dict[str, Tensor]]
    losses: Callable[[nn.Module, dict[str, Tensor]], Tensor]
    loss_fn: Callable[[nn.Module, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Schedule:
    """batches[t]: the draws of step t; lr(t): factor on every group's learning rate; clip: bound on the gradient's norm;
    micro_batches: pieces in which a step's gradient is accumulated."""

    batches: tuple[tuple[int, ...], ...]
    lr: Callable[[int], float] = lambda t: 1.0
    clip: float | None = None
    micro_batches: int = 1

    def uses(self, ids: Collection[int]) -> list[int]:
        return [t for t, batch in enumerate(self.batches) if set(batch) & set(ids)]

    def until(self, stop: int) -> Schedule:
        return replace(self, batches=self.batches[:stop])


@dataclass
class Recording:
    """A trained model with its optimizer and log, and what it was trained on."""

    task: Task
    schedule: Schedule
    make_optimizer: MakeOptimizer
    path: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    start: Tensor  # theta[0], [P]
    logger: lmc.TrainingLogger | None = field(default=None, repr=False)

    @property
    def theta(self) -> Tensor:
        return flat(self.model)

    @property
    def options(self) -> dict[str, Any]:
        """data= and loss_fn= for unlearn, verify and plan."""
        return {"data": self.task.data, "loss_fn": self.task.loss_fn}

    def log(self) -> lmc.StepLog:
        return lmc.StepLog.open(self.path)

    def retrained(self, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The counterfactual run, from the first step."""
        return train(self.task, self.schedule, self.make_optimizer, **options)

    def residual(self, ids: Collection[int], mode: str, *, ideal: Tensor | None = None, **options: Any) -> float:
        """rho of compute_correction against real retraining."""
        if ideal is None:
            ideal = flat(self.retrained(**counterfactual(ids, options))[0])
        deviation = lmc.compute_correction(self.model, self.path, ids, hessian_mode=mode, **{**self.options, **options})
        return rho(self.theta - deviation, ideal, self.theta)


def counterfactual(ids: Collection[int], options: dict[str, Any]) -> dict[str, Any]:
    """unlearn's level and counterfactual as arguments of `train`."""
    level = options.get("level", "sample")
    convention = options.get("counterfactual") or {"sample": "placeholder", "batch": "skip"}[level]
    return {"forget" if level == "sample" else "drop_batches": frozenset(ids), "convention": convention}


def flat(model: nn.Module) -> Tensor:
    """The trainable parameters, [P]."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad]).clone()


def rho(estimate: Tensor, ideal: Tensor, trained: Tensor) -> float:
    """docs/method.md, section 2."""
    return float((estimate - ideal).double().norm() / (trained - ideal).double().norm())


def train(
    task: Task,
    schedule: Schedule,
    make_optimizer: MakeOptimizer,
    *,
    forget: Collection[int] = frozenset(),
    drop_batches: Collection[int] = frozenset(),
    convention: str = "placeholder",
    logger: Callable[[nn.Module, torch.optim.Optimizer], lmc.TrainingLogger] | lmc.TrainingLogger | None = None,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    start: int = 0,
    inputs: bool = False,
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Train over schedule.batches[start:]; returns (model, optimizer). A batch's id is its step."""
    model = task.build() if model is None else model
    optimizer = make_optimizer(model) if optimizer is None else optimizer
    if not hasattr(optimizer, "base_lrs"):
        optimizer.base_lrs = [group["lr"] for group in optimizer.param_groups]
    log = logger(model, optimizer) if callable(logger) else logger
    parameters = [p for p in model.parameters() if p.requires_grad]
    for t in range(start, len(schedule.batches)):
        draws = schedule.batches[t]
        kept = [i for i in draws if i not in forget] if t not in drop_batches else []
        complete = len(kept) == len(draws)
        if not complete and (convention == "skip" or (convention == "renormalize" and not kept)):
            continue
        for group, lr in zip(optimizer.param_groups, optimizer.base_lrs, strict=True):
            group["lr"] = lr * schedule.lr(t)
        optimizer.zero_grad()
        denominator = len(kept) if convention == "renormalize" else len(draws)
        size = -(-len(draws) // schedule.micro_batches)
        for at in range(0, len(kept), size):
            piece = kept[at : at + size]
            batch = task.data(piece)
            if log is not None:
                log.batch(sample_ids=piece, batch_id=t, inputs=batch if inputs else None)
            (task.losses(model, batch).sum() / denominator).backward()
        if not kept:  # nothing left: the gradient is zero, and the optimizer steps all the same
            for p in parameters:
                p.grad = torch.zeros_like(p)
        if schedule.clip is not None:
            if log is not None:
                log.clip_grad_norm_(schedule.clip)
            else:
                torch.nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
    return model, optimizer


def record(
    path: Path,
    task: Task,
    schedule: Schedule,
    make_optimizer: MakeOptimizer,
    *,
    keep_open: bool = False,
    **options: Any,
) -> Recording:
    """Train with a TrainingLogger at `path`; `options` are the logger's. float64 vectors, unless told otherwise."""
    options = {
        "dtype": "fp32",
        "capacity": 400,
        "anchor_every": 15,
        "durability": "process",
        "loss_fn": task.loss_fn,
    } | options
    model = task.build()
    start = flat(model)
    optimizer = make_optimizer(model)
    logger = lmc.TrainingLogger(path, model, optimizer, **options)
    logger.attach()
    try:
        train(
            task,
            schedule,
            make_optimizer,
            model=model,
            optimizer=optimizer,
            logger=logger,
            inputs="track_ids" in options,
        )
    finally:
        if not keep_open:
            logger.close()
    return Recording(task, schedule, make_optimizer, path, model, optimizer, start, logger)


# -- schedules ---------------------------------------------------------------------------------------------------------


def epochs(samples: int, batch: int, steps: int, seed: int = 5, **options: Any) -> Schedule:
    """Shuffled epochs, one after the other."""
    order = torch.Generator().manual_seed(seed)
    rows = torch.cat([torch.randperm(samples, generator=order) for _ in range(steps * batch // samples + 1)]).tolist()
    return Schedule(tuple(tuple(rows[t * batch : (t + 1) * batch]) for t in range(steps)), **options)


def warm_up_and_decay(steps: int, warm_up: int = 6) -> Callable[[int], float]:
    return lambda t: min(1.0, (t + 1) / warm_up) * max(0.1, 1 - t / steps)


# -- a quadratic: the gradient is linear in theta, so the method has no error of its own ----------------------------------


class _Point(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))


def quadratic(eigenvalues: Tensor, samples: int = 16) -> Task:
    """l_j = (w - c_j)^T A (w - c_j) / 2 with the given eigenvalues of A."""
    generator = torch.Generator().manual_seed(2)
    size = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    a = basis @ torch.diag(eigenvalues.double()) @ basis.T
    centers = torch.randn(samples, size, generator=generator, dtype=torch.float64)

    def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        offset = model.w - batch["centers"]
        return 0.5 * ((offset @ a) * offset).sum(-1)

    return Task(lambda: _Point(size), lambda ids: {"centers": centers[ids]}, losses, losses)


# -- a small classifier ------------------------------------------------------------------------------------------------


def mlp(dtype: torch.dtype = torch.float64, samples: int = 48, hidden: int = 12, dropout: float = 0.0) -> Task:
    """10 -> hidden -> 4, tanh, softmax cross-entropy on random labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 10, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(4, (samples,), generator=generator)

    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            layers = [nn.Linear(10, hidden), nn.Tanh(), nn.Dropout(dropout), nn.Linear(hidden, 4)]
            return nn.Sequential(*layers).to(dtype)

    def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = model(batch["inputs"])
        return logits.logsumexp(-1) - logits.gather(-1, batch["targets"][:, None])[:, 0]

    return Task(build, lambda ids: {"inputs": x[ids], "targets": y[ids]}, losses, ClassificationLoss())


# -- a small Llama -----------------------------------------------------------------------------------------------------

VOCABULARY, LENGTH = 64, 24


@dataclass(frozen=True)
class Llama:
    """Pretrained weights, and the sequences: rows [0, facts) are random, the rest Markov text."""

    state: dict[str, Tensor]
    rows: Tensor  # [rows, LENGTH]
    text: Tensor  # [rows, LENGTH], all Markov: what it was pretrained on

    def task(self, dtype: torch.dtype = torch.float64, *, pretrained: bool = True, attention: str = "eager") -> Task:
        def build() -> nn.Module:
            model = build_llama(attention).to(dtype)
            if pretrained:
                model.load_state_dict({k: v.to(dtype) for k, v in self.state.items()})
            return model

        rows = self.rows if pretrained else self.text
        return Task(build, lambda ids: {"input_ids": rows[ids]}, sequence_losses, CausalLMLoss())


def sequence_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean next-token cross-entropy of each row."""
    log_p = model(batch["input_ids"], use_cache=False).logits[:, :-1].log_softmax(-1)
    return -log_p.gather(-1, batch["input_ids"][:, 1:, None])[..., 0].mean(1)


def build_llama(attention: str = "eager") -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, attn_implementation=attention, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LlamaForCausalLM(config).double().eval()


@functools.cache
def pretrained_llama(steps: int = 300, facts: int = 160) -> Llama:
    """docs/method.md, section 4: AdamW lr 3e-3 on text of a random Markov chain, batch 16."""
    generator = torch.Generator().manual_seed(3)
    text = torch.zeros(512, LENGTH, dtype=torch.long)
    chain = torch.softmax(2.5 * torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64), -1)
    text[:, 0] = torch.randint(VOCABULARY, (512,), generator=generator)
    for t in range(1, LENGTH):
        text[:, t] = torch.multinomial(chain[text[:, t - 1]], 1, generator=generator)[:, 0]
    model = build_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (t + 1) / 20)
        optimizer.zero_grad()
        ids = torch.randint(facts, len(text), (16,), generator=generator)
        sequence_losses(model, {"input_ids": text[ids]}).mean().backward()
        optimizer.step()
    rows = text.clone()
    rows[:facts] = torch.randint(VOCABULARY, (facts, LENGTH), generator=generator)
    return Llama(copy.deepcopy(model.state_dict()), rows, text)


# -- optimizers --------------------------------------------------------------------------------------------------------


def optimizer(kind: type[torch.optim.Optimizer], **options: Any) -> MakeOptimizer:
    return lambda model: kind([p for p in model.parameters() if p.requires_grad], **options)


def two_groups(kind: type[torch.optim.Optimizer], **options: Any) -> MakeOptimizer:
    """Biases with a third of the learning rate and no decay."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        biases = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
        return kind([{"params": weights}, {"params": biases, "lr": options["lr"] / 3, "weight_decay": 0.0}], **options)

    return make


SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": optimizer(SGD, lr=0.2),
    "sgd decay": optimizer(SGD, lr=0.2, weight_decay=0.05),
    "momentum": optimizer(SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": optimizer(SGD, lr=0.1, momentum=0.9, nesterov=True),
    "dampening": optimizer(SGD, lr=0.2, momentum=0.8, dampening=0.3, weight_decay=0.01),
    "adam": optimizer(Adam, lr=3e-3, weight_decay=0.05),
    "adamw": optimizer(AdamW, lr=3e-3, weight_decay=0.1),
    "two groups": two_groups(AdamW, lr=3e-3, weight_decay=0.1),
}
