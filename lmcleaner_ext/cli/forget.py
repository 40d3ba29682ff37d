"""`lmcleaner plan | unlearn | verify`: requests on a Hugging Face model folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.table import Table
from torch import nn

from ..datasets import TEMPLATE
from ..errors import ConfigurationError
from ..options import Options
from ..replay import StepLog
from ..unlearn import Plan, VerifyReport, plan, unlearn, verify
from ..unlearn.options import RequestOptions, UnlearnOptions
from .models import load_data, load_model, parse_ids, save_model
from .options import add_config, add_options, options_from
from .output import add_json, errors, print_json, properties, results, size

IDS = "ids to forget: 1,2,3, or @FILE with a JSON list or one id per line"


def _add_request(parser: argparse.ArgumentParser, options: type[Options], without: str, data: str) -> None:
    """The arguments that the three commands share; `without` is an option that the command has in its own way."""
    parser.add_argument("log", metavar="LOG", help="the log_dir that was given to TrainingLogger")
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="folder written by save_pretrained, with the weights the run ended with",
    )
    parser.add_argument("--ids", required=True, help=IDS)
    parser.add_argument("--text-ids", action="store_true", help="ids are texts, also those that look like numbers")
    add_options(parser, options, without)
    parser.set_defaults(options=lambda arguments: options_from(arguments, options, without))
    parser.add_argument(
        "--data",
        metavar="FILE",
        required=data == "required",
        help="training rows with question and answer, as JSON lines; " + data,
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer folder (default: the model's)")
    parser.add_argument(
        "--max-length", type=int, default=256, metavar="TOKENS", help="as in training (default: %(default)s)"
    )
    parser.add_argument(
        "--template", default=TEMPLATE, help="prompt around {question}, as in training (default: %(default)r)"
    )
    add_config(parser)
    add_json(parser)


@contextmanager
def _request(arguments: argparse.Namespace) -> Iterator[tuple[nn.Module, StepLog, list[Any], dict[str, Any]]]:
    """(model, log, ids, options of `unlearn`)."""
    ids = parse_ids(arguments.ids, arguments.text_ids)
    with StepLog.open(arguments.log) as log:
        model = load_model(arguments.model, log.layout)
        data = load_data(arguments.data, arguments.tokenizer, arguments.model, arguments.max_length, arguments.template)
        yield model, log, ids, {**arguments.options(arguments), "data": data}


def add_plan(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        help="what each way to forget would cost, and whether it can run",
        description="Estimates every mode for a request; changes nothing.",
    )
    _add_request(parser, RequestOptions, "hessian_mode", "lets the modes that need data be estimated")
    parser.set_defaults(run=run_plan)


def run_plan(arguments: argparse.Namespace) -> None:
    with _request(arguments) as (model, log, ids, options):
        found: Plan = plan(model, log, ids, **options)
    if arguments.json:
        print_json(json.loads(found.to_json()))
        return
    table = Table(
        "mode",
        "steps",
        "passes",
        "log read",
        "seconds",
        "",
        title=f"{found.uses} steps used the {len(ids)} ids",
        title_justify="left",
    )
    for mode in found.modes:
        seconds = "-" if mode.seconds is None else f"{mode.seconds:.2f}"
        if mode.possible:
            chosen = "what auto runs" if mode.mode == found.automatic else ""
            table.add_row(mode.mode, str(mode.steps), str(mode.passes), size(mode.bytes_read), seconds, chosen)
        else:
            table.add_row(mode.mode, "-", "-", "-", "-", f"cannot run: {mode.reason}")
    results().print(table)
    results().print(f"auto: {found.automatic} ({found.reason})", highlight=False)


def add_unlearn(commands: Any) -> None:
    parser = commands.add_parser(
        "unlearn",
        help="remove samples or batches from the weights of a model folder",
        description="Corrects the weights and writes the model to --out. The audit record is printed, and appended to --audit-log.",
    )
    data = 'needed unless the log tracked the samples (mode="sample") or whole batches are skipped'
    _add_request(parser, UnlearnOptions, "dry_run", data)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", metavar="DIR", help="where the corrected model goes; must not exist yet")
    target.add_argument("--in-place", action="store_true", help="overwrite the weights in --model")
    target.add_argument("--dry-run", action="store_true", help="compute and report, write nothing")
    parser.add_argument(
        "--audit-log", metavar="FILE", help="JSON lines, hash-chained; the same file for every request on this model"
    )
    parser.set_defaults(run=run_unlearn)


def run_unlearn(arguments: argparse.Namespace) -> None:
    if arguments.out is not None and Path(arguments.out).exists():
        raise ConfigurationError(
            f"{arguments.out} exists: choose another --out, or --in-place to overwrite the model itself"
        )
    with _request(arguments) as (model, log, ids, options):
        result = unlearn(model, log, ids, dry_run=arguments.dry_run, audit_log=arguments.audit_log, **options)
        target = None if arguments.dry_run else arguments.model if arguments.in_place else arguments.out
        if target is not None:
            save_model(model, arguments.model, target)
    audit = json.loads(result.audit.to_json())
    if arguments.json:
        print_json({"audit": audit, "relearn_ids": list(result.relearn_ids), "out": target})
        return
    shown = SimpleNamespace(**audit)
    change = shown.norm_deviation / shown.norm_before if shown.norm_before else float("nan")
    rows = {
        "forgotten": f"{shown.ids} {shown.level} id(s), used in {len(shown.tz)} of {shown.tau} steps",
        "mode": f"{shown.mode} ({shown.reason}), {shown.counterfactual}, damping {shown.damping:g}",
        "swept": f"{shown.K_used} steps after the last use, {size(shown.bytes_read)} of the log",
        "computed": f"{shown.gradients_computed} gradients, {shown.products} curvature products, {shown.seconds:.2f} s",
        "change": f"{shown.norm_deviation:.4g} = {100 * change:.3g} % of the weights' norm",
        "learn again": f"{len(result.relearn_ids)} samples of removed batches" if result.relearn_ids else "nothing",
        "weights": f"{shown.digest_before[:19]} -> {shown.digest_after[:19]}",
        "written to": target or "nowhere: a dry run",
    }
    results().print(properties("Forgotten", rows))


def add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="retrain without the samples and measure how close each mode comes",
        description="Really retrains, from the log's oldest anchor: as expensive as the training was. Changes nothing.",
    )
    _add_request(parser, RequestOptions, "hessian_mode", "required")
    parser.add_argument("--modes", default="none,exact", help="comma-separated modes (default: %(default)s)")
    parser.set_defaults(run=run_verify)


def run_verify(arguments: argparse.Namespace) -> None:
    with _request(arguments) as (model, log, ids, options):
        report: VerifyReport = verify(model, log, ids, modes=arguments.modes.split(","), **options)
    if arguments.json:
        print_json(json.loads(report.to_json()))
        return
    title = f"Against retraining: {report.steps} steps, {report.retrain_seconds:.1f} s"
    table = Table("mode", "residual ρ", "KL ratio", "seconds", "log read", "", title=title, title_justify="left")
    for mode in report.modes:
        if mode.error is not None:
            table.add_row(mode.mode, "-", "-", "-", "-", mode.error)
            continue
        ratio = "-" if mode.kl_ratio is None else f"{mode.kl_ratio:.4f}"
        note = "worse than doing nothing" if mode.harmful else ""
        table.add_row(mode.mode, f"{mode.residual:.4f}", ratio, f"{mode.seconds:.2f}", size(mode.bytes_read), note)
    results().print(table)
    errors().print(
        "residual and KL ratio: 1 = as if nothing was done, 0 = the retrained model", style="dim", highlight=False
    )
