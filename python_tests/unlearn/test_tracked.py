"""mode="sample": the gradients in the log against those recomputed from the data, without which nothing else is needed."""

from itertools import product

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import MissingDataError
from support.cases import OPTIMIZERS, Schedule, epochs, mlp
from support.tolerances import FP16_PENALTY

TASK = mlp(hidden=6)
SAMPLE = {"mode": "sample", "track_ids": range(20), "sample_capacity": 200}


# Every optimizer, and every weight that a sample's gradient can have for a state of one vector and of two.
@pytest.mark.parametrize(
    ("name", "clip", "convention"),
    [(name, None, "placeholder") for name in OPTIMIZERS if name not in ("momentum", "adamw")]
    + list(product(["momentum", "adamw"], [None, 0.1], ["placeholder", "renormalize", "skip"])),
)
def test_tracked_equals_recomputed(recorded, name, convention, clip):
    schedule = epochs(48, 8, 14, clip=clip, micro_batches=2)
    tracked = recorded(TASK, schedule, OPTIMIZERS[name], **SAMPLE)
    plain = recorded(TASK, schedule, OPTIMIZERS[name])
    assert torch.equal(tracked.theta, plain.theta)
    ids = [3, 17, 8]
    for mode, options in (
        ("none", {}),
        ("diag", {"diagonal": torch.full((tracked.log().layout.size,), 0.1, dtype=torch.float64)}),
    ):
        from_data = lmc.compute_correction(plain.model, plain.path, ids, hessian_mode=mode, counterfactual=convention,
                                           **plain.options, **options)  # fmt: skip
        from_log = lmc.compute_correction(
            None, tracked.path, ids, hessian_mode=mode, counterfactual=convention, **options
        )
        torch.testing.assert_close(from_log, from_data, rtol=1e-8, atol=1e-8 * float(from_data.abs().max()))


def test_neither_model_nor_data_are_needed(recorded):
    run = recorded(TASK, epochs(48, 8, 14), OPTIMIZERS["adamw"], **SAMPLE)
    result = lmc.unlearn(run.model, run.path, [3, 17], hessian_mode="none")
    assert result.audit.gradients_computed == 0
    with pytest.raises(MissingDataError, match="40"):
        lmc.unlearn(run.model, run.path, [40], hessian_mode="none", allow_changed_weights=True)


def test_a_mixture_of_tracked_and_untracked(recorded):
    run = recorded(TASK, epochs(48, 8, 14), OPTIMIZERS["momentum"], **SAMPLE)
    plain = recorded(TASK, epochs(48, 8, 14), OPTIMIZERS["momentum"])
    ids = [3, 40, 17, 41]
    mixed, from_data = (
        lmc.compute_correction(r.model, r.path, ids, hessian_mode="none", **r.options) for r in (run, plain)
    )
    torch.testing.assert_close(mixed, from_data, rtol=1e-9, atol=1e-13)
    result = lmc.unlearn(run.model, run.path, ids, hessian_mode="none", dry_run=True, **run.options)
    assert result.audit.gradients_computed == len(run.schedule.uses([40])) + len(run.schedule.uses([41]))


def test_drawn_twice(recorded):
    schedule = Schedule(((1, 2, 2, 3), (2, 4, 5, 6), (2, 2, 2, 1)))
    run = recorded(TASK, schedule, OPTIMIZERS["adamw"], **SAMPLE)
    plain = recorded(TASK, schedule, OPTIMIZERS["adamw"])
    torch.testing.assert_close(
        lmc.compute_correction(None, run.path, [2], hessian_mode="none"),
        lmc.compute_correction(plain.model, plain.path, [2], hessian_mode="none", **plain.options),
        rtol=1e-9, atol=1e-13,
    )  # fmt: skip


def test_through_fp16(recorded):
    task = mlp(torch.float32)
    schedule = epochs(48, 8, 20)
    run = recorded(task, schedule, OPTIMIZERS["adamw"], dtype="fp16", **SAMPLE)
    plain = recorded(task, schedule, OPTIMIZERS["adamw"])
    from_log = lmc.compute_correction(None, run.path, [3, 17], hessian_mode="none")
    from_data = lmc.compute_correction(plain.model, plain.path, [3, 17], hessian_mode="none", **plain.options)
    assert float((from_log - from_data).norm() / from_data.norm()) < FP16_PENALTY


def test_a_small_ring_of_samples_forgets_the_oldest(recorded):
    """sample_capacity gradients are kept; an older use is a named error without data, and is recomputed with them."""
    run = recorded(TASK, epochs(48, 8, 18), OPTIMIZERS["adamw"], mode="sample", track_ids=range(48), sample_capacity=20)
    log = run.log()
    kept = [(t, i) for t in log.steps for i in run.schedule.batches[t] if log.tracks(t, i)]
    assert 20 <= len(kept) < 60
    first = run.schedule.batches[0][0]
    with pytest.raises(MissingDataError):
        lmc.compute_correction(None, run.path, [first], hessian_mode="none")
    plain = recorded(TASK, epochs(48, 8, 18), OPTIMIZERS["adamw"])
    torch.testing.assert_close(
        lmc.compute_correction(run.model, run.path, [first], hessian_mode="none", **run.options),
        lmc.compute_correction(plain.model, plain.path, [first], hessian_mode="none", **plain.options),
        rtol=1e-9, atol=1e-13,
    )  # fmt: skip
