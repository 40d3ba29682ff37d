"""Kernels on flat vectors, each with several backends.

    encode, encode_difference_, decode, dot    vectors of the log in low precision (encoded_vector.py)
    quantize, dequantize                       the names of encode and decode outside of this package
    optimizer_replay_window_                   the optimizer run twice over a window of the log (optimizer_replay.py)
    damped_propagate_, ..._window_             a deviation through plain SGD with a diagonal curvature (damped_propagation.py)
    diag_hessian_update_                       the curvature's diagonal (diagonal_hessian.py)
    gram, combine, scale_sample_grads          many vectors at once (gram.py)

Every function takes ``backend="reference" | "cpu" | "cuda" | "triton"``; dispatch.py has the rule for the default. The
same ops are registered with torch.library as ``torch.ops.lmcleaner.*``.
"""

from __future__ import annotations

from .damped_propagation import PropagationWindow, damped_propagate_, damped_propagate_window_
from .diagonal_hessian import diag_hessian_update_
from .dispatch import available_backends, use_backend
from .encoded_vector import decode, dequantize, dot, encode, encode_difference_, quantize
from .encoding import BLOCK, PAYLOAD_DTYPES, EncodedVector, Vector, block_count, payload_dtype, scale_count
from .gram import combine, gram, scale_sample_grads
from .optimizer_replay import ReplayWindow, optimizer_replay_window_

__all__ = [
    "BLOCK",
    "PAYLOAD_DTYPES",
    "EncodedVector",
    "PropagationWindow",
    "ReplayWindow",
    "Vector",
    "available_backends",
    "block_count",
    "combine",
    "damped_propagate_",
    "damped_propagate_window_",
    "decode",
    "dequantize",
    "diag_hessian_update_",
    "dot",
    "encode",
    "encode_difference_",
    "gram",
    "optimizer_replay_window_",
    "payload_dtype",
    "quantize",
    "scale_count",
    "scale_sample_grads",
    "use_backend",
]
