"""Logged steps run again: `StepLog`, a log with the parameters and states that follow from it, and what the sweep needs for that."""

from .steplog import StepLog

__all__ = ["StepLog"]
