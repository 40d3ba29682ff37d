"""The kernel's coefficients for the steps of a window: the parameters grouped by what happens to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..log import LogReader
from ..ops import coefficients as col
from ..optim import Rule, StepPlan
from .state import ReplayState


def coefficient_table(
    log: LogReader, rule: Rule, state: ReplayState, steps: range, requests: Sequence[Sequence[StepPlan]]
) -> tuple[Tensor, Tensor]:
    """(coefficients [requests, classes, steps, 16] float64, segments [S, 3] int64) for these steps and each request's plans for
    them; advances the state's counters."""
    records = [log[t] for t in steps]
    missing = [frozenset(r.absent) for r in records]
    some_absent = any(missing)
    classes: dict[tuple[object, ...], int] = {}
    tables: list[np.ndarray] = []
    segments: list[list[int]] = []
    skipped = [sum(plan.skip for plan in plans) for plans in requests]
    for index, entry in enumerate(log.layout.entries):
        absent = tuple(index in gone for gone in missing) if some_absent else (False,) * len(records)
        counterfactual = tuple(taken[index] for taken in state.taken_counterfactual)
        key = (entry.group, state.taken[index], counterfactual, absent if some_absent else None)
        if key not in classes:
            classes[key] = len(tables)
            groups = [r.groups[entry.group] for r in records]
            # [requests, steps, 16]
            table = np.stack(
                [
                    rule.coefficients(groups, plans, absent, state.taken[index], taken)
                    for plans, taken in zip(requests, counterfactual, strict=True)
                ]
            )
            if not log.gradients:  # an update has its sign already: GAIN is 1 and ALPHA the share that is kept
                table[..., col.ALPHA] *= table[..., col.GAIN]
                table[..., col.GAIN] = 1.0
            tables.append(table)
        if segments and segments[-1][1] == entry.begin and segments[-1][2] == classes[key]:
            segments[-1][1] = entry.end
        else:
            segments.append([entry.begin, entry.end, classes[key]])
        gone_count = sum(absent)
        state.taken[index] += len(records) - gone_count
        for plans, taken, some_skipped in zip(requests, state.taken_counterfactual, skipped, strict=True):
            gone_skipped = sum(a and p.skip for a, p in zip(absent, plans, strict=True)) if gone_count else 0
            taken[index] += len(records) - gone_count - (some_skipped - gone_skipped)
    return torch.from_numpy(np.stack(tables, axis=1)), torch.tensor(segments, dtype=torch.int64).view(-1, 3)
