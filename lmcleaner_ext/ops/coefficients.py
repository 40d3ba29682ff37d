"""Columns and flags of the coefficient table of ``optimizer_replay_window_``.

The table is float64 ``[classes, steps, COLUMNS]``: one row per class of parameters and step; with several requests
``[requests, classes, steps, COLUMNS]``. It is made by the rules in ``lmcleaner_ext.optim`` and read by every backend;
the numbers are those of ``csrc/math/replay_arguments.h``.
"""

from __future__ import annotations

from .._native import replay_columns, replay_flags, replay_rules

_columns: dict[str, int] = replay_columns
_flags: dict[str, int] = replay_flags

FLAGS = _columns["FLAGS"]  # sum of the flag bits below
GAIN = _columns["GAIN"]  # factual gradient = GAIN * logged gradient; -1 for an optimizer that maximises
ALPHA = _columns["ALPHA"]  # share of the logged gradient that the counterfactual keeps
CURVATURE = _columns["CURVATURE"]  # factor of the diagonal curvature
DAMPING = _columns["DAMPING"]  # lambda, added to the curvature
LR = _columns["LR"]
DECAY = _columns["DECAY"]  # weight decay
BETA1 = _columns["BETA1"]  # sgd, rmsprop: momentum
BETA2 = _columns["BETA2"]  # sgd: dampening; rmsprop: alpha
EPS = _columns["EPS"]
SIZE = _columns["SIZE"]  # adam: lr / (1 - beta1^k) at the factual side's k-th step
ROOT = _columns["ROOT"]  # adam: 1 / sqrt(1 - beta2^k)
SIZE_CF = _columns["SIZE_CF"]  # the same two for the counterfactual side, whose step counter may be behind
ROOT_CF = _columns["ROOT_CF"]
COLUMNS = _columns["COLUMNS"]

ABSENT = _flags["ABSENT"]  # the class does not take part in this step: nothing changes
SKIP = _flags["SKIP"]  # only the factual side steps
FIRST = _flags["FIRST"]  # sgd: the factual momentum buffer starts at this step
FIRST_CF = _flags["FIRST_CF"]  # sgd: the counterfactual momentum buffer starts at this step
NESTEROV = _flags["NESTEROV"]
# the request's deviation and counterfactual state stand still: it was truncated before this step
FACTUAL_ONLY = _flags["FACTUAL_ONLY"]
START = _flags["START"]  # not the caller's: the counterfactual begins just before this step, by `lead`

STATE_COUNTS: dict[str, tuple[int, ...]] = replay_rules
"""The rules, and how many state vectors each may have; sgd has one, and rmsprop a second one, exactly with momentum."""
