"""Logging must not change training by a single bit."""

from dataclasses import replace

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.losses import ClassificationLoss
from support.cases import OPTIMIZERS, SGD, Adam, AdamW, epochs, flat, mlp, optimizer, train

VARIANTS = OPTIMIZERS | {
    "adamw fused": optimizer(AdamW, lr=3e-3, fused=True),
    "adam fused": optimizer(Adam, lr=3e-3, weight_decay=0.1, fused=True),
    "sgd fused": optimizer(SGD, lr=0.1, momentum=0.9, fused=True),
    "adamw foreach": optimizer(AdamW, lr=3e-3, foreach=True),
    "sgd foreach": optimizer(SGD, lr=0.1, momentum=0.9, foreach=True),
    "adamw one by one": optimizer(AdamW, lr=3e-3, foreach=False),
    "adam maximize": optimizer(Adam, lr=3e-4, maximize=True),
    "rmsprop": optimizer(torch.optim.RMSprop, lr=1e-3),
    "amsgrad": optimizer(Adam, lr=1e-3, amsgrad=True),
}


def run(task, schedule, make, logger=None, **options):
    """(parameters, optimizer state, random state) after training with dropout in training mode."""
    torch.manual_seed(11)
    model = task.build().train()
    built = make(model)
    train(task, schedule, make, model=model, optimizer=built, logger=logger, **options)
    state = [v for p in model.parameters() for v in built.state[p].values() if isinstance(v, torch.Tensor)]
    return [flat(model), *state, torch.get_rng_state()]


# Every optimizer, and every dtype beside a state of one vector and of two: the logger does not know which optimizer it encodes for.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "fp16") for name in VARIANTS]
    + [(name, dtype) for name in ("momentum", "adamw") for dtype in ("bf16", "fp32", "int8", "fp8")],
)
def test_every_optimizer(tmp_path, name, dtype):
    task, make = mlp(torch.float32, dropout=0.3), VARIANTS[name]
    schedule = epochs(48, 8, 12, clip=0.5, micro_batches=2)
    plain = run(task, schedule, make)
    loggers = []

    def logger(model, built):
        loggers.append(
            lmc.TrainingLogger(
                tmp_path / "log", model, built, dtype=dtype, anchor_every=5, durability="process"
            ).attach()
        )
        return loggers[0]

    logged = run(task, schedule, make, logger)
    loggers[0].close()
    assert len(plain) == len(logged)
    for a, b in zip(plain, logged, strict=True):
        assert torch.equal(a, b)
    assert len(lmc.StepLog.open(tmp_path / "log")) == 12


@pytest.mark.parametrize("tokens", [None, 1])
@pytest.mark.parametrize("name", ["momentum", "adamw", "adamw fused"])
def test_with_the_gradients_of_tracked_samples(tmp_path, name, tokens):
    """mode="sample" runs the model once more in the middle of a step: no gradient, mask or buffer may tell."""
    make, schedule = VARIANTS[name], epochs(48, 8, 12, micro_batches=2)
    task = mlp(torch.float32, dropout=0.3)

    layers = task.build

    def build():
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return torch.nn.Sequential(
                *list(layers())[:2], torch.nn.BatchNorm1d(12), torch.nn.Dropout(0.3), torch.nn.Linear(12, 4)
            )

    task = replace(task, build=build)
    plain = run(task, schedule, make)
    loggers = []

    def logger(model, built):
        loggers.append(
            lmc.TrainingLogger(tmp_path / "log", model, built, mode="sample", track_ids=range(16), durability="process",
                               loss_fn=ClassificationLoss(), sample_tokens=tokens).attach()
        )  # fmt: skip
        return loggers[0]

    logged = run(task, schedule, make, logger, inputs=True)
    loggers[0].close()
    for a, b in zip(plain, logged, strict=True):
        assert torch.equal(a, b)
    log = lmc.StepLog.open(tmp_path / "log")
    assert all(log.tracks(t, i) for t in log.steps for i in schedule.batches[t] if i < 16)


def test_after_the_with_block_nothing_is_left_behind(tmp_path):
    task = mlp()
    model = task.build()
    built = torch.optim.AdamW(model.parameters())
    owners = [model, built]
    before = [dict(vars(owner)) for owner in owners]

    def loop():
        with lmc.TrainingLogger(tmp_path / "log", model, built) as log:
            log.batch([1])
            task.losses(model, task.data([1])).mean().backward()
            built.step()
            raise RuntimeError("the loop's own")

    with pytest.raises(RuntimeError, match="the loop's own"):
        loop()
    for owner, attributes in zip(owners, before, strict=True):
        assert set(vars(owner)) == set(attributes)
    assert not built._optimizer_step_pre_hooks
    assert not built._optimizer_step_post_hooks
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())
    assert lmc.StepLog.open(tmp_path / "log").steps == range(1)
