"""The interface of an optimizer rule. One small file per rule beside this one; whatever asks which optimizer it is asks here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ..ops import coefficients as col
from .counterfactual import StepPlan

Group = Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """One [P] tensor of an optimizer's state.

    name          torch's key of it
    decay         group -> what a deviation of it is multiplied by in a step where nothing is removed
    non_negative  it is an average of squares, which a correction must not bring below zero
    """

    name: str
    decay: Callable[[Group], float]
    non_negative: bool = False


class Rule:
    """One family of optimizers; a new one is a file with a subclass, a line in __init__.py, and its kernels in ops.

    name         its key in the log's manifest
    title        what messages call it
    served       what of the family has this rule, in words
    classes      the classes whose objects it serves, subclasses not
    class_names  names of classes outside torch that it serves
    anchored     {what `lmcleaner inspect --optimizer` calls a variant: how many [P] tensors its state has}
    linear       in the gradient: the counterfactual state is kept as the deviation itself, which is propagated
    normalises   the step hardly depends on the gradient's size: the state carries the influence, and curvature seldom matters
    counts       torch keeps a counter of each parameter's steps
    """

    name: ClassVar[str]
    title: ClassVar[str]
    served: ClassVar[str]
    classes: ClassVar[tuple[type, ...]] = ()
    class_names: ClassVar[tuple[str, ...]] = ()
    anchored: ClassVar[Mapping[str, int]]
    linear: ClassVar[bool] = False
    normalises: ClassVar[bool] = False
    counts: ClassVar[bool] = True

    def serves(self, kind: type) -> bool:
        """Whether objects of this very class are optimizers of this family."""
        return kind in self.classes or kind.__name__ in self.class_names

    def hyperparameters(self, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> dict[str, Any]:
        """What the log keeps of one of its groups; those that the optimizer keeps elsewhere are added."""
        return group

    def accepts(self, group: Group) -> str | None:
        """None if this rule replays such a group exactly, else what is in the way."""
        return None

    def plain(self, groups: Sequence[Group]) -> bool:
        """Whether a step is theta -= lr (g + w theta): its update gives the gradient back."""
        return False

    def states(self, groups: Sequence[Group]) -> tuple[State, ...]:
        """The optimizer's state, in kernel order, for these hyper-parameters."""
        raise NotImplementedError

    def state_names(self, groups: Sequence[Group]) -> tuple[str, ...]:
        return tuple(state.name for state in self.states(groups))

    def kernel(self, groups: Sequence[Group], gradients: bool) -> str:
        """Which rule of `optimizer_replay_window_` runs (ops/coefficients.py), from logged gradients or updates."""
        raise NotImplementedError

    def needs_parameters(self, groups: Sequence[Group], plans: Sequence[StepPlan], gradients: bool) -> bool:
        """Whether theta itself enters the deviation."""
        raise NotImplementedError

    def needs_stream(self, groups: Sequence[Group], plans: Sequence[StepPlan]) -> bool:
        """Whether the logged vectors enter the deviation."""
        return True

    def fill(
        self, row: np.ndarray, group: Group, plan: StepPlan, before: tuple[int, int], after: tuple[int, int]
    ) -> None:
        """The columns of one step that only this rule has, FLAGS to be added to; before, after: steps taken, (factual, counterfactual)."""
        raise NotImplementedError

    def coefficients(
        self,
        groups: Sequence[Group],
        plans: Sequence[StepPlan],
        absent: Sequence[bool],
        taken: int,
        taken_counterfactual: int,
    ) -> np.ndarray:
        """float64 [steps, 16] for one class of parameters.

        groups: its hyper-parameters at each step; taken: optimizer steps it had made before the first of them.
        """
        table = np.zeros((len(groups), col.COLUMNS))
        before = (taken, taken_counterfactual)
        for row, group, plan, gone in zip(table, groups, plans, absent, strict=True):
            after = before if gone else (before[0] + 1, before[1] + (not plan.skip))
            gain = -1.0 if group.get("maximize") else 1.0
            row[col.FLAGS] = col.SKIP * plan.skip + col.FACTUAL_ONLY * plan.frozen
            row[col.GAIN], row[col.ALPHA] = gain, gain * plan.keep
            row[col.CURVATURE] = gain * plan.curvature * plan.response
            row[col.DAMPING] = gain * plan.damping * plan.response
            row[col.LR], row[col.DECAY] = group["lr"], group["weight_decay"]
            self.fill(row, group, plan, before, after)
            if gone:
                row[col.FLAGS] = col.ABSENT
            before = after
        return table
