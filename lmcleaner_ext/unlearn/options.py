"""The options of a request: each is default, choices and help in one place, for Python, the command line and --config."""

from __future__ import annotations

from dataclasses import dataclass

from ..curvature import MODES
from ..engine.removal import CONVENTIONS, DEFAULT_CONVENTION
from ..engine.sweep import SweepOptions
from ..errors import ConfigurationError
from ..ops.dispatch import BACKENDS
from ..options import option


@dataclass(frozen=True, kw_only=True)
class RequestOptions(SweepOptions):
    """What `unlearn`, `plan`, `verify` and `compute_correction` take besides objects."""

    level: str = option("sample", "what the ids name", choices=DEFAULT_CONVENTION)
    hessian_mode: str = option(
        "auto",
        "what the gradient does when the parameters deviate (the audit record says what auto chose and why)",
        choices=(*MODES, "auto"),
        flag="mode",
    )
    counterfactual: str | None = option(
        None,
        "what the run without the ids did instead; default placeholder for samples, skip for batches",
        choices=CONVENTIONS,
    )
    micro_batch: int = option(8, "rows per forward pass, which bounds memory", at_least=1, unit="rows")
    backend: str | None = option(None, "what computes the ops; default the best there is", choices=BACKENDS)


@dataclass(frozen=True, kw_only=True)
class UnlearnOptions(RequestOptions):
    """What `unlearn` takes besides: what becomes of the result."""

    dry_run: bool = option(False, "compute and report, change nothing")
    keep_deviation: bool = option(False, "return delta with the result", command_line=False)
    allow_changed_weights: bool = option(False, "accept a model whose weights are not those the log ended with")
    progress: bool | None = option(None, "bar on or off; default where the terminal shows one", command_line=False)
    epsilon: float | None = option(None, "of certified noise: not part of this version", command_line=False)
    delta: float | None = option(None, "of certified noise: not part of this version", command_line=False)
    sensitivity: float | None = option(None, "of certified noise: not part of this version", command_line=False)
    noise: str = option("isotropic", "of certified noise: not part of this version", command_line=False)
    seed: int | None = option(None, "of certified noise: not part of this version", command_line=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon is not None or self.delta is not None or self.sensitivity is not None:
            raise ConfigurationError(
                "certified noise (epsilon, delta, sensitivity) is not part of this version: leave them None"
            )
