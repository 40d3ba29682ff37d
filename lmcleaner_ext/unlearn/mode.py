"""Which hessian_mode serves a request: what was asked for, or what "auto" chooses and why."""

from __future__ import annotations

from torch import Tensor

from ..curvature import NEEDS_DATA
from ..errors import ConfigurationError, MissingDataError, UnsupportedOptimizerError
from ..losses import LossGradients
from ..replay import StepLog


def choose_mode(asked: str, log: StepLog, losses: LossGradients | None, diagonal: Tensor | None) -> tuple[str, str]:
    """(mode, reason); raises ConfigurationError, MissingDataError, UnsupportedOptimizerError for one that cannot serve it."""
    if diagonal is not None and asked in ("auto", "diag"):
        shape = tuple(diagonal.shape) if isinstance(diagonal, Tensor) else type(diagonal).__name__
        if shape != (log.layout.size,):
            raise ConfigurationError(f"diagonal has shape {shape}, expected ({log.layout.size},)")
    if asked == "auto":
        return _automatic(log, losses, diagonal)
    if asked in NEEDS_DATA and losses is None:
        raise MissingDataError(f'hessian_mode="{asked}" needs model and training samples: pass model and data=')
    if log.rule is None and asked != "replay":
        raise UnsupportedOptimizerError(
            f"{log.manifest['optimizer']['class']} with these options has no replay rule (SGD, Adam and AdamW without amsgrad do): "
            'only hessian_mode="replay" with data= can serve this request'
        )
    return asked, "asked for"


def _automatic(log: StepLog, losses: LossGradients | None, diagonal: Tensor | None) -> tuple[str, str]:
    if log.rule is None:
        if losses is None:
            raise MissingDataError(
                f"{log.manifest['optimizer']['class']} has no replay rule: pass data= to retrain from the log's schedule"
            )
        return "replay", "the optimizer has no replay rule, so only retraining from the log's schedule serves it"
    if diagonal is not None:
        return "diag", "a diagonal was given"
    if log.rule.name == "adam":
        return (
            "none",
            "Adam normalises the gradient: the optimizer's state carries the influence, and the log alone serves it",
        )
    if losses is not None:
        return "replay", "without normalisation the curvature decides the deviation, and the data are there"
    return "none", "no data and no diagonal were given"
