"""Deletion as a normal operation on a trained language model.

log a run once        with TrainingLogger(log_dir, model, optimizer) as log: ...
remove samples later  unlearn(model, log_dir, ids)
prove it              verify(model, log_dir, ids, data=...)
"""

from . import datasets, errors, evaluation, losses, ops
from ._version import __version__
from .audit import AuditLog, AuditRecord
from .errors import LMCleanerError
from .installation import show_config
from .log import StepRecord
from .recorder import TrainingLogger
from .replay import StepLog
from .unlearn import (
    LMCleanerBatchLevel,
    LMCleanerSampleLevel,
    UnlearnResult,
    apply_correction,
    compute_correction,
    deviations,
    hvp_apply,
    plan,
    scrub,
    unlearn,
    verify,
)

__all__ = [
    "AuditLog",
    "AuditRecord",
    "LMCleanerBatchLevel",
    "LMCleanerError",
    "LMCleanerSampleLevel",
    "StepLog",
    "StepRecord",
    "TrainingLogger",
    "UnlearnResult",
    "__version__",
    "apply_correction",
    "compute_correction",
    "datasets",
    "deviations",
    "errors",
    "evaluation",
    "hvp_apply",
    "losses",
    "ops",
    "plan",
    "scrub",
    "show_config",
    "unlearn",
    "verify",
]
