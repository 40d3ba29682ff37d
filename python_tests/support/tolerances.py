"""Bounds, and where they come from. rho is the residual of docs/method.md, section 2."""

from __future__ import annotations

# rho of hessian_mode="replay" in float64: the engine with true gradients; only rounding (times chaos) is left
EXACT = 1e-6
ROUNDING = 1e-10  # relative, float64: sums in another order
DENSE = 1e-8  # relative, float64: a product against a dense matrix
FP16_PENALTY = 0.02  # how much worse rho may be through a block-scaled fp16 log in float32
PRECISION_PENALTY = {"fp16": (1.01, 0.0), "int8": (1.0, 0.02), "fp8": (1.0, 0.02)}
"""AdamW at lr 1e-4: rho through a low-precision log is at most factor * rho of float32 + difference."""

# docs/method.md, section 4: (optimizer or learning rate, hessian_mode) -> the largest rho allowed
FROM_SCRATCH = {"sgd": 0.06, "momentum": 0.08}
FINE_TUNING = {(3e-5, "none"): 0.02, (3e-5, "exact"): 0.001, (3e-4, "none"): 0.15, (3e-4, "exact"): 0.01}
KL_RATIO_NONE = 0.01
