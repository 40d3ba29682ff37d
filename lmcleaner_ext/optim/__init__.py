"""Optimizer rules: what one step does to parameters and state, as coefficients of the replay kernel."""

from .adam import AdamRule
from .counterfactual import StepPlan
from .lion import LionRule
from .rmsprop import RMSpropRule
from .rule import Rule
from .sgd import SGDRule

RULES: dict[str, Rule] = {rule.name: rule for rule in (SGDRule(), AdamRule(), RMSpropRule(), LionRule())}
SERVED = ", ".join(rule.served for rule in RULES.values())
"""Which optimizers have a rule, for messages."""

__all__ = ["RULES", "SERVED", "AdamRule", "LionRule", "RMSpropRule", "Rule", "SGDRule", "StepPlan"]
