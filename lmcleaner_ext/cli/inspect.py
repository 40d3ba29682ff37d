"""`lmcleaner inspect LOG`: what a training log holds."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from ..log import StepLog
from ..log.uses import BATCH, SAMPLE
from .output import add_json, print_json, properties, results, size


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="what a training log holds: steps, optimizer, precision, anchors, size",
        description="Summarises a training log. Reads no vectors, so it is fast on any size of log, and safe beside a running trainer.",
    )
    parser.add_argument("log", metavar="LOG", help="the log_dir that was given to TrainingLogger")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    with StepLog.open(arguments.log) as log:
        summary = summarize(log)
    if arguments.json:
        print_json(summary)
    else:
        results().print(properties(f"Training log {summary['path']}", _for_people(summary)))


def summarize(log: StepLog) -> dict[str, Any]:
    """Plain values for `json.dumps`; `steps` is [first, last + 1], sizes in bytes as they lie on disk."""
    files = [path.stat() for path in Path(log.path).rglob("*") if path.is_file()]
    anchors, head, layout = log.anchors(), log.head(), log.layout
    optimizer = log.manifest["optimizer"]
    return {
        "path": str(log.path),
        "run": log.manifest["run"],
        "steps": [log.steps.start, log.steps.stop],
        "capacity": log.manifest["capacity"],
        "mode": log.manifest["mode"],
        "vectors": list(log.vectors),
        "dtype": log.dtype,
        "optimizer": optimizer["class"],
        "rule": optimizer["rule"] if log.rule is not None else None,
        "first_step": _step(log, log.steps.start),
        "last_step": _step(log, log.steps.stop - 1),
        "samples": log._uses.count(SAMPLE),
        "batches": log._uses.count(BATCH),
        "anchors": [anchor.step for anchor in anchors],
        "parameters": layout.size,
        "tensors": len(layout.entries),
        "frozen": sum(not trainable for *_, trainable in layout.signature),
        "tied": sum(bool(tied_to) for *_, tied_to, _ in layout.signature),
        "parameter_dtypes": dict(Counter(entry.dtype for entry in layout.entries)),
        "largest": [
            {"name": entry.name, "shape": list(entry.shape)}
            for entry in sorted(layout.entries, key=lambda e: e.begin - e.end)[:3]
        ],
        "closed": head is not None,
        "anchor_compression": _anchor_compression(log),
        "bytes": sum(status.st_size for status in files),
        "bytes_on_disk": sum(512 * status.st_blocks for status in files),
    }


def _step(log: StepLog, step: int) -> dict[str, Any] | None:
    """Hyper-parameters and batch of one step; None for an empty log."""
    if step not in log.steps:
        return None
    record = log[step]
    return {
        "step": step,
        "groups": list(record.groups),
        "samples": len(record.sample_ids),
        "clip_norm": record.clip_norm,
        "clip_factor": record.clip_factor,
    }


def _anchor_compression(log: StepLog) -> dict[str, Any] | None:
    """Method and uncompressed : stored of the anchors; None where they are not compressed."""
    method, sizes = log.manifest.get("compression"), [anchor.nbytes for anchor in log.anchors()]
    stored, uncompressed = (sum(part) for part in zip(*sizes, strict=True)) if sizes else (0, 0)
    return None if method is None else {"method": method, "ratio": round(uncompressed / stored, 3) if stored else None}


def _for_people(summary: dict[str, Any]) -> dict[str, Any]:
    first, last = summary["steps"]
    anchors, end = summary["anchors"], summary["last_step"]
    rule = f"replayed as {summary['rule']}" if summary["rule"] else "no replay rule: only retraining serves it"
    dtypes = ", ".join(f"{count} {name}" for name, count in summary["parameter_dtypes"].items())
    compression = summary["anchor_compression"]
    ratio = f" ({compression['method']}, {compression['ratio']} : 1)" if compression else ""
    rows = {
        "run": summary["run"],
        "steps": f"{first} to {last - 1} retained" if last > first else "none yet",
        "capacity": f"{summary['capacity']} steps",
        "vectors": f"{' and '.join(summary['vectors'])}, {summary['dtype']} (mode {summary['mode']})",
        "optimizer": f"{summary['optimizer']} ({rule})",
        "learning rate": "-",
        "samples": f"{summary['samples']} distinct, in {summary['batches']} batches",
        "anchors": f"{len(anchors)}: steps {', '.join(map(str, anchors[:8]))}{' ...' if len(anchors) > 8 else ''}{ratio}",
        "parameters": f"{summary['parameters']:,} trainable in {summary['tensors']} tensors ({dtypes}), "
        f"{summary['frozen']} frozen, {summary['tied']} tied",
        "largest": [f"{one['name']} {one['shape']}" for one in summary["largest"]],
        "state": "closed" if summary["closed"] else "being written, or its trainer ended without closing it",
        "size": f"{size(summary['bytes_on_disk'])} on disk",
    }
    if end is not None:
        rates = [f"{group['lr']:.3g}" for group in end["groups"]]
        start = [f"{group['lr']:.3g}" for group in summary["first_step"]["groups"]]
        rows["learning rate"] = f"{', '.join(start)} at step {first}; {', '.join(rates)} at step {last - 1}"
    return rows
