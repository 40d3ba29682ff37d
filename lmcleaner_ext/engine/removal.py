"""Which parts of which steps a request takes out, under each counterfactual convention (docs/method.md, section 1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import ConfigurationError
from ..log import StepRecord
from ..log.record import SampleId
from ..replay import StepLog

CONVENTIONS = ("placeholder", "renormalize", "skip")
DEFAULT_CONVENTION = {"sample": "placeholder", "batch": "skip"}


@dataclass(frozen=True)
class StepRemoval:
    """What one step loses.

    removed      {sample id: its total weight in the step's loss}, over the forgotten draws
    retained     the same for the draws that stay
    skip         the counterfactual does not take the step
    scale        1, or S/(S - W) under "renormalize": what the retained samples' mean is multiplied by
    """

    step: int
    removed: dict[SampleId, float]
    retained: dict[SampleId, float]
    skip: bool
    scale: float

    @property
    def nothing_left(self) -> bool:
        """The counterfactual gradient is exactly zero; subtracting logged vectors would leave rounding noise instead."""
        return not self.retained


def split_weights(
    record: StepRecord, forget: frozenset[SampleId]
) -> tuple[dict[SampleId, float], dict[SampleId, float]]:
    """(removed, retained): the draws' weights summed by id."""
    removed: dict[SampleId, float] = {}
    retained: dict[SampleId, float] = {}
    for identity, weight in zip(record.sample_ids, record.weights.tolist(), strict=True):
        side = removed if identity in forget else retained
        side[identity] = side.get(identity, 0.0) + weight
    return removed, retained


def step_removals(log: StepLog, ids: Iterable[SampleId], level: str, convention: str | None) -> dict[int, StepRemoval]:
    """{step: what it loses}, ascending, for every use of every id; finds expired and unknown ids first."""
    if level not in DEFAULT_CONVENTION:
        raise ConfigurationError(f'level is "sample" or "batch", found {level!r}')
    convention = convention or DEFAULT_CONVENTION[level]
    if convention not in CONVENTIONS:
        raise ConfigurationError(f"counterfactual is one of {CONVENTIONS}, found {convention!r}")
    found = log.find(ids, level)
    forget = frozenset(found)
    removal: dict[int, StepRemoval] = {}
    for step in sorted({step for steps in found.values() for step in steps}):
        record = log[step]
        removed, retained = split_weights(record, frozenset(record.sample_ids) if level == "batch" else forget)
        skip = convention == "skip" or (convention == "renormalize" and not retained)
        total = sum(removed.values()) + sum(retained.values())
        scale = total / sum(retained.values()) if convention == "renormalize" and not skip else 1.0
        removal[step] = StepRemoval(step, removed, retained, skip, scale)
    return removal
