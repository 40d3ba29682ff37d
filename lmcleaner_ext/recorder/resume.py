"""Continue a log after a checkpoint was loaded: find the step whose weights these are, drop the branch that was abandoned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import ops
from .._native import Ring
from ..digest import digest_tensors
from ..errors import ConfigurationError, LineageError, LogCorruptError
from ..layout import ParameterLayout
from ..log.folder import HEAD, SAMPLES, STEPS, USES
from ..log.record import SampleId
from ..log.uses import UseIndex
from ..optim.describe import describe_optimizer
from ..replay import StepLog
from ..replay.rebuild import trajectory
from .writer import LogWriter

# How far a rebuilt theta may lie from the checkpoint's, in lengths of one update: by bytes per element of the logged vectors. From
# 0.5 on the step could not be told from its neighbours. Measured 3 steps after an anchor, AdamW: fp16 0.0008, fp8 0.10, int8 0.27.
TOLERANCE = {1: 0.5, 2: 0.05, 4: 0.05, 8: 0.05}


def resume_writer(
    folder: Path, layout: ParameterLayout, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer
) -> tuple[LogWriter, int, int]:
    """(writer, step to go on with, new lineage).

    Raises LogLockedError, WrongModelError, ConfigurationError (another optimizer), LineageError (no retained step has these weights).
    """
    if not (folder / STEPS).exists():
        raise ConfigurationError(f"{folder} holds no log to resume: leave resume out to start one, or give its log_dir")
    ring = Ring.open_write(str(folder / STEPS))  # takes the lock, drops what a power cut tore
    try:
        with StepLog.open(folder) as log:
            _same_run(log, layout, optimizer)
            step = _matching_step(log, parameters, layout)
            vectors, dtype, capacity = log.vectors, log.dtype, log.manifest["capacity"]
            compression = log.manifest.get("compression")
            for anchor in log.anchors():
                if anchor.step > step:
                    anchor.path.unlink()
            torn = _torn_uses(log, UseIndex(folder / USES), step)
        samples = Ring.open_write(str(folder / SAMPLES)) if (folder / SAMPLES).exists() else None
        durable = ring.durability != "process"
        writer = LogWriter(folder, layout, ring, samples, durable, capacity, vectors, dtype, compression)
        lineage = ring.rewind(step)
        (folder / HEAD).unlink(missing_ok=True)  # it names the weights of the branch that ended
        for use in torn:
            writer.uses.append(*use)
        writer.rewind_samples(step)
    except BaseException:
        ring.close()
        raise
    return writer, step, lineage


def _torn_uses(log: StepLog, uses: UseIndex, step: int) -> list[tuple[int, tuple[SampleId, ...], SampleId]]:
    """Rewind the index of uses to `step`; returns (step, sample ids, batch id) of what a power cut tore from its end."""
    newest = uses.rewind(step)
    if newest + 1 < log.steps.start:
        raise LogCorruptError(
            newest + 1, -1,
            f"{log.path / USES} ends in step {newest}, and the ring begins with step {log.steps.start}: which ids the steps between used "
            "is not known any more. Start a new log",
        )  # fmt: skip
    torn = [t for t in range(max(newest, log.steps.start), step) if t not in log.scrubbed]
    if torn and torn[0] == newest:
        uses.rewind(newest)  # there may be only a part of it
    return [(t, log[t].sample_ids, log[t].batch_id) for t in torn]


def _same_run(log: StepLog, layout: ParameterLayout, optimizer: torch.optim.Optimizer) -> None:
    if log.layout != layout:
        ours = next((b for a, b in zip(log.layout.entries, layout.entries, strict=False) if a != b), None)
        raise ConfigurationError(
            "this log was written for another set of trainable parameters"
            + (f" (first difference: {ours.name})" if ours else "")
            + ": build model and optimizer as in the run that is resumed"
        )
    found, logged = describe_optimizer(optimizer)["class"], log.manifest["optimizer"]["class"]
    if found != logged:
        raise ConfigurationError(f"this log was written with {logged}, the optimizer is {found}")


def _matching_step(log: StepLog, parameters: Sequence[Tensor], layout: ParameterLayout) -> int:
    """The step before which the run had exactly these weights (or, rebuilt from a low-precision log, within TOLERANCE)."""
    head, theta = log.head(), layout.flatten(parameters).cpu()
    if (
        head is not None
        and head["step"] == log.steps.stop
        and head["digest"] == digest_tensors(parameters, head["digest"])
    ):
        return log.steps.stop
    anchors = log.anchors()
    digest = digest_tensors([theta], like=anchors[-1].digest() if anchors else None)
    for anchor in reversed(anchors):
        if anchor.digest() == digest:
            return anchor.step
    readable = max(log.scrubbed, default=-1) + 1  # no walk leads across a scrubbed step
    first = next((a.step for a in log.anchors() if a.step in log.steps and a.step >= readable), None)
    if first is not None:
        distances, lengths, previous = [], [0.0], None
        for _, rebuilt in trajectory(log, log.rule, first):
            distances.append(float((rebuilt - theta).double().norm()))
            if previous is not None:
                lengths.append(float((rebuilt - previous).double().norm()))
            previous = rebuilt.clone()
        nearest = min(range(len(distances)), key=distances.__getitem__)
        tolerance = TOLERANCE[ops.payload_dtype(log.dtype).itemsize]
        if distances[nearest] <= tolerance * max(lengths[nearest : nearest + 2]):
            return first + nearest
    raise LineageError(
        f"no retained step ({log.steps.start}..{log.steps.stop}) has the weights of this model: load the checkpoint of this run "
        "before resuming the log, or start a new log. Checkpoints at an anchor's step are recognised in any precision"
    )
