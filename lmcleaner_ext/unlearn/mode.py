"""Which hessian_mode serves a request: what was asked for, or what "auto" chooses and why."""

from __future__ import annotations

from torch import Tensor

from ..curvature import Curvature, Diagonal, NoCurvature, TrueGradient, curvature_mode
from ..errors import MissingDataError, UnsupportedOptimizerError
from ..losses import LossGradients
from ..replay import StepLog


def choose_mode(
    asked: str, log: StepLog, losses: LossGradients | None, diagonal: Tensor | None
) -> tuple[Curvature, str]:
    """(mode, reason); raises ConfigurationError, MissingDataError, UnsupportedOptimizerError for one that cannot serve it."""
    mode, reason = _automatic(log, losses, diagonal) if asked == "auto" else (curvature_mode(asked), "asked for")
    if mode.needs_data and losses is None:
        raise MissingDataError(f'hessian_mode="{asked}" needs model and training samples: pass model and data=')
    if log.rule is None and not mode.retrains:
        raise UnsupportedOptimizerError(
            f'{log.without_rule}: only hessian_mode="replay" with data= can serve this request'
        )
    return mode.of(log, diagonal), reason


def _automatic(log: StepLog, losses: LossGradients | None, diagonal: Tensor | None) -> tuple[type[Curvature], str]:
    if log.rule is None:
        if losses is None:
            raise MissingDataError(f"{log.without_rule}: pass data= to retrain from the log's schedule")
        return TrueGradient, "the optimizer has no replay rule, so only retraining from the log's schedule serves it"
    if diagonal is not None:
        return Diagonal, "a diagonal was given"
    if log.rule.normalises:
        return (
            NoCurvature,
            f"{log.rule.title} normalises the gradient: the optimizer's state carries the influence, and the log alone serves it",
        )
    if losses is not None:
        return TrueGradient, "without normalisation the curvature decides the deviation, and the data are there"
    return NoCurvature, "no data and no diagonal were given"
