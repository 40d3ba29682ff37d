"""Backend "reference": every op in plain torch, the specification that the other backends are tested against.

Works on any device in float32 and float64. The other backends compute in float32 only; float64 comes here, which is
what the oracle-grade tests and logs use.
"""

from __future__ import annotations

from .damped_propagation import damped_propagate_window_
from .diagonal_hessian import diag_hessian_update_
from .encoded_vector import decode, dot, encode, encode_difference_
from .gram import combine_, gram, row_squares
from .optimizer_replay import optimizer_replay_window_

__all__ = [
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
]
