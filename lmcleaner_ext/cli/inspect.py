"""`lmcleaner inspect`: what a training log holds, or what one would cost."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..log.uses import BATCH, SAMPLE
from ..replay import StepLog
from ..replay.rebuild import rebuild_from
from .estimate import add_options, estimate, for_people
from .output import add_json, print_json, properties, results, size


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="what a training log holds: steps, optimizer, precision, anchors, size; or what one would cost",
        description="Summarises a training log. Reads no vectors unless asked to --measure, so it is fast on any size of log, and safe "
        "beside a running trainer. Without LOG it estimates size and time of a log for a model.",
    )
    parser.add_argument("log", metavar="LOG", nargs="?", help="the log_dir that was given to TrainingLogger")
    parser.add_argument(
        "--measure", action="store_true", help="read the whole log: reconstruction error and read throughput"
    )
    add_options(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.log is None:
        found = estimate(arguments)
        if arguments.json:
            print_json(found)
        else:
            title = f"A log of {found['parameters']:,} parameters in {found['dtype']}"
            results().print(properties(title, for_people(found)))
        return
    with StepLog.open(arguments.log) as log:
        summary = summarize(log)
        if arguments.measure:
            summary |= measure(log)
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
        "tracked": _tracked(log),
        "scrubbed": sorted(log.scrubbed),
        "bytes_per_step": sum(log._ring.section_bytes),
        "compression": round(len(log.vectors) * layout.dtype.itemsize * layout.size / sum(log._ring.section_bytes), 3),
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


def _tracked(log: StepLog) -> dict[str, Any] | None:
    """The gradients of tracked samples; None for a log of mode "batch". bytes_per_use: the mean over those that are there."""
    ring = log._samples
    if ring is None:
        return None
    uses, slot = log.tracked_uses(), sum(ring.section_bytes)
    slots = sum(len(log._tracked[use].slots) for use in uses)
    nbytes = slot * slots // len(uses) if uses else slot
    return {
        "uses": len(uses),
        "slots": ring.capacity,
        "sample_tokens": log.sample_tokens,
        "bytes_per_use": nbytes,
        "compression": round(log.layout.dtype.itemsize * log.layout.size / nbytes, 3),
    }


def measure(log: StepLog) -> dict[str, Any]:
    """{"reconstruction_error", "read_gigabytes_per_second"}; None where the log has too little to measure.

    reconstruction_error: the parameters at an anchor, rebuilt from the anchor before it and the logged vectors, against those that
    the anchor holds: ||rebuilt - theta|| / ||theta - theta before||, the largest over the pairs of anchors that can be replayed.
    """
    readable = [t for t in log.steps if t not in log.scrubbed]
    started, nbytes = time.perf_counter(), 0
    for vector in log.vectors if readable else ():
        window = log.window(readable, vector)
        window.verify(0, log.layout.size)
        nbytes += sum(v.nbytes for v in window)
    seconds = time.perf_counter() - started
    errors = []
    anchors = [a for a in log.anchors() if a.step >= log.steps.start]
    for before, after in pairwise(anchors):
        possible = log.rule is not None or "update" in log.vectors
        if after.corrected or not possible or log.scrubbed & set(range(before.step, after.step)):
            continue
        rebuilt, theta = rebuild_from(log, log.rule, before, after.step)[0].double(), after.tensor("theta").double()
        moved = float((theta - before.tensor("theta").double()).norm())
        errors.append(float((rebuilt - theta).norm()) / moved if moved else 0.0)
    return {
        "reconstruction_error": max(errors, default=None),
        "read_gigabytes_per_second": nbytes / seconds / 1e9 if nbytes else None,
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
        "size": f"{size(summary['bytes_on_disk'])} on disk; {size(summary['bytes_per_step'])} per step, "
        f"{summary['compression']:g} times smaller than unencoded",
    }
    tracked = summary["tracked"]
    if tracked is not None:
        form = (
            "dense"
            if tracked["sample_tokens"] is None
            else f"linear layers as factors of {tracked['sample_tokens']} tokens"
        )
        rows["tracked samples"] = (
            f"{tracked['uses']} gradients in {tracked['slots']} slots, {form}; {size(tracked['bytes_per_use'])} each, "
            f"{tracked['compression']:g} times smaller than unencoded"
        )
    if summary["scrubbed"]:
        rows["scrubbed"] = f"steps {', '.join(map(str, summary['scrubbed']))}"
    if summary.get("reconstruction_error") is not None:
        rows["reconstruction"] = (
            f"rebuilt parameters off by {100 * summary['reconstruction_error']:.2g} % of the way between two anchors"
        )
    if summary.get("read_gigabytes_per_second") is not None:
        rows["read"] = f"{summary['read_gigabytes_per_second']:.2f} GB/s, checksums verified"
    if end is not None:
        rates = [f"{group['lr']:.3g}" for group in end["groups"]]
        start = [f"{group['lr']:.3g}" for group in summary["first_step"]["groups"]]
        rows["learning rate"] = f"{', '.join(start)} at step {first}; {', '.join(rates)} at step {last - 1}"
    return rows
