"""Removing samples or batches from a model's weights: `unlearn`, `plan`, `verify` and the unlearner classes."""

from .api import LMCleanerBatchLevel, LMCleanerSampleLevel, unlearn
from .correction import apply_correction, compute_correction, hvp_apply
from .deviations import deviations
from .plan import ModePlan, Plan, plan
from .result import UnlearnResult
from .retrain import retrain
from .scrub import ScrubReport, scrub
from .verify import ModeReport, VerifyReport, verify

__all__ = [
    "LMCleanerBatchLevel",
    "LMCleanerSampleLevel",
    "ModePlan",
    "ModeReport",
    "Plan",
    "ScrubReport",
    "UnlearnResult",
    "VerifyReport",
    "apply_correction",
    "compute_correction",
    "deviations",
    "hvp_apply",
    "plan",
    "retrain",
    "scrub",
    "unlearn",
    "verify",
]
