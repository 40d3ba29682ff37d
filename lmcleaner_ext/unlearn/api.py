"""`unlearn`: the one call that removes samples or batches from a model's weights."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .._version import __version__
from ..audit import AuditLog, AuditRecord
from ..audit.chain import new_request, pseudonym
from ..digest import digest_tensors
from ..engine import SweepResult
from ..errors import LMCleanerError
from ..log.record import SampleId
from ..losses import LossFunction
from ..options import takes_options
from ..recorder import TrainingLogger
from ..replay import StepLog
from .correction import exchange, squares
from .options import UnlearnOptions
from .preconditions import check_optimizer, check_weights
from .request import Request, open_log, prepare
from .result import UnlearnResult, correct_optimizer
from .retrain import retrain


@takes_options(UnlearnOptions)
def unlearn(
    model: nn.Module,
    log: StepLog | TrainingLogger | str | Path,
    ids: Iterable[SampleId],
    *,
    data: Any = None,
    loss_fn: LossFunction | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    audit_log: str | Path | None = None,
    diagonal: Tensor | None = None,
    **options: Any,
) -> UnlearnResult:
    """Remove samples (or batches) from the weights: theta_hat = theta[tau] - delta[tau], in place (docs/method.md, sections 3 and 4).

    Args:
        model: holds theta[tau], the weights after the last logged step.
        log: a StepLog, a folder, or the TrainingLogger of a run in progress (give its optimizer too).
        ids: sample ids, or batch ids with level="batch". Empty: nothing happens.
        data: callable ids -> batch, or (dataset, collator); needed by ggn, exact, replay and for samples that were not tracked.
        loss_fn: (model, batch) -> per-sample losses [n]; default: mean next-token cross-entropy per row.
        optimizer: the live optimizer, whose state is corrected as well.
        diagonal: h [P] for "diag"; None: the recorded one.
        audit_log: JSONL file that receives `request` before and `result` after (audit/chain.py).
        **options

    Raises:
        UnknownSampleError, ExpiredStepError, MissingDataError, WrongModelError, ConfigurationError, NumericalError, LogCorruptError ...;
        the model, the optimizer and the log are then exactly as they were.
    """
    started = time.perf_counter()
    chain = AuditLog(audit_log) if audit_log is not None else None
    name = new_request()
    online = isinstance(log, TrainingLogger)
    try:
        chosen = UnlearnOptions(**options)
        if online and optimizer is None and not chosen.dry_run:
            optimizer = log.optimizer  # type: ignore[union-attr]
        reader = open_log(log)
        request = prepare(
            model, reader, ids, chosen, data=data, loss_fn=loss_fn, diagonal=diagonal, keep_state=optimizer is not None
        )
        if optimizer is not None:
            check_optimizer(reader, model, optimizer)
        before, matches = check_weights(reader, model, chain, chosen.allow_changed_weights or online)
    except LMCleanerError as error:
        if chain is not None:
            chain.append("refused", name, {"reason": f"{type(error).__name__}: {error}"})
        raise
    if chosen.dry_run:
        chain = None  # nothing happens that it would have to tell
    if chain is not None:
        chain.append(
            "request", name, {**_pseudonyms(reader, request), "digest_before": before, "tau": reader.steps.stop}
        )
    try:
        result = _serve(model, request, chosen, optimizer, before, matches, started)
    except BaseException as error:
        if chain is not None:
            chain.append("failed", name, {"reason": f"{type(error).__name__}: {error}"})
        raise
    if online and request.removal and not chosen.dry_run:
        log.corrected()  # type: ignore[union-attr]
    if chain is not None:
        chain.append(
            "result",
            name,
            {"run": result.audit.run, "digest_after": result.audit.digest_after, "record": result.audit.to_json()},
        )
    return result


def _serve(
    model: nn.Module,
    request: Request,
    options: UnlearnOptions,
    optimizer: torch.optim.Optimizer | None,
    before: str,
    matches: bool | None,
    started: float,
) -> UnlearnResult:
    layout = request.log.layout
    swept = _sweep_with_progress(model, request, options.progress)
    kept = swept.delta.clone() if options.keep_deviation else None
    previous, previous_state = None, []
    if request.removal and not options.dry_run:
        norm_before, norm_after = exchange(model, swept.delta, layout)
        previous = swept.delta
        if optimizer is not None:
            assert request.log.rule is not None
            previous_state = correct_optimizer(
                optimizer, model, layout, request.log.rule, swept.state_deviation, swept.skipped
            )
    else:
        norm_before = norm_after = math.sqrt(sum(squares(p.detach().reshape(-1)) for p in layout.parameters(model)))
    changed = previous is not None
    record = AuditRecord(
        ids=len(request.ids),
        level=options.level,
        tz=tuple(request.removal),
        tau=request.log.steps.stop,
        K=options.K,
        K_used=swept.end - max(request.removal) - 1 if request.removal else 0,
        mode=request.mode,
        reason=request.reason,
        counterfactual=request.convention,
        damping=request.damping,
        gamma=swept.gamma,
        norm_before=norm_before,
        norm_after=norm_after,
        norm_deviation=swept.delta_norm,
        products=swept.products,
        gradients_computed=swept.gradients_computed,
        bytes_read=swept.bytes_read,
        seconds=time.perf_counter() - started,
        optimizer_corrected=bool(previous_state),
        backend=options.backend or "auto",
        run=request.log.manifest["run"],
        digest_before=before,
        digest_after=digest_tensors(layout.parameters(model), like=before) if changed else before,
        weights_match=matches,
        version=__version__,
        dry_run=options.dry_run,
    )
    return UnlearnResult(
        record, request.relearn_ids, kept, layout, previous, optimizer if previous_state else None, previous_state
    )


def _sweep_with_progress(model: nn.Module, request: Request, progress: bool | None) -> SweepResult:
    layout = request.log.layout
    if not request.removal:
        return SweepResult(torch.zeros(layout.size, dtype=layout.dtype))
    if request.log.rule is None:  # no rule to linearise around: retrain from the log's schedule
        assert request.losses is not None
        ideal = retrain(request.log, request.removal, request.losses, progress=progress)
        live = layout.flatten(layout.parameters(model)).cpu()
        return SweepResult(live - ideal, end=request.log.steps.stop, delta_norm=float((live - ideal).double().norm()))
    with tqdm(
        total=None, unit="param", unit_scale=True, desc="forget", disable=None if progress is None else not progress
    ) as bar:
        return request.sweep(bar.update)


def _pseudonyms(log: StepLog, request: Request) -> dict[str, Any]:
    """The request without its raw ids."""
    return {
        "level": request.options.level,
        "mode": request.mode,
        "counterfactual": request.convention,
        "ids": [pseudonym(log.manifest["run"], i) for i in request.ids],
    }


class _Unlearner:
    """A configured unlearner: keyword arguments as in `unlearn`."""

    level: str

    @takes_options(unlearn, without=("level",))
    def __init__(self, log: StepLog | TrainingLogger | str | Path, **options: Any):
        self.log, self.options = log, options

    @takes_options(unlearn, without=("level",))
    def __call__(self, model: nn.Module, ids: Iterable[SampleId], **options: Any) -> UnlearnResult:
        """Remove `ids` from the model's weights; options given here override those of the constructor."""
        return unlearn(model, self.log, ids, **{**self.options, **options, "level": self.level})

    unlearn = __call__


class LMCleanerSampleLevel(_Unlearner):
    """Removes single samples: delta[tz + 1] = -(lr/B) sum of their gradients under SGD, by optimizer replay under any other."""

    level = "sample"


class LMCleanerBatchLevel(_Unlearner):
    """Removes whole steps: delta[tz + 1] = u[tz] under SGD, by optimizer replay under any other."""

    level = "batch"
