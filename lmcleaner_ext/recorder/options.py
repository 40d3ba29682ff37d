"""The choices that TrainingLogger's options have."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..errors import ConfigurationError
from .diagonal import KINDS

VECTORS = {"update": ("update",), "gradient": ("gradient",), "both": ("update", "gradient")}


def check_options(
    mode: str,
    vectors: str,
    dtype: str,
    durability: str,
    on_error: str,
    capacity: int,
    anchor_every: int,
    diag: Any,
    compression: Any,
    sample_tokens: int | None,
) -> None:
    allowed = {
        "mode": (mode, ("batch", "sample")),
        "vectors": (vectors, ("auto", *VECTORS)),
        "dtype": (dtype, tuple(ops.PAYLOAD_DTYPES)),
        "durability": (durability, ("step", "group", "process")),
        "on_error": (on_error, ("raise", "detach")),
        "diag_hessian": (diag, (None, *KINDS)),
        "compression": (compression, (None, "zstd")),
    }
    for name, (value, choices) in allowed.items():
        if value not in choices:
            raise ConfigurationError(f"{name} is one of {choices}, found {value!r}")
    if sample_tokens is not None and (mode != "sample" or sample_tokens < 1):
        raise ConfigurationError(
            f'sample_tokens is at least 1 and goes with mode="sample", found {sample_tokens} and {mode!r}'
        )
    if capacity < 1 or anchor_every < 1:
        raise ConfigurationError(f"capacity and anchor_every are at least 1, found {capacity} and {anchor_every}")
