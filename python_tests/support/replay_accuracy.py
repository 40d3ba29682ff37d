"""How far a replay in float32 may be from the float64 reference.

An element may be off by twice the worst error of the float32 torch reference, or by a few units in the last place of the
distance that the element travelled, whichever allows more.
"""

from __future__ import annotations

import torch

from support.replay_cases import Inputs

ULP = torch.finfo(torch.float32).eps
FEW_ULP = 8 * ULP
NEGLIGIBLE = 1e-36  # around float32's smallest normal number, where it has no relative precision left


def oracle_with_travel(inputs: Inputs) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The float64 outcome, and how far each element moved on the way: sum over steps of |change|, plus |start|.

    The deviation is rounded at the scale of the optimizer's steps, of which it is a difference: its travel includes theirs.
    """
    case = inputs.case
    vectors = inputs.start.to(torch.float64)
    if vectors.theta is None:
        vectors.theta = torch.zeros(case.n, dtype=torch.float64)
    travel = {name: x.abs() for name, x in vectors.named().items()}
    for t in range(case.steps):
        before = {name: x.clone() for name, x in vectors.named().items()}
        inputs.run(vectors, "reference", range(t, t + 1), lead=int(t < case.lead))
        for name, x in vectors.named().items():
            travel[name] += (x - before[name]).abs()
        travel["delta"] += (vectors.theta - before["theta"]).abs()
    return vectors.named(), travel


def worst(found: torch.Tensor, oracle: torch.Tensor, travel: torch.Tensor) -> float:
    error = (found.double() - oracle).abs()
    assert not error.isnan().any()
    return float((error / (travel + NEGLIGIBLE)).max()) if error.numel() else 0.0
