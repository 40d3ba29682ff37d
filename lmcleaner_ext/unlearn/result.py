"""What `unlearn` returns: the audit record, the way back, and what should be learned again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..audit import AuditRecord
from ..digest import digest_tensors
from ..errors import ConfigurationError, WrongModelError
from ..layout import ParameterLayout
from ..log.record import SampleId
from ..optim import Rule


@dataclass
class UnlearnResult:
    """audit: the AuditRecord.  relearn_ids: benign samples of dropped steps.  deviation: delta [P] with keep_deviation=True."""

    audit: AuditRecord
    relearn_ids: tuple[SampleId, ...] = ()
    deviation: Tensor | None = None
    _layout: ParameterLayout | None = None
    _previous: Tensor | None = None
    _optimizer: torch.optim.Optimizer | None = None
    _previous_state: list[tuple[nn.Parameter, str, Tensor | None]] = field(default_factory=list)

    @torch.no_grad()
    def undo(self, model: nn.Module) -> None:
        """Restore the exact previous weights, and the optimizer's state if it was corrected.

        Raises WrongModelError if the weights changed since, ConfigurationError if there is nothing to undo.
        """
        if self._previous is None or self._layout is None:
            raise ConfigurationError(
                "there is nothing to undo: this was a dry run, an empty request, or it was undone already"
            )
        parameters = self._layout.parameters(model)
        if digest_tensors(parameters, like=self.audit.digest_after) != self.audit.digest_after:
            raise WrongModelError("its weights are not those that this deletion left behind; undo later changes first")
        for p, view in zip(parameters, self._layout.views(self._previous), strict=True):
            p.copy_(view)
        if self._optimizer is not None:
            for p, name, value in self._previous_state:
                self._optimizer.state[p][name] = value
        self._previous, self._previous_state = None, []


@torch.no_grad()
def correct_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    layout: ParameterLayout,
    rule: Rule,
    deviations: dict[str, Tensor],
    skipped: Sequence[int],
) -> list[tuple[nn.Parameter, str, Any]]:
    """Replace the live state by the counterfactual one; returns what it was: (parameter, name, value).

    skipped: per parameter, how many steps its counter is put back. The deviation is subtracted, rather than a replayed state put in,
    so that the live state keeps its own precision.
    """
    non_negative = {state.name for state in rule.states(optimizer.param_groups) if state.non_negative}
    previous: list[tuple[nn.Parameter, str, Any]] = []
    for entry, p, fewer in zip(layout.entries, layout.parameters(model), skipped, strict=True):
        state = optimizer.state.get(p)
        if not state:
            continue
        for name, deviation in deviations.items():
            live = state.get(name)
            if live is None:
                continue
            previous.append((p, name, live))
            corrected = live - deviation[entry.begin : entry.end].view(entry.shape).to(live.device, live.dtype)
            state[name] = corrected.clamp_(min=0) if name in non_negative else corrected
        if fewer and "step" in state:
            previous.append((p, "step", state["step"]))
            state["step"] = state["step"] - fewer
    return previous
