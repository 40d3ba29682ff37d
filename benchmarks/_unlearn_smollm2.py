"""SmolLM2-135M-Instruct learns 32 rows of TOFU with AdamW and forgets two of them, next to the model retrained without.

24 steps of 4 rows (3 epochs), learning rate 2e-5 decaying linearly, float32. What is timed:

    recording    the same training twice, with and without the logger, step by step in turns
    deletion     the whole of lmcleaner_ext.unlearn(): opening the log, checksums, replay, digests of the weights, audit record
    retraining   the plain torch loop without the forgotten rows, from the same weights, nothing recorded; in turns with
                 the deletions

The deletion's result takes as much memory as the model. Free memory that a virtual machine's host has taken back (free
page reporting) costs more to fetch than the deletion itself writes, so half of the deletions touch memory before
(_page_cache.touch_memory), as a machine of one's own has it; the other half take it as it is. Both are reported.

Seconds of processor time stand beside those of the clock: they say more where other programs run too.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _page_cache import bytes_fetched, evict, read_through, touch_memory, written_parts
from _smollm2 import load_model, tofu_rows
from _unlearn_run import (
    Schedule,
    Training,
    flat_parameters,
    load_parameters,
    pieces,
    predictor,
    published_recursion,
    shuffled_batches,
)
from torch import Tensor

import lmcleaner_ext as lmc
from lmcleaner_ext.datasets import QADataset, by_id
from lmcleaner_ext.evaluation import answer_loss, model_kl, residual
from lmcleaner_ext.layout import ParameterLayout


@dataclass(frozen=True)
class Setting:
    """The experiment: the first rows of TOFU's forget01, which are the last 40 of its 4000, and of them the first two go.

    first_row: of TOFU's 4000, where the slice begins
    requests: separate deletions, each measured against its own retraining: the first `forgotten` rows, those after, ...
    forget: the rows of the first request by their place in the slice, instead of its first ones
    """

    first_row: int = 3960
    rows: int = 32
    forgotten: int = 2
    requests: int = 1
    forget: tuple[int, ...] | None = None
    retain_rows: int = 16  # the first rows that no request forgets, for retain loss and KL ratio
    batch: int = 4
    epochs: int = 3
    lr: float = 2e-5
    warmup: int = 0
    weight_decay: float = 0.01
    clip: float | None = None
    dtype: str = "fp16"
    train_on_question: bool = True
    max_length: int = 256
    seed: int = 0

    @property
    def steps(self) -> int:
        return self.rows // self.batch * self.epochs

    def rates(self) -> list[float]:
        """Learning rate of each step: linear warm-up, then linear decay to zero."""
        return [self.lr * min(1, (t + 1) / max(1, self.warmup)) * (1 - t / self.steps) for t in range(self.steps)]


class Experiment:
    """One run of the benchmark: `measure` tells the story, the other methods are its parts."""

    def __init__(self, setting: Setting, tofu: Path, workdir: Path, progress: Callable[[str], None]):
        self.setting, self.folder, self.progress = setting, workdir / "log", progress
        progress("loading SmolLM2-135M-Instruct")
        self.model, tokenizer = load_model()
        table, self.source = tofu_rows(tofu, setting.first_row, setting.rows)
        data = QADataset(table, tokenizer, setting.max_length, train_on_question=setting.train_on_question)
        ids = data.sample_ids
        n = setting.forgotten
        self.requests = [tuple(ids[n * k : n * (k + 1)]) for k in range(setting.requests)]
        if setting.forget is not None:
            self.requests[0] = tuple(ids[place] for place in setting.forget)
        asked = {i for request in self.requests for i in request}
        self.retained = tuple([i for i in ids if i not in asked][: setting.retain_rows])
        batches = shuffled_batches(ids, setting.batch, setting.steps, setting.seed)
        self.schedule = Schedule(batches, setting.rates(), by_id(data))
        self.layout = ParameterLayout.of(self.model)
        self.start = flat_parameters(self.model, self.layout)

    def measure(self, repeats: int) -> dict[str, Any]:
        """Train while logging, delete, retrain without, compare."""
        recording = self._record()
        requests = [self._serve(ids, repeats if k == 0 else 0) for k, ids in enumerate(self.requests)]
        first = requests[0]
        return {
            "setting": {
                **asdict(self.setting),
                "parameters": self.layout.size,
                "steps": self.setting.steps,
                "data": self.source,
                "text": "question and answer" if self.setting.train_on_question else "answer",
            },
            "recording": recording,
            "requests": requests,
            "ratios": _ratios(recording, first["deletion"], first["retraining"]),
        }

    def _serve(self, ids: tuple[int, ...], repeats: int) -> dict[str, Any]:
        """One request against its retraining. `repeats` > 0: timed, and compared with the published recursion."""
        uses = self.schedule.uses(ids)
        measured, found = self._delete_and_retrain(ids, repeats)
        thetas = {"trained": self.trained, **found}
        if repeats:
            with lmc.StepLog.open(self.folder) as log:
                thetas["published recursion"] = self.trained - published_recursion(log, uses)
        self.progress("evaluating")
        models = {name: self._evaluate(ids, theta, thetas["retrained"]) for name, theta in thetas.items()}
        for figures in models.values():
            for part in ("forget", "retain"):
                figures[f"{part}_kl_ratio"] = figures[f"{part}_kl"] / models["trained"][f"{part}_kl"]
        return {"ids": list(ids), "uses": uses, **measured, "models": models}

    # -- recording -----------------------------------------------------------------------------------------------------

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        s = self.setting
        return torch.optim.AdamW(model.parameters(), lr=s.lr, weight_decay=s.weight_decay, fused=True)

    def _record(self) -> dict[str, Any]:
        """Train with the logger, and in turns without it; leaves the trained weights in `self.model`."""
        s, schedule, tracked = self.setting, self.schedule, self.requests[0]
        uses = schedule.uses(tracked)
        plain_model = copy.deepcopy(self.model)
        optimizer = self.optimizer(self.model)
        logger = lmc.TrainingLogger(
            self.folder, self.model, optimizer, mode="sample", track_ids=tracked, sample_capacity=len(uses), dtype=s.dtype,
            capacity=s.steps + 1, anchor_every=s.steps + 1,  # one anchor, at the start
        )  # fmt: skip
        runs = {
            "logged": Training(self.model, optimizer, schedule, clip=s.clip, log=logger),
            "plain": Training(plain_model, self.optimizer(plain_model), schedule, clip=s.clip),
        }
        clocks: dict[str, list[Clock]] = {"logged": [], "plain": []}
        with timed() as attach:
            logger.attach()
        for t in range(s.steps):
            self.progress(f"training with and without the log: step {t + 1} of {s.steps}")
            # In turns, so that whatever else the machine does falls on both.
            for name in ("logged", "plain")[:: 1 if t % 2 else -1]:
                with timed() as clock:
                    runs[name].step(t)
                clocks[name].append(clock)
        with timed() as close:
            logger.close()
        self.parts = written_parts(self.folder)
        pairs = zip(self.model.parameters(), plain_model.parameters(), strict=True)
        identical = all(torch.equal(a, b) for a, b in pairs)
        self.model.zero_grad()
        self.trained = flat_parameters(self.model, self.layout)
        ratios = [a.seconds / b.seconds for a, b in zip(clocks["logged"], clocks["plain"], strict=True)]
        steps_with_sample = {step for step, _ in uses}
        return {
            "step_seconds": {name: [clock.seconds for clock in some] for name, some in clocks.items()},
            "step_ratio": statistics.median(r for t, r in enumerate(ratios) if t not in steps_with_sample and t > 0),
            "step_ratio_with_sample": statistics.median(r for t, r in enumerate(ratios) if t in steps_with_sample),
            "processor_ratio": _processor(clocks["logged"]) / _processor(clocks["plain"]),
            "attach_seconds": attach.seconds,
            "close_seconds": close.seconds,
            "log_bytes": logger.bytes_written,
            "disk_bytes": sum(512 * file.stat().st_blocks for file in self.folder.rglob("*") if file.is_file()),
            "bit_identical": identical,
            "baseline": "the same training without the logger, in turns with it, step by step",
        }

    # -- deletion and retraining ---------------------------------------------------------------------------------------

    def _delete_and_retrain(self, ids: tuple[int, ...], repeats: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(figures, weights) of the retraining, step by step and in turns with deletions whose log is in the page cache, so
        that whatever else the machine does falls on both, and of a last deletion with the log on disk.

        `repeats` deletions after memory was touched, and as many that take their memory as the system gives it.
        Without repeats one deletion, not to be timed: its samples are not tracked, their gradients are computed again.
        """
        model = copy.deepcopy(self.model)
        load_parameters(model, self.layout, self.start)
        run = Training(model, self.optimizer(model), self.schedule, without=ids, clip=self.setting.clip)
        steps = len(self.schedule)
        turns = [(k * steps // (2 * repeats), k % 2 == 0) for k in range(2 * repeats)]
        calls, clocks = [], []
        for t in range(steps):
            self.progress(f"retraining without {ids}, and in turns forgetting them: step {t + 1} of {steps}")
            for touched in [touched for turn, touched in turns if turn == t]:
                call, result = self._delete(ids, "warm", touched)
                result.undo(self.model)
                calls.append(call)
            with timed() as clock:
                run.step(t)
            clocks.append(clock)
        self.progress(f"forgetting {ids} with the log on disk")
        call, result = self._delete(ids, "cold" if repeats else "unknown")
        thetas = {
            name: flat_parameters(m, self.layout) for name, m in (("lmcleaner", self.model), ("retrained", model))
        }
        result.undo(self.model)
        seconds = [clock.seconds for clock in clocks]
        retraining = {
            "seconds": sum(seconds),
            "processor_seconds": _processor(clocks),
            "step_seconds": seconds,
            "optimizer": "torch.optim.AdamW(fused=True)",
        }
        warm, as_found = ([c for c in calls if c["touched"] == touched] for touched in (True, False))
        summary = {
            "warm_seconds_median": statistics.median(c["seconds"] for c in warm),
            "warm_seconds_min": min(c["seconds"] for c in warm),
            "warm_processor_seconds": statistics.median(c["processor_seconds"] for c in warm),
            "memory_as_found_seconds_median": statistics.median(c["seconds"] for c in as_found),
            "cold_seconds": call["seconds"],
        } if repeats else {}  # fmt: skip
        deletion = {**summary, "calls": [*calls, call], "audit": asdict(result.audit)}
        return {"deletion": deletion, "retraining": retraining}, thetas

    def _delete(
        self, ids: tuple[int, ...], cache: str, touched: bool = False
    ) -> tuple[dict[str, Any], lmc.UnlearnResult]:
        """(the figures of one timed unlearn(), what it returned); the caller undoes it."""
        if cache == "cold":
            evict(self.folder)
        elif cache == "warm":
            read_through(self.parts)
        if touched:
            touch_memory(4 * self.trained.nbytes)  # more than it takes: the system is free to give other pages
        fetched = bytes_fetched()
        with timed() as clock:
            result = lmc.unlearn(
                self.model, self.folder, ids, hessian_mode="none", progress=False, data=self.schedule.data
            )
        call = {"cache": cache, "touched": touched, **asdict(clock), "fetched_bytes": bytes_fetched() - fetched}
        return call, result

    # -- figures -------------------------------------------------------------------------------------------------------

    def _evaluate(self, forgotten: tuple[int, ...], theta: Tensor, ideal: Tensor) -> dict[str, float]:
        says, ideal_says = (predictor(self.model, self.layout, x) for x in (theta, ideal))
        out = {"residual": residual(theta, ideal, self.trained)}
        for name, ids in (("forget", forgotten), ("retain", self.retained)):
            batches = [self.schedule.data(piece) for piece in pieces(ids, self.setting.batch)]
            losses = [answer_loss(says, batch) for batch in batches]
            tokens = [int(loss.tokens.sum()) for loss in losses]
            out[f"{name}_loss"] = sum(loss.mean * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)
            out[f"{name}_kl"] = model_kl(ideal_says, says, batches)
        return out


def _ratios(recording: dict[str, Any], deletion: dict[str, Any], retraining: dict[str, Any]) -> dict[str, Any]:
    """The figures that are ratios, each with what it is and what it is against."""
    retrained = "retraining without the forgotten samples, in the same process and in turns with it, nothing recorded"
    whole = "the whole unlearn() call"

    def ratio(value: float, meaning: str, baseline: str) -> dict[str, Any]:
        return {"value": value, "is": meaning, "baseline": baseline}

    return {
        "speed-up, log in memory, memory touched before": ratio(
            retraining["seconds"] / deletion["warm_seconds_median"],
            f"seconds, {retraining['seconds']:.1f} / {deletion['warm_seconds_median']:.2f} for {whole}, median",
            retrained,
        ),
        "speed-up, log in memory, memory as found": ratio(
            retraining["seconds"] / deletion["memory_as_found_seconds_median"],
            f"seconds, {retraining['seconds']:.1f} / {deletion['memory_as_found_seconds_median']:.2f}, median",
            retrained,
        ),
        "speed-up in processor time, memory touched before": ratio(
            retraining["processor_seconds"] / deletion["warm_processor_seconds"],
            f"processor seconds, {retraining['processor_seconds']:.1f} / {deletion['warm_processor_seconds']:.2f}",
            retrained,
        ),
        "speed-up, log on disk": ratio(
            retraining["seconds"] / deletion["cold_seconds"],
            f"seconds, {retraining['seconds']:.1f} / {deletion['cold_seconds']:.2f}, one call with the log out of memory",
            retrained,
        ),
        "recorded step": ratio(
            recording["step_ratio"], "seconds with the logger / without, median over steps", recording["baseline"]
        ),
        "recorded step that tracks a sample": ratio(
            recording["step_ratio_with_sample"],
            "the same where a tracked sample's own gradient is taken",
            recording["baseline"],
        ),
    }


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Seconds of the clock, and of processor time over all threads of this process."""

    seconds: float = 0.0
    processor_seconds: float = 0.0


@contextlib.contextmanager
def timed() -> Iterator[Clock]:
    clock = Clock()
    processor, began = time.process_time(), time.perf_counter()
    yield clock
    clock.seconds = time.perf_counter() - began
    clock.processor_seconds = time.process_time() - processor


def _processor(clocks: list[Clock]) -> float:
    return sum(clock.processor_seconds for clock in clocks)
