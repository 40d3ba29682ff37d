"""Columns and flags of the coefficient table of ``optimizer_replay_window_``.

The table is float64 ``[classes, steps, COLUMNS]``: one row per class of parameters and step; with several requests
``[requests, classes, steps, COLUMNS]``. It is made by the rules in ``lmcleaner_ext.optim`` and read by every backend;
``csrc/math/replay_step.h`` repeats these numbers for the native ones.
"""

from __future__ import annotations

FLAGS = 0  # sum of the flag bits below
GAIN = 1  # factual gradient = GAIN * logged gradient; -1 for an optimizer that maximises
ALPHA = 2  # share of the logged gradient that the counterfactual keeps
CURVATURE = 4  # factor of the diagonal curvature
DAMPING = 5  # lambda, added to the curvature
LR = 6
DECAY = 7  # weight decay
BETA1 = 8  # sgd: momentum
BETA2 = 9  # sgd: dampening
EPS = 10
SIZE = 11  # adam: lr / (1 - beta1^k) at the factual side's k-th step
ROOT = 12  # adam: 1 / sqrt(1 - beta2^k)
SIZE_CF = 13  # the same two for the counterfactual side, whose step counter may be behind
ROOT_CF = 14
COLUMNS = 16

ABSENT = 1  # the class does not take part in this step: nothing changes
SKIP = 2  # only the factual side steps
FIRST = 4  # sgd: the factual momentum buffer starts at this step
FIRST_CF = 8  # sgd: the counterfactual momentum buffer starts at this step
NESTEROV = 16
FACTUAL_ONLY = 32  # the request's deviation and counterfactual state stand still: it was truncated before this step

RULES = ("sgd", "update", "adam", "adamw")
STATE_COUNTS: dict[str, tuple[int, ...]] = {"sgd": (0, 1), "update": (0,), "adam": (2,), "adamw": (2,)}
"""How many state vectors a rule may have; sgd has one exactly when it has momentum."""
