"""Backend "triton": every op as one Triton kernel, in float32, on torch's current stream.

With TRITON_INTERPRET=1 in the environment (before Triton is imported) the kernels run on the CPU, interpreted: slow, for
tests. Otherwise they need CUDA tensors.
"""

from __future__ import annotations

import torch

from .damped_propagation import damped_propagate_window_, prefix_accumulate_, prefix_propagate_
from .encoded_vector import decode, dot, encode, encode_difference_
from .launch import INTERPRETED
from .optimizer_replay import optimizer_replay_window_

__all__ = [
    "DEVICES",
    "damped_propagate_window_",
    "decode",
    "dot",
    "encode",
    "encode_difference_",
    "optimizer_replay_window_",
    "prefix_accumulate_",
    "prefix_propagate_",
    "unavailable_reason",
]

DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)


def unavailable_reason() -> str | None:
    if INTERPRETED or torch.cuda.is_available():
        return None
    return "no CUDA device (or no working driver) on this machine; TRITON_INTERPRET=1 runs it on the CPU, slowly"
