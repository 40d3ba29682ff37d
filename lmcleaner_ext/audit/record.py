"""`AuditRecord`: everything a later reader needs to judge one deletion."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class AuditRecord:
    """One served request. Norms are Euclidean, times in seconds, sizes in bytes.

    tz             steps at which the forgotten samples (or batches) were used
    tau            step at which the request was served
    K, K_used      truncation asked for, and the steps really swept after the last use
    mode, reason   hessian_mode that ran, and why when it was "auto"
    damping        lambda used (0 where the mode has no curvature)
    gamma          largest growth of ||delta|| in one step without a use; 1 where it was not measured
    norm_before    ||theta[tau]||, norm_after ||theta_hat||, norm_deviation ||delta||
    products       curvature products computed; gradients_computed: samples whose gradient was recomputed from data
    counterfactual the convention of docs/method.md, section 1; level: "sample" or "batch"
    error_bound    None: no bound is claimed
    noise          None: no certification noise was added
    digest_before, digest_after   of the trainable weights (digest.py)
    weights_match  whether digest_before is the one the log ended with (None: the log was not closed)
    """

    ids: int
    level: str
    tz: tuple[int, ...]
    tau: int
    K: int
    K_used: int
    mode: str
    reason: str
    counterfactual: str
    damping: float
    gamma: float
    norm_before: float
    norm_after: float
    norm_deviation: float
    products: int
    gradients_computed: int
    bytes_read: int
    seconds: float
    optimizer_corrected: bool
    backend: str
    run: str
    digest_before: str
    digest_after: str
    weights_match: bool | None
    version: str
    error_bound: float | None = None
    noise: float | None = None
    dry_run: bool = False

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
