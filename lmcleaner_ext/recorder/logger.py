"""`TrainingLogger`: records a run through the optimizer's own step hooks, whatever the training loop looks like."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..digest import digest_tensors
from ..errors import ConfigurationError, LineageError, LMCleanerError, LogWriteError, NumericalError
from ..layout import ParameterLayout
from ..log.record import SampleId, StepRecord
from ..losses import CausalLMLoss, LossFunction
from ..ops.recording import Copy, encode_parts, encode_parts_difference_
from ..optim.describe import run_state, step_groups
from ..options import takes_options
from ..replay import StepLog
from .background import BackgroundWriter
from .buffers import Buffer, HostCopies
from .diagonal_average import DiagonalAverage
from .options import RecordingOptions
from .pending import DiscardWatch, PendingStep, number, rows
from .resume import resume_writer
from .tracked import TrackedGradient, TrackedSamples
from .writer import LogWriter


@takes_options(RecordingOptions)
class TrainingLogger:
    """Logs every optimizer step of a training run, so that samples can be removed from the weights later.

        with TrainingLogger(log_dir, model, optimizer) as log:
            for ids, batch in loader:
                log.batch(sample_ids=ids)
                model(**batch).loss.backward(); optimizer.step(); optimizer.zero_grad()

    Per step t it keeps u[t] = theta[t+1] - theta[t] and/or the gradient g[t] that the optimizer consumed ([P] each, block-scaled),
    the hyper-parameters that the step used, the ids and their weights; and full-precision anchors of parameters and optimizer state.
    Training itself is not changed by a single bit.

    Args:
        log_dir: folder to create (mode 0700); a resumed run gives its old one.
        model, optimizer: any torch module and any torch.optim optimizer over its parameters. SGD (momentum, Nesterov, dampening,
            decay), Adam, AdamW and others (optim/) can be replayed exactly; others are logged, and served by hessian_mode="replay" alone.
        track_ids: with mode="sample", the ids whose gradients are kept.
        loss_fn: (model, batch) -> per-sample losses [n], for mode="sample"; default: next-token cross-entropy.
        **options

    Raises:
        ConfigurationError, LogNoSpaceError, LogLockedError at creation; NumericalError in a step. LogWriteError, the writer
        thread's failure, in a later step (after the optimizer's own step is complete), in `drain` or in `close`.
    """

    def __init__(
        self,
        log_dir: str | Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        track_ids: Sequence[SampleId] | None = None,
        loss_fn: LossFunction | None = None,
        **options: Any,
    ):
        asked = RecordingOptions(**options)
        if (asked.mode == "sample") != bool(track_ids):
            raise ConfigurationError('mode="sample" and track_ids go together: give both or neither')
        self.log_dir, self.model, self.optimizer = Path(log_dir), model, optimizer
        self.layout = ParameterLayout.of(model, optimizer)
        self.options = chosen = asked.resolved(optimizer, self.layout)
        self._parameters = self.layout.parameters(model)
        self._tracked = TrackedSamples(
            model, self.layout, self._parameters, loss_fn or CausalLMLoss(), track_ids or (), chosen.sample_tokens
        )
        self._average = None
        if chosen.diag_hessian is not None:
            self._average = DiagonalAverage(chosen.diag_hessian, self.layout.flatten(self._parameters))
        if chosen.resume:
            writer, self.step, self._lineage = resume_writer(self.log_dir, self.layout, self._parameters, optimizer)
            try:
                self._tracked.check_resumed(writer.samples)
                self._resume_average(chosen.diag_hessian)
            except BaseException:
                writer.close()
                raise
        else:
            writer = LogWriter.create(
                self.log_dir, self.layout, chosen, optimizer, self._parameters, self._tracked.ring(chosen.sample_capacity),
                {"diag_hessian": self._average and self._average.description},
            )  # fmt: skip
            self.step, self._lineage = 0, 0
        self.vectors, self.dtype = writer.vectors, writer.dtype
        self._writer = BackgroundWriter(writer)
        self._sizes = [entry.end - entry.begin for entry in self.layout.entries]
        # the recorder's own reconstruction of theta, for the error feedback of updates
        self._shadow: Tensor | None = None
        self._pending = PendingStep()
        self._samples: list[TrackedGradient] = []
        self._captured: StepRecord | None = None
        self._buffer: Buffer | None = None  # of the step in hand
        self._copies = HostCopies()
        self._watch: DiscardWatch | None = None
        self._hooks: list[Any] = []
        self._closed = False
        # digest of the weights that the last logged step led to, noted when the hooks are removed
        self._end: str | None = None
        self._reported = False  # a failure of the writer that was raised or warned about already
        self.skipped_steps = 0

    # -- attaching ----------------------------------------------------------------------------------------------------

    def attach(self) -> TrainingLogger:
        """Register the hooks and write the first anchor; `with` does it for you."""
        if self._closed:
            raise ConfigurationError("this logger was closed: open another one with resume=True")
        if not self._hooks:
            self._settle()
            if self._end is not None and self._end != digest_tensors(self._parameters):
                raise LineageError(
                    f"training went on unlogged after step {self.step - 1}: the log cannot continue from these weights. Start a new log"
                )
            self._write_anchor()
            self._writer.drain()  # a disk that cannot take it is better known now
            self._watch = DiscardWatch(self.model, self.optimizer, self._gradient_arrived, self._gradients_discarded)
            self._hooks = [
                self.optimizer.register_step_pre_hook(self._before_step),
                self.optimizer.register_step_post_hook(self._after_step),
                self.optimizer.register_state_dict_pre_hook(lambda _: self._guard(self._writer.drain, True)),
            ]
        return self

    def detach(self) -> None:
        """Remove every hook; training goes on unlogged."""
        if self._hooks:  # a step that failed after the optimizer took it has left other weights than the log's
            self._settle()
            known = self._captured is None and not self._writer.failed
            self._end = digest_tensors(self._parameters) if known else "unknown"
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def _settle(self) -> None:
        """Wait for the training on whichever streams it runs: attaching and detaching read the weights on this thread's own."""
        for device in {p.device for p in self._parameters if p.is_cuda}:
            torch.cuda.synchronize(device)

    def close(self) -> None:
        """Detach, make everything durable, note the weights that the log ends with, release the lock."""
        if self._closed:
            return
        diagonal = self._average is not None and bool(self._hooks) and self._captured is None
        self.detach()
        self._closed = True
        try:
            if diagonal:
                self._write_anchor()  # the average of the steps since the last one
            self._writer.write_head(self.step, self._end or digest_tensors(self._parameters))
        except LogWriteError as error:
            if not self._reported:
                self._report(error)
        finally:
            self._writer.close()

    def __enter__(self) -> TrainingLogger:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what the training loop says -------------------------------------------------------------------------------------

    def batch(
        self,
        sample_ids: Any,
        batch_id: SampleId | None = None,
        weights: Any = None,
        inputs: Any = None,
        loss_normalizer: float | None = None,
    ) -> None:
        """Name the batch of the next optimizer.step(); with gradient accumulation call it once per micro-batch.

        sample_ids: ints or strs (or a tensor of ints), one per draw.  weights: each sample's share of the step's whole loss, default
        1 / number of draws in the step.  inputs: the batch, needed with mode="sample": the gradients of tracked rows are taken now,
        at theta[t].  loss_normalizer: what the loss was divided by, for the record.
        """
        ids = self._pending.add(sample_ids, batch_id, weights, loss_normalizer)
        tracked = [i for i, identity in enumerate(ids) if identity in self._tracked.ids]
        if tracked and self._hooks:
            if inputs is None:
                raise ConfigurationError(
                    'mode="sample" takes the gradients of tracked samples at theta[t]: pass batch(..., inputs=batch)'
                )
            for i in tracked:
                # a repeated draw has one gradient, its weight twice
                if ids[i] not in [s.sample_id for s in self._samples]:
                    with self._named("gradient of a tracked sample"):
                        one = self._tracked.gradient(ids[i], rows(inputs, [i], len(ids)), self.dtype)
                    self._samples.append(one)

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """torch.nn.utils.clip_grad_norm_ over the logged parameters; norm and factor go into the log. Returns the norm."""
        if norm_type != 2.0:
            raise ConfigurationError("the counterfactual clip factor is known for the 2-norm only")
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, max_norm)
        self.record_clip(float(norm), max_norm)
        return norm

    def record_clip(self, norm: float, max_norm: float) -> None:
        """Tell the log that the caller clipped this step's gradient itself: norm before clipping, and the bound."""
        self._pending.clip = (float(number("norm", norm)), float(number("max_norm", max_norm)))

    def open(self) -> StepLog:
        """The log as it stands now, for reading; everything handed over so far is in it."""
        if not self._closed:
            self._writer.drain(sync=True)
        return StepLog.open(self.log_dir)

    def drain(self) -> None:
        """Wait until every step so far is written and survives a power cut; raises LogWriteError.

        Call it before saving a checkpoint, which must not be ahead of the log. `optimizer.state_dict()` does it by itself.
        """
        self._writer.drain(sync=True)

    @property
    def written_step(self) -> int:
        """The newest step that the writer thread has written: it survives a kill. -1: none."""
        return self._writer.written_step

    @property
    def durable_step(self) -> int:
        """The newest step known to survive a power cut; -1: none since the log was opened for writing."""
        return self._writer.durable_step

    def scrub_functions(self) -> list[Callable[[list[int]], int]]:
        """What overwrites steps of this log's rings (`scrub` calls it); no step is being written meanwhile."""
        self._writer.drain()
        return self._writer.scrub_functions()

    def corrected(self) -> None:
        """Note that weights and optimizer were corrected between two steps: the run goes on from here (`unlearn` calls this)."""
        self._write_anchor(corrected=True)
        self._writer.drain()

    @property
    def bytes_written(self) -> int:
        """Bytes of vectors and metadata appended so far, anchors not counted."""
        return self._writer.bytes_written

    # -- hooks ------------------------------------------------------------------------------------------------------------

    def _gradient_arrived(self) -> None:
        self._pending.backward = True

    def _gradients_discarded(self) -> None:
        if self._pending.backward and self._pending.sample_ids:
            self.skipped_steps += 1
            self._forget_pending()

    def _forget_pending(self) -> None:
        self._pending, self._samples, self._captured = PendingStep(), [], None

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        found_inf, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
        if found_inf is not None and bool(found_inf.item()):  # a fused optimizer skips this step inside its kernel
            self.skipped_steps += 1
            self._forget_pending()
            return
        self._guard(self._capture, 1.0 / float(scale) if scale is not None else 1.0)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._captured is not None:
            self._guard(self._commit)

    def _guard(self, action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except (LMCleanerError, OSError) as error:
            self.detach()
            self._reported = self._writer.failed
            self._report(error)

    def _report(self, error: Exception) -> None:
        if self.options.on_error == "raise":
            raise error
        warnings.warn(f"logging stopped at step {self.step}, training goes on: {error}", RuntimeWarning, stacklevel=4)

    def _capture(self, unscale: float) -> None:
        """Before the step: what the optimizer is about to consume."""
        if self._buffer is not None:  # of a step that failed: it is filled anew
            self._buffer.wait()
        pending = self._pending
        norm, bound = pending.clip or (None, None)
        record = StepRecord(
            step=self.step,
            groups=step_groups(self.optimizer),
            batch_id=self.step if pending.batch_id is None else pending.batch_id,
            sample_ids=tuple(pending.sample_ids),
            weights=pending.shares(),
            clip_norm=norm,
            max_norm=bound,
            clip_factor=1.0 if norm is None or bound is None else min(1.0, bound / (norm + 1e-6)),
            loss_normalizer=pending.loss_normalizer if pending.loss_normalizer is not None else len(pending.sample_ids),
            absent=tuple(i for i, p in enumerate(self._parameters) if p.grad is None),
            lineage=self._lineage,
        )
        gradients = [p.grad for p in self._parameters]
        if unscale != 1.0:
            gradients = [None if g is None else g * unscale for g in gradients]
        with self._named("gradient"):
            room = self._room("gradient") if "gradient" in self.vectors else ()
            if self._average is not None:
                draws = max(1, len(record.sample_ids))
                self._average.update(gradients, self._sizes, self.step, draws, record.clip_factor, self.dtype, *room)
            elif room:
                encode_parts(gradients, self._sizes, self.dtype, *room)
        self._captured = record

    def _commit(self) -> None:
        """After the step: the update, and everything to the writer thread."""
        assert self._captured is not None
        if "update" in self.vectors:
            assert self._shadow is not None
            with self._named("update"):
                room, copy = self._room("update")
                encode_parts_difference_(self._parameters, self._sizes, self._shadow, self.dtype, room, copy)
        buffer, self._buffer = self._buffer, None
        assert buffer is not None
        self._writer.append(self._captured, buffer, self._samples, self._lineage)
        self.step += 1
        self._forget_pending()
        if self.step % self.options.anchor_every == 0:
            self._write_anchor()

    def _resume_average(self, kind: str | None) -> None:
        """Go on with the average of the newest anchor; what was recorded from the start is recorded to the end."""
        with StepLog.open(self.log_dir) as log:
            recorded = (log.manifest.get("diag_hessian") or {}).get("kind")
            if recorded != kind:
                raise ConfigurationError(f"this log was written with diag_hessian={recorded!r}, found {kind!r}")
            anchors = [a for a in log.anchors() if a.step <= self.step]
            if self._average is not None and anchors:
                self._average.restore(anchors[-1])

    def _room(self, vector: str) -> tuple[ops.EncodedVector, Copy]:
        """Where the encoded vector of this step goes, and how; waits for the writer thread when it is too far behind."""
        if self._buffer is None:
            self._buffer = self._writer.buffer(pinned=any(p.is_cuda for p in self._parameters))
        return self._buffer.vectors[self.vectors.index(vector)], partial(self._copies.start, self._buffer)

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except NumericalError as error:
            raise NumericalError(
                f"step {self.step}: the {what} is not finite ({error}); this step cannot be logged"
            ) from error

    def _write_anchor(self, corrected: bool = False) -> None:
        tensors = run_state(self.layout, self._parameters, self.optimizer, self.step)
        if self._average is not None:
            tensors |= self._average.tensors()
        # a copy: the writer thread reads the other
        self._shadow = tensors["theta"].clone() if "update" in self.vectors else None
        self._writer.anchor(
            self.step, self._lineage, {name: tensor.cpu() for name, tensor in tensors.items()}, corrected
        )
