"""The small setting of docs/method.md, section 4: a Llama of 23 thousand parameters learns random sequences and forgets some.

Pretrained on Markov text, fine-tuned with AdamW on 160 random sequences (warm-up of 6 steps, then linear decay); 4 of
them are forgotten after 60 steps. Everything against a run of the same schedule that leaves them out.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _unlearn_run import (
    Batch,
    Schedule,
    Training,
    flat_parameters,
    predictor,
    published_recursion,
    shuffled_batches,
)
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import lmcleaner_ext as lmc
from lmcleaner_ext.evaluation import kl_ratio, residual

RATES = (3e-5, 3e-4, 1e-3)
MODES = ("none", "ggn", "exact")


@dataclass(frozen=True)
class TinySetting:
    """The numbers of docs/method.md, section 4."""

    vocabulary: int = 64
    length: int = 24
    hidden: int = 32
    layers: int = 2
    pretrain_steps: int = 300
    pretrain_batch: int = 16
    pretrain_lr: float = 3e-3
    steps: int = 60
    batch: int = 8
    samples: int = 160
    forgotten: int = 4
    warmup: int = 6
    weight_decay: float = 0.01
    seed: int = 1


class TinyExperiment:
    """Pretrained once; `measure` then fine-tunes, forgets and retrains at one learning rate and precision."""

    def __init__(self, setting: TinySetting, workdir: Path):
        self.setting, self.workdir = setting, workdir
        generator = torch.Generator().manual_seed(setting.seed)
        self.facts = torch.randint(setting.vocabulary, (setting.samples, setting.length), generator=generator)
        self.forgotten = tuple(range(setting.samples - setting.forgotten, setting.samples))
        self.pretrained = self._pretrain(_markov_text(setting, 512, generator))

    def _model(self, dtype: torch.dtype) -> LlamaForCausalLM:
        s = self.setting
        torch.manual_seed(s.seed)
        config = LlamaConfig(
            vocab_size=s.vocabulary, hidden_size=s.hidden, intermediate_size=2 * s.hidden, num_hidden_layers=s.layers,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        return LlamaForCausalLM(config).to(dtype).eval()

    def _pretrain(self, text: Tensor) -> dict[str, Tensor]:
        s = self.setting
        model = self._model(torch.float64)
        optimizer = torch.optim.AdamW(model.parameters(), lr=s.pretrain_lr, weight_decay=s.weight_decay)
        rates = [s.pretrain_lr * min(1, (t + 1) / 20) for t in range(s.pretrain_steps)]
        batches = shuffled_batches(range(len(text)), s.pretrain_batch, s.pretrain_steps, s.seed)
        Training(model, optimizer, Schedule(batches, rates, _batches_of(text))).run()
        self.parameters = sum(p.numel() for p in model.parameters())
        return model.state_dict()

    def schedule(self, lr: float) -> Schedule:
        s = self.setting
        rates = [lr * min(1, (t + 1) / s.warmup) * max(0.1, 1 - t / s.steps) for t in range(s.steps)]
        return Schedule(shuffled_batches(range(s.samples), s.batch, s.steps, s.seed), rates, _batches_of(self.facts))

    def _training(self, dtype: torch.dtype, schedule: Schedule) -> tuple[LlamaForCausalLM, torch.optim.Optimizer]:
        model = self._model(dtype)
        model.load_state_dict(self.pretrained)
        return model, torch.optim.AdamW(
            model.parameters(), lr=schedule.rates[0], weight_decay=self.setting.weight_decay
        )

    def measure(self, lr: float, dtype: torch.dtype, log_dtype: str) -> dict[str, Any]:
        """residual, KL ratio on the forgotten samples and seconds of every method, at one learning rate."""
        schedule = self.schedule(lr)
        model, optimizer = self._training(dtype, schedule)
        with tempfile.TemporaryDirectory(dir=self.workdir) as folder:
            logger = lmc.TrainingLogger(
                Path(folder) / "log", model, optimizer, capacity=len(schedule), mode="sample", track_ids=self.forgotten,
                dtype=log_dtype,
            )  # fmt: skip
            with logger:
                Training(model, optimizer, schedule, log=logger).run()
            with lmc.StepLog.open(Path(folder) / "log") as log:
                return self._compare(log, model, schedule, lr, dtype)

    def _compare(
        self, log: lmc.StepLog, model: LlamaForCausalLM, schedule: Schedule, lr: float, dtype: torch.dtype
    ) -> dict[str, Any]:
        uses = schedule.uses(self.forgotten)
        steps = sorted({step for step, _ in uses})
        trained = flat_parameters(model, log.layout)
        retrained, optimizer = self._training(dtype, schedule)
        started = time.perf_counter()
        Training(retrained, optimizer, schedule, without=self.forgotten).run()
        retrain_seconds = time.perf_counter() - started
        ideal = flat_parameters(retrained, log.layout)

        deletions: dict[str, Callable[[], Tensor]] = {
            "nothing": lambda: torch.zeros_like(trained),
            "recursion, sample level (-lr g_j/B)": lambda: published_recursion(log, uses),
            "recursion, batch level (subtract u)": lambda: _summed_updates(log, steps),
        }
        for mode in MODES:
            deletions[f"optimizer replay, {mode}"] = lambda mode=mode: lmc.compute_correction(
                model, log, self.forgotten, hessian_mode=mode, data=schedule.data, damping=0.0
            )
        batches = [schedule.data(self.forgotten)]
        says = lambda theta: predictor(model, log.layout, theta)  # noqa: E731 - a name for the three arguments below
        methods = {}
        for name, deletion in deletions.items():
            started = time.perf_counter()
            estimate = trained - deletion()
            seconds = time.perf_counter() - started
            methods[name] = {
                "residual": residual(estimate, ideal, trained),
                "kl_ratio": kl_ratio(says(ideal), says(estimate), says(trained), batches),
                "seconds": seconds,
            }
        return {
            "lr": lr,
            "arithmetic": str(dtype).removeprefix("torch."),
            "log_dtype": log.dtype,
            "uses": len(uses),
            "distance": float((trained - ideal).double().norm()),
            "retrain_seconds": retrain_seconds,
            "methods": methods,
        }


def _batches_of(sequences: Tensor) -> Callable[[Sequence[int]], Batch]:
    def data(ids: Sequence[int]) -> Batch:
        ids_of = sequences[list(ids)]
        return {"input_ids": ids_of, "attention_mask": torch.ones_like(ids_of), "labels": ids_of}

    return data


def _markov_text(setting: TinySetting, count: int, generator: torch.Generator) -> Tensor:
    """`count` sequences of one random Markov chain, int64 [count, length]."""
    chain = torch.softmax(2.5 * torch.randn(setting.vocabulary, setting.vocabulary, generator=generator), -1)
    text = torch.randint(setting.vocabulary, (count, setting.length), generator=generator)
    for t in range(1, setting.length):
        text[:, t] = torch.multinomial(chain[text[:, t - 1]], 1, generator=generator)[:, 0]
    return text


def _summed_updates(log: lmc.StepLog, steps: Sequence[int]) -> Tensor:
    """delta of the recursion at batch level: the sum of u[t_z] = theta[t_z + 1] - theta[t_z], [P]."""
    return sum((log.parameters_at(t + 1) - log.parameters_at(t) for t in steps), torch.zeros(1))


def measure_tiny(
    rates: Sequence[float], seeds: Sequence[int], workdir: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Every learning rate in float64 (log as it is) and in float32 with an fp16 log: medians over the seeds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small lose more to the threads' meetings than they gain
    try:
        measured: dict[tuple[float, str], list[dict[str, Any]]] = {}
        for seed in seeds:
            progress(f"seed {seed}: pretraining")
            experiment = TinyExperiment(TinySetting(seed=seed), workdir)
            for lr in rates:
                for dtype, log_dtype in ((torch.float64, "fp64"), (torch.float32, "fp16")):
                    progress(f"seed {seed}: lr {lr:g}, {str(dtype).removeprefix('torch.')}, {log_dtype} log")
                    measured.setdefault((lr, log_dtype), []).append(experiment.measure(lr, dtype, log_dtype))
        return {
            "setting": {**asdict(TinySetting()), "seed": list(seeds), "parameters": experiment.parameters},
            "runs": [_median(runs) for runs in measured.values()],
            "baseline": "residual and KL ratio are against retraining from the same weights without the forgotten samples",
        }
    finally:
        torch.set_num_threads(threads)


def _median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One entry for the seeds' runs: each figure's median, and of residual and KL ratio the range too."""
    out = dict(runs[0])
    for key in ("distance", "retrain_seconds", "uses"):
        out[key] = statistics.median(run[key] for run in runs)
    out["methods"] = {}
    for name in runs[0]["methods"]:
        results = [run["methods"][name] for run in runs]
        out["methods"][name] = {key: statistics.median(r[key] for r in results) for key in results[0]}
        for key in ("residual", "kl_ratio"):
            out["methods"][name][f"{key}_range"] = [min(r[key] for r in results), max(r[key] for r in results)]
    return out
