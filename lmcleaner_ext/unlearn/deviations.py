"""What the weights would be without each of several requests: deviations for influence studies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..curvature import REGISTRY
from ..engine import sweep_requests
from ..errors import ConfigurationError, MissingDataError
from ..log.record import SampleId
from ..options import takes_options
from ..recorder import TrainingLogger
from ..replay import StepLog
from ..replay.device_panels import replaying
from .options import RequestOptions
from .request import open_log, prepare

MODES = ("auto", *(name for name, mode in REGISTRY.items() if mode.elementwise))


@takes_options(RequestOptions, without=("every", "tol", "micro_batch"))
def deviations(
    model: nn.Module | None,
    log: StepLog | TrainingLogger | str | Path,
    requests: Iterable[Iterable[SampleId]],
    *,
    diagonal: Tensor | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Tensor:
    """delta[tau] = theta[tau] - theta_ideal[tau] of each of R independent requests, [R, P] float32 (float64 for float64 models).

    Row r is `compute_correction(model, log, requests[r])`: the model without request r alone is theta[tau] - delta[r]. Nothing is
    changed. All requests share one sweep from the first use of any of them: the log is read, verified and decoded once and the
    optimizer's factual side is stepped once. The whole result and R counterfactual optimizers are in memory:
    R (1 + states) 4 P bytes, states = 2 for Adam, 1 for momentum (8 P per number in float64); take the requests in portions if that
    is too much, those used at about the same steps together.

    Args:
        model: decides the device (a GPU replays the windows there); may be None.
        requests: R lists of sample ids, or of batch ids with level="batch". An empty one gives zeros.
        diagonal: h [P] for "diag"; None: the recorded one.  progress: bar on or off; default: where the terminal shows one.
        **options

    hessian_mode is "none", "diag" or "auto": the modes that need data serve one request at a time.

    Raises:
        ConfigurationError: another mode, or a clipped run whose deviations have to be taken step by step.
        MissingDataError: a sample's gradient is not in the log. UnknownSampleError, ExpiredStepError, UnsupportedOptimizerError,
        NumericalError, LogCorruptError ... as `unlearn`.
    """
    chosen = RequestOptions(**options)
    if chosen.hessian_mode not in MODES:
        raise ConfigurationError(
            f"deviations takes hessian_mode {', '.join(map(repr, MODES))}, found {chosen.hessian_mode!r}: call compute_correction for "
            "each request"
        )
    reader = open_log(log)
    layout = reader.layout
    try:
        prepared = [prepare(model, reader, ids, chosen, diagonal=diagonal) for ids in requests]
    except MissingDataError as error:
        raise MissingDataError(
            f"{error}. deviations has no data=: compute_correction takes it, for one request"
        ) from error
    asked = [r for r, request in enumerate(prepared) if request.removal]
    if not asked:
        return torch.zeros(len(prepared), layout.size, dtype=layout.dtype)
    one = prepared[asked[0]]
    with (
        tqdm(
            unit="param", unit_scale=True, desc="deviations", disable=None if progress is None else not progress
        ) as bar,
        replaying(one.device, chosen.backend, layout.dtype) as through,
    ):
        swept = sweep_requests(
            reader, [prepared[r].removal for r in asked], curvature=one.curvature, options=chosen, advance=bar.update,
            through=through,
        )  # fmt: skip
    if len(asked) == len(prepared):
        return swept
    found = torch.zeros(len(prepared), layout.size, dtype=layout.dtype)
    found[asked] = swept
    return found
