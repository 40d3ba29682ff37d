"""Backend "triton": every op as one Triton kernel, in float32, on torch's current stream.

With TRITON_INTERPRET=1 in the environment (before Triton is imported) the kernels run on the CPU, interpreted: slow, for
tests. Otherwise they need CUDA tensors.
"""

from __future__ import annotations

import torch

from .damped_propagation import damped_propagate_window_
from .diagonal_hessian import diag_hessian_update_
from .encoded_vector import decode, dot, encode, encode_difference_
from .gram import combine_, gram, row_squares
from .launch import INTERPRETED
from .optimizer_replay import optimizer_replay_window_

__all__ = [
    "DEVICES",
    "combine_",
    "damped_propagate_window_",
    "decode",
    "diag_hessian_update_",
    "dot",
    "encode",
    "encode_difference_",
    "gram",
    "optimizer_replay_window_",
    "row_squares",
    "unavailable_reason",
]

DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)


def unavailable_reason() -> str | None:
    if INTERPRETED or torch.cuda.is_available():
        return None
    return "no CUDA device (or no working driver) on this machine; TRITON_INTERPRET=1 runs it on the CPU, slowly"
