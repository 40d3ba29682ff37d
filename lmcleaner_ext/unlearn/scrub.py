"""`scrub`: overwrite what a log still holds of samples, once their deletion has been served."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .._native import Ring, RingWriter
from ..audit import AuditLog
from ..audit.chain import new_request, pseudonym
from ..errors import ConfigurationError, UnknownSampleError
from ..log.folder import SAMPLES, STEPS
from ..log.record import SampleId, normalize_ids
from ..recorder import TrainingLogger
from ..replay import StepLog


@dataclass(frozen=True)
class ScrubReport:
    """What was overwritten.

    steps          whose vectors, ids and hyper-parameters are gone
    tracked        gradients of single samples that are gone (mode="sample")
    bytes          overwritten, slots that held no readable step included
    usable_from    the first step from which requests can still be served (its anchor exists)
    """

    steps: tuple[int, ...]
    tracked: int
    bytes: int
    usable_from: int


def scrub(
    log: TrainingLogger | StepLog | str | Path,
    ids: Iterable[SampleId] = (),
    *,
    steps: Iterable[int] = (),
    tracked_only: bool = False,
    audit_log: str | Path | None = None,
    dry_run: bool = False,
) -> ScrubReport:
    """Overwrite the logged vectors that contain these samples, with zeros, durably. It cannot be undone.

    A sample's gradient is in the log as itself (mode="sample") and as a share of the gradient of each step that used it. Both go,
    together with the ids and hyper-parameters of those steps; other steps still read. A request that has to replay a scrubbed
    step raises ScrubbedStepError from then on: what stays usable begins at the first anchor after the last one (`usable_from`).

    What stays: the anchors and the gradients of later steps, which the sample influenced as it influenced the weights, and the
    index of which step used which id, so that a later request for them is answered with ScrubbedStepError.

    Args:
        log: the folder of a finished run, a StepLog, or the TrainingLogger of a run in progress.
        ids: samples whose uses are overwritten.  steps: steps to overwrite besides.
        tracked_only: overwrite the samples' own gradients only; the log stays fully usable.
        audit_log: receives `scrub` before and `scrubbed` after.  dry_run: report, change nothing.

    Raises:
        UnknownSampleError, ConfigurationError, LogLockedError (a trainer is writing: give its TrainingLogger), LogWriteError.
    """
    reader = log.open() if isinstance(log, TrainingLogger) else log if isinstance(log, StepLog) else StepLog.open(log)
    reader.refresh()
    asked, extra = normalize_ids(ids), sorted(set(steps))
    foreign = [step for step in extra if step not in reader.steps]
    if foreign:
        raise ConfigurationError(
            f"step {foreign[0]} is not in the log, which has steps {reader.steps.start}..{reader.steps.stop - 1}"
        )
    uses = {i: reader.uses(i) for i in asked}
    unknown = [i for i, found in uses.items() if not found]
    if unknown:
        raise UnknownSampleError(unknown)
    chosen = {step for found in uses.values() for step in found if step in reader.steps}
    chosen = set() if tracked_only else chosen | set(extra)
    tracked = reader.tracked_slots(lambda step, identity: identity in uses or step in chosen)
    last = max((*chosen, *reader.scrubbed), default=-1)
    usable = next((a.step for a in reader.anchors() if a.step > last), reader.steps.stop)
    report = ScrubReport(tuple(sorted(chosen)), len(tracked), 0, max(usable, reader.steps.start))
    if dry_run:
        return report
    chain = AuditLog(audit_log) if audit_log is not None else None
    name, run = new_request(), reader.manifest["run"]
    entry: dict[str, Any] = {"run": run, "ids": [pseudonym(run, i) for i in asked], "steps": report.steps}
    with ExitStack() as stack:
        rings = _writers(log, reader, stack)
        if chain is not None:
            chain.append("scrub", name, {**entry, "tracked_only": tracked_only})
        try:
            wiped = rings[0](sorted(chosen)) if chosen else 0
            wiped += rings[1](tracked) if len(rings) > 1 else 0
        except BaseException as error:
            if chain is not None:
                chain.append("failed", name, {"reason": f"{type(error).__name__}: {error}"})
            raise
    report = ScrubReport(report.steps, report.tracked, wiped, report.usable_from)
    if chain is not None:
        chain.append("scrubbed", name, {**entry, **asdict(report)})
    reader.refresh()
    return report


def _writers(
    log: TrainingLogger | StepLog | str | Path, reader: StepLog, stack: ExitStack
) -> list[Callable[[list[int]], int]]:
    """The scrub functions of the ring of steps and, where there is one, the ring of samples."""
    if isinstance(log, TrainingLogger):
        return log.scrub_functions()
    opened: list[RingWriter] = []
    for file in (STEPS, SAMPLES):
        if (reader.path / file).exists():
            ring = Ring.open_write(str(reader.path / file))
            stack.callback(ring.close)
            opened.append(ring)
    return [ring.scrub for ring in opened]
