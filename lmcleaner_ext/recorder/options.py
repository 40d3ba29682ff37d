"""The options of `TrainingLogger`, and what "auto" means for an optimizer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..errors import ConfigurationError
from ..layout import ParameterLayout
from ..log.compression import require_zstandard
from ..ops import PAYLOAD_DTYPES
from ..optim.describe import rule_of, step_groups
from ..options import Options, option
from .diagonal_average import KINDS

VECTORS = {"update": ("update",), "gradient": ("gradient",), "both": ("update", "gradient")}

# From here on gradients alone rebuild within 1e-3; the error is 3.5e-3 at 1e-6 (python_tests/replay/test_rebuild.py).
SMALL_RATE = 1e-4


@dataclass(frozen=True, kw_only=True)
class RecordingOptions(Options):
    """What is kept of a run, in which precision, and how safely."""

    capacity: int = option(
        1000,
        "slots of the ring; older steps are overwritten. What can be served reaches back to the oldest anchor in it, so at least "
        "capacity - anchor_every steps",
        at_least=1,
        unit="steps",
    )
    mode: str = option(
        "batch",
        '"sample" keeps the gradient of each of `track_ids` at every use too (pass `inputs` to `batch`)',
        choices=("batch", "sample"),
    )
    vectors: str = option(
        "auto",
        "what is kept of a step; auto: update for plain SGD and unknown optimizers, else gradient (of momentum SGD with a learning rate "
        f"under {SMALL_RATE:g}: both)",
        choices=("auto", *VECTORS),
    )
    dtype: str = option(
        "fp16",
        "of the logged vectors; int8, fp8 (e4m3) and fp16 with one power-of-two scale per 256 elements; of a float64 model fp32 is fp64",
        choices=PAYLOAD_DTYPES,
    )
    anchor_every: int = option(200, "steps between anchors; never more than `capacity`", at_least=1, unit="steps")
    durability: str = option(
        "group",
        "what a power cut takes: nothing (step), at most 16 steps (group), no promise, but a kill takes nothing (process)",
        choices=("step", "group", "process"),
    )
    sample_capacity: int | None = option(
        None,
        "slots for gradients of tracked ids, one per (step, id); default 4 per tracked id",
        at_least=1,
        unit="slots",
    )
    sample_tokens: int | None = option(
        None,
        "keep the gradients of tracked ids, of torch.nn.Linear and Embedding, as factors (per token its input and the gradient of its "
        "output) wherever those take less than the matrix, in slots with room for samples of so many tokens; a longer sample takes "
        "several slots. None: dense gradients",
        at_least=1,
        unit="tokens",
    )
    metadata_bytes: int = option(
        65536,
        "room for one step's ids, weights and hyper-parameters; 16 bytes per draw plus about 1 KiB",
        at_least=1,
        unit="bytes",
    )
    diag_hessian: str | None = option(
        None,
        "keep a running average of this estimate of the curvature's diagonal, g^2 or B g^2 (B the draws of a step), for "
        'hessian_mode="diag". 2 bytes per parameter of memory, 4 more in each anchor',
        choices=KINDS,
    )
    compression: str | None = option(
        None, "of the anchors, without loss, in less space (needs the package zstandard)", choices=("zstd",)
    )
    resume: bool = option(False, "continue the log after the last step that matches the model's weights")
    on_error: str = option(
        "raise", '"detach" warns, stops logging and lets training go on', choices=("raise", "detach")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample_tokens is not None and self.mode != "sample":
            raise ConfigurationError(
                f'sample_tokens goes with mode="sample", found {self.sample_tokens} and {self.mode!r}'
            )
        if self.compression is not None:
            require_zstandard()

    def resolved(self, optimizer: torch.optim.Optimizer, layout: ParameterLayout) -> RecordingOptions:
        """These options for this run: vectors is not "auto", dtype as it is stored. Raises ConfigurationError."""
        dtype, vectors, double = self.dtype, self.vectors, layout.dtype == torch.float64
        if double and dtype == "fp32":
            dtype = "fp64"  # "fp32" asks for the vectors as they are
        if vectors == "auto":
            vectors = suitable_vectors(optimizer, rounded=dtype not in ("fp32", "fp64") and not double)
        rule = rule_of(optimizer)
        if vectors == "update" and rule is not None and not rule.plain(step_groups(optimizer)):
            raise ConfigurationError(
                'an optimizer with state is replayed from its gradients: use vectors="gradient" or "both" (or "auto")'
            )
        return replace(self, dtype=dtype, vectors=vectors, anchor_every=min(self.anchor_every, self.capacity))


def suitable_vectors(optimizer: torch.optim.Optimizer, rounded: bool) -> str:
    """What vectors="auto" means: "update" for plain SGD and what cannot be replayed, else "gradient".

    Where the gradients are rounded and momentum's steps may be as small as the last place of a float32 weight, "both": rebuilt from
    such gradients the weights would be off by more than 1e-3 of the distance moved. A scheduler may still raise the learning rate.
    """
    rule = rule_of(optimizer)
    if rule is None or rule.plain(step_groups(optimizer)):
        return "update"
    rates = [max(float(group["lr"]), float(group.get("initial_lr", 0))) for group in optimizer.param_groups]
    return "both" if rounded and not rule.normalises and min(rates) < SMALL_RATE else "gradient"
