"""The sweep: carry a deviation through the logged steps (docs/method.md, sections 3 and 4)."""

from .removal import StepRemoval, step_removals
from .sweep import SweepResult, sweep
from .sweep_requests import sweep_requests

__all__ = ["StepRemoval", "SweepResult", "step_removals", "sweep", "sweep_requests"]
