"""The sweep: carry a deviation through the logged steps (METHOD.md sections 3 and 4)."""

from .removal import StepRemoval, plan_removal
from .sweep import SweepResult, sweep
from .sweep_requests import sweep_requests

__all__ = ["StepRemoval", "SweepResult", "plan_removal", "sweep", "sweep_requests"]
