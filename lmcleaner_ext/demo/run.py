"""The demonstration from beginning to end."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from torch import nn

from ..errors import ConfigurationError
from ..evaluation import generate_answer
from ..installation import environment
from ..replay import StepLog
from .experiment import Subjects, build_model, choose_subjects, fine_tune, pretrain
from .methods import Comparison, Estimate
from .page import write_page
from .picture import draw_picture
from .progress import Reporter
from .result import Answers, DemoResult
from .settings import DemoSettings
from .table import markdown


def run_demo(
    out: str | Path, settings: DemoSettings | None = None, *, keep_log: bool = False, reporter: Reporter | None = None
) -> DemoResult:
    """Train, forget one author, retrain without her, compare; writes demo.png, demo.html, demo.md and demo.json into `out`.

    keep_log: leave the training log in `out`/log. Raises ConfigurationError where transformers is missing or `out`/log exists.
    """
    started = time.perf_counter()
    settings, reporter, folder = settings or DemoSettings(), reporter or Reporter(), Path(out)
    log_dir = folder / "log"
    if log_dir.exists():
        raise ConfigurationError(f"{log_dir} exists: choose another --out, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        comparison, training_seconds = _train(settings, reporter, log_dir)
        estimates = _forget(comparison, settings, reporter)
        with reporter.phase("measuring", len(estimates)) as advance:
            rows = comparison.measure(estimates, advance)
            answers = _answers(comparison, estimates, settings.shown_questions)
    finally:
        if not keep_log:
            shutil.rmtree(log_dir, ignore_errors=True)
    default = next(estimate for estimate in estimates if estimate.key == "default")
    assert default.audit is not None
    result = DemoResult(
        author=comparison.subjects.author,
        settings=settings,
        rows=tuple(rows),
        answers=answers,
        audit=json.loads(default.audit.to_json()),
        parameters=comparison.log.layout.size,
        forgotten_samples=len(comparison.ids),
        training_samples=len(comparison.subjects.training),
        uses=comparison.uses,
        steps=settings.steps,
        training_seconds=training_seconds,
        total_seconds=time.perf_counter() - started,
        environment=environment(),
        picture=folder / "demo.png",
        page=folder / "demo.html",
        log=log_dir if keep_log else None,
    )
    draw_picture(result, result.picture)
    write_page(result, result.page)
    (folder / "demo.md").write_text(markdown(result), encoding="utf-8")
    (folder / "demo.json").write_text(json.dumps(result.as_dict(), indent=2) + "\n")
    return result


def _train(settings: DemoSettings, reporter: Reporter, log_dir: Path) -> tuple[Comparison, float]:
    with reporter.phase("generating authors, training a tokenizer"):
        subjects: Subjects = choose_subjects(settings)
        model: nn.Module = build_model(settings, subjects.tokenizer.vocab_size)
    with reporter.phase("pretraining on other authors (not logged)", settings.pretraining_steps) as advance:
        pretrain(model, subjects.pretraining, settings, advance)
    started = time.perf_counter()
    with reporter.phase("fine-tuning on all authors, logged", settings.steps) as advance:
        fine_tune(model, subjects.training, settings, log_dir, advance)
    return Comparison(model, StepLog.open(log_dir), subjects), time.perf_counter() - started


def _forget(comparison: Comparison, settings: DemoSettings, reporter: Reporter) -> list[Estimate]:
    estimates = [comparison.nothing()]
    with reporter.phase("subtracting the gradient steps", len(comparison.removal)) as advance:
        estimates.append(comparison.gradient_step(advance))
    with reporter.phase("forgetting: optimizer replay"):
        estimates.append(comparison.unlearned("default", "optimizer replay (our default)"))
    if settings.exact:
        every = settings.exact_every
        title = "optimizer replay + exact curvature" + (f", every {every} steps" if every > 1 else "")
        with reporter.phase("forgetting: optimizer replay, exact curvature"):
            estimates.append(comparison.unlearned("exact", title, hessian_mode="exact", every=every))
    with reporter.phase("retraining without the author"):
        estimates.append(comparison.retrained())
    return estimates


def _answers(comparison: Comparison, estimates: list[Estimate], count: int) -> tuple[Answers, ...]:
    """The questions whose answers the deletion changed most likely: those on which the trained and retrained models differ first."""
    subjects = comparison.subjects
    models = {e.key: comparison.model_of(e) for e in estimates if e.key in ("nothing", "default", "retrained")}
    found = []
    for row in subjects.forget.rows:
        said = {key: generate_answer(model, subjects.tokenizer, row["question"]) for key, model in models.items()}
        found.append(Answers(row["question"], row["answer"], said["nothing"], said["default"], said["retrained"]))
    found.sort(key=lambda answers: answers.trained == answers.retrained)  # stable: those that changed come first
    return tuple(found[:count])
