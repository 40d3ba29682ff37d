"""What must hold before a request changes anything: the optimizer and the weights are those of the logged run."""

from __future__ import annotations

import torch
from torch import nn

from ..audit import AuditLog
from ..digest import digest_tensors
from ..errors import ConfigurationError, WrongModelError
from ..optim.describe import describe_optimizer
from ..replay import StepLog


def check_optimizer(log: StepLog, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise ConfigurationError unless this optimizer trains the logged parameters of this model, by the logged rule."""
    if not hasattr(optimizer, "param_groups"):
        raise ConfigurationError(f"optimizer is a torch.optim.Optimizer, found {type(optimizer).__name__}")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not all(id(p) in held for p in log.layout.parameters(model)):
        raise ConfigurationError(
            "the optimizer does not hold this model's parameters: give the one that trains this very model"
        )
    found, logged = describe_optimizer(optimizer)["class"], log.manifest["optimizer"]["class"]
    if found != logged:
        raise ConfigurationError(f"this log was written with {logged}, the optimizer is {found}")


def check_weights(
    log: StepLog, model: nn.Module, audit_log: AuditLog | None, allow_changed: bool
) -> tuple[str, bool | None]:
    """(digest of the model's weights, whether they are the ones the log ends with).

    Accepted too: the weights that an earlier request in `audit_log` left behind. Raises WrongModelError otherwise.
    """
    head = log.head()
    digest = digest_tensors(log.layout.parameters(model), like=None if head is None else head["digest"])
    if head is None or head["step"] != log.steps.stop:
        return digest, None
    matches = head["digest"] == digest
    if not matches and not allow_changed and digest not in (audit_log.served(log.manifest["run"]) if audit_log else ()):
        raise WrongModelError(
            f"its weights after step {head['step'] - 1} have digest {head['digest'][:19]}, the model's have {digest[:19]}. Load the "
            "weights that this run ended with; after an earlier deletion pass the same audit_log, or allow_changed_weights=True"
        )
    return digest, matches
