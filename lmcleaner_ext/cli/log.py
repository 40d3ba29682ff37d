"""`lmcleaner log verify | export | scrub`: care for a training log."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from rich.progress import Progress
from rich.table import Table

from ..errors import ConfigurationError, LogCorruptError
from ..log.export import export_steps
from ..log.integrity import Finding, summary, verify_log
from ..replay import StepLog
from .forget import IDS
from .models import parse_ids
from .output import add_json, errors, print_json, properties, results, size


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("log", help="check, export or scrub a training log")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    verify = actions.add_parser(
        "verify",
        help="check every checksum; exit code 1 if anything is damaged",
        description="Reads the whole log and checks superblocks, manifest, slot headers, steps, anchors and the index of uses.",
    )
    verify.add_argument("--all", action="store_true", help="list the good parts too")
    verify.set_defaults(run=run_verify)
    export = actions.add_parser(
        "export",
        help="decoded vectors of some steps as one safetensors file",
        description="Writes one float32 tensor [P] per step and vector. The file reveals the training data as the log does: mode 0600.",
    )
    export.set_defaults(run=run_export)
    scrub = actions.add_parser(
        "scrub",
        help="overwrite what the log holds of samples whose deletion was served",
        description="Overwrites with zeros; it cannot be undone. Requests that need a scrubbed step are refused from then on.",
    )
    scrub.add_argument("--ids", help=IDS)
    scrub.add_argument("--text-ids", action="store_true", help="ids are texts, also those that look like numbers")
    scrub.add_argument(
        "--tracked-only", action="store_true", help="only the samples' own gradients, not their batches'"
    )
    scrub.add_argument("--audit-log", metavar="FILE", help="the audit log of the requests on this model")
    scrub.add_argument("--dry-run", action="store_true", help="say what would go, and what would stay usable")
    scrub.set_defaults(run=run_scrub)
    for action in (verify, export, scrub):
        action.add_argument("log", metavar="LOG", help="the log_dir that was given to TrainingLogger")
        add_json(action)
    export.add_argument("out", metavar="OUT.safetensors", help="must not exist yet")
    for action, what in ((export, "only these steps"), (scrub, "these steps as well")):
        action.add_argument("--steps", metavar="A:B", help=f"{what}: from A up to, not including, B")


def run_verify(arguments: argparse.Namespace) -> None:
    with StepLog.open(arguments.log) as log:
        findings = list(_with_progress(log))
    counts = summary(findings)
    shown = [f for f in findings if arguments.all or f.error or f.note]
    if arguments.json:
        print_json({**counts, "findings": [dataclasses.asdict(f) for f in findings]})
    else:
        table = Table("part", "which", "", title=f"Training log {arguments.log}", title_justify="left")
        for f in shown:
            table.add_row(f.part, f.name, f.error or f.note or "good")
        if shown:
            results().print(table)
        results().print(
            f"{counts['checked']} parts checked, {size(counts['bytes'])}: {counts['damaged']} damaged, {counts['scrubbed']} scrubbed",
            highlight=False,
        )
    first = next((f for f in findings if f.error), None)
    if first is not None:
        raise LogCorruptError(
            -1,
            -1,
            f"{counts['damaged']} of {counts['checked']} parts of {arguments.log} are damaged, first {first.part} {first.name}",
        )


def _with_progress(log: StepLog) -> Iterator[Finding]:
    """The findings, with a bar on stderr where there is a terminal."""
    with Progress(console=errors(), transient=True) as progress:
        task = progress.add_task("checking", total=len(log.steps) + len(log.anchors()) + 2)
        for finding in verify_log(log):
            progress.advance(task)
            yield finding


def run_export(arguments: argparse.Namespace) -> None:
    with StepLog.open(arguments.log) as log:
        steps = [t for t in _steps(arguments.steps, log.steps) if t not in log.scrubbed]
        with Progress(console=errors(), transient=True) as progress:
            task = progress.add_task("exporting", total=len(steps) * len(log.vectors))
            written = export_steps(log, arguments.out, steps, lambda step: progress.advance(task))
        summary = {"out": arguments.out, "steps": steps, "vectors": list(log.vectors), "bytes": written}
    if arguments.json:
        print_json(summary)
    else:
        results().print(f"{len(steps)} steps, {size(written)}: {arguments.out}", highlight=False)


def run_scrub(arguments: argparse.Namespace) -> None:
    from ..unlearn import scrub

    if not arguments.ids and not arguments.steps:
        raise ConfigurationError("nothing to scrub: give --ids, --steps or both")
    ids = parse_ids(arguments.ids, arguments.text_ids) if arguments.ids else []
    with StepLog.open(arguments.log) as log:
        steps = _steps(arguments.steps, log.steps) if arguments.steps else ()
    report = scrub(
        os.fspath(arguments.log),
        ids,
        steps=steps,
        tracked_only=arguments.tracked_only,
        audit_log=arguments.audit_log,
        dry_run=arguments.dry_run,
    )
    if arguments.json:
        print_json(dataclasses.asdict(report))
        return
    rows = {
        "steps": ", ".join(map(str, report.steps)) or "none",
        "tracked gradients": report.tracked,
        "overwritten": "nothing: a dry run" if arguments.dry_run else size(report.bytes),
        "still usable": f"for samples first used in step {report.usable_from} or later",
    }
    results().print(properties("Scrubbed", rows))


def _steps(text: str | None, retained: range) -> range:
    """`A:B` with either end left out, or one step; raises ConfigurationError for what is not in the log."""
    if text is None:
        return retained
    begin, colon, end = text.partition(":")
    try:
        first = int(begin) if begin else retained.start
        last = (int(end) if end else retained.stop) if colon else first + 1
    except ValueError as error:
        raise ConfigurationError(f"--steps takes A:B, found {text!r}") from error
    if not retained.start <= first < last <= retained.stop:
        raise ConfigurationError(f"--steps {text}: the log has steps {retained.start}:{retained.stop}")
    return range(first, last)
