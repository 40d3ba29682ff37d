"""`StepLog`: a training log with everything that can be computed from it."""

from __future__ import annotations

from torch import Tensor

from ..errors import MissingDataError
from ..log import LogReader
from ..optim import RULES, SERVED, Rule
from .rebuild import dense_gradient, rebuild_state


class StepLog(LogReader):
    """A training log, opened for reading: what lies on disk, and the parameters, states and vectors that follow from it.

    Example:
        >>> log = StepLog.open("runs/log")             # doctest: +SKIP
        >>> log.steps, log[10].sample_ids              # doctest: +SKIP
        (range(0, 24), (7, 3, 12, 5))
        >>> theta = log.parameters_at(10)              # doctest: +SKIP
    """

    @property
    def rule(self) -> Rule | None:
        """The optimizer's replay rule; None for an optimizer that can be logged but not replayed."""
        return RULES.get(self.manifest["optimizer"]["rule"])

    @property
    def without_rule(self) -> str:
        """For messages about a log whose rule is None: which optimizer has none, and why."""
        optimizer = self.manifest["optimizer"]
        return f"{optimizer['class']} has no replay rule ({optimizer.get('reason') or f'{SERVED} do'})"

    def parameters_at(self, step: int) -> Tensor:
        """theta[step], [P], rebuilt from the newest anchor before it; float64 models give float64.

        Raises ExpiredStepError or MissingStepError outside the retained steps (the last one + 1 is allowed).
        """
        return self.state_at(step)[0]

    def state_at(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """(theta[step], optimizer state before that step: {"exp_avg": [P], ...}), rebuilt from the newest anchor."""
        if step != self.steps.stop:
            self._slot(step)
        return rebuild_state(self, self.rule, step)

    def _derived(self, step: int, vector: str) -> Tensor:
        """The vector that is not logged, from the one that is: u from theta on both sides, g of plain SGD from u."""
        if vector == "update":
            return self.parameters_at(step + 1) - self.parameters_at(step)
        if self.rule is None:
            raise MissingDataError(
                f"this log keeps updates, and {self.manifest['optimizer']['class']} has no rule that gives back the gradient: "
                'record with TrainingLogger(..., vectors="gradient" or "both")'
            )
        decays = any(group["weight_decay"] for group in self[step].groups)
        return dense_gradient(self, step, self.parameters_at(step) if decays else None)
