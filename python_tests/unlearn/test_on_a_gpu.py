"""Deletion with its windows replayed on a device. Without a GPU the device is the CPU: the same way through the panels."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import lmcleaner_ext as lmc
from lmcleaner_ext.replay import device_panels
from support.cases import OPTIMIZERS, epochs, flat, mlp

FORGET = [3, 17]
WIDE = 40_000  # 600,004 parameters: two checksum chunks of fp16


@pytest.mark.parametrize("options", [{}, {"hessian_mode": "replay", "K": 3}, {"counterfactual": "skip"}])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_panels_change_nothing(optimizer: str, options: dict, recorded, monkeypatch):
    """All the windows of a request, recomputed gradients between them, against the host's own way, bit for bit."""
    task = mlp(torch.float32, hidden=WIDE)
    run = recorded(task, epochs(48, 8, 8), OPTIMIZERS[optimizer], dtype="fp16", capacity=10)
    arguments = {"data": task.data, "loss_fn": task.loss_fn, **options}
    expected = lmc.compute_correction(run.model, run.path, FORGET, **arguments)

    submitted = []
    original = device_panels.DevicePanels.submit
    monkeypatch.setattr(device_panels, "PANEL_BYTES", 1)
    monkeypatch.setattr(
        device_panels.DevicePanels, "submit", lambda self, *a, **k: (submitted.append(1), original(self, *a, **k))
    )
    monkeypatch.setattr(device_panels, "replay_device", lambda *ignored: torch.device("cpu"))
    found = lmc.compute_correction(run.model, run.path, FORGET, **arguments)
    assert len(submitted) >= 2
    assert torch.equal(found, expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("vectors", ["gradient", "both"])
def test_a_run_on_a_gpu(vectors: str, tmp_path: Path, monkeypatch):
    """Recorded, resumed and served on a GPU, against the host's kernels serving the same log."""
    monkeypatch.setattr(device_panels, "PANEL_BYTES", 1)
    task, schedule = mlp(torch.float32, hidden=WIDE), epochs(48, 8, 12)
    model = task.build().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    options = {"capacity": 20, "anchor_every": 5, "durability": "process", "vectors": vectors, "loss_fn": task.loss_fn}
    _train(
        model, optimizer, task, schedule.batches[:8], lmc.TrainingLogger(tmp_path / "log", model, optimizer, **options)
    )
    resumed = lmc.TrainingLogger(tmp_path / "log", model, optimizer, resume=True, **options)
    assert resumed.step == 8
    _train(model, optimizer, task, schedule.batches[8:], resumed)

    arguments = {"data": task.data, "loss_fn": task.loss_fn}
    host = copy.deepcopy(model).cpu()
    expected = lmc.compute_correction(host, tmp_path / "log", FORGET, backend="cpu", **arguments)
    for backend in (None, "cuda", "triton"):
        found = lmc.compute_correction(model, tmp_path / "log", FORGET, backend=backend, **arguments)
        assert float((found - expected).norm() / expected.norm()) < 1e-2, backend  # other sums in the forward pass
    before = [p.detach().clone() for p in model.parameters()]
    result = lmc.unlearn(model, tmp_path / "log", FORGET, **arguments)
    assert all(p.is_cuda for p in model.parameters())
    result.undo(model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", ["none", "exact", "replay"])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_a_run_on_a_gpu_against_the_run_on_the_cpu(optimizer: str, mode: str, tmp_path: Path):
    """Recorded and served where the model is, from the first step to the corrected weights."""
    served = {device: _served(device, optimizer, mode, tmp_path / device) for device in ("cpu", "cuda")}
    (before, after), (there, corrected) = served["cpu"], served["cuda"]
    moved = float((after - before).norm())
    assert float((there - before).norm()) < TOLERANCE * float(before.norm())
    assert float(((corrected - there) - (after - before)).norm()) < TOLERANCE * moved


TOLERANCE = 1e-4
"""For other float32 sums through 12 steps; on a CPU float32 differs from float64 by at most 2e-6 here."""


def _served(device: str, optimizer: str, mode: str, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(the trained weights, the weights after the request)."""
    task, schedule = mlp(torch.float32, hidden=200), epochs(48, 8, 12)
    model = task.build().to(device)
    built = OPTIMIZERS[optimizer](model)
    options = {"capacity": 20, "anchor_every": 5, "durability": "process", "dtype": "fp32", "loss_fn": task.loss_fn}
    _train(model, built, task, schedule.batches, lmc.TrainingLogger(folder, model, built, **options))
    trained = flat(model).cpu()
    lmc.unlearn(model, folder, FORGET, hessian_mode=mode, data=task.data, loss_fn=task.loss_fn)
    assert {p.device.type for p in model.parameters()} == {device}
    return trained, flat(model).cpu()


def _train(model: nn.Module, optimizer, task, batches, logger: lmc.TrainingLogger) -> None:
    device = next(model.parameters()).device
    with logger as log:
        for ids in batches:
            log.batch(sample_ids=list(ids))
            batch = {key: x.to(device) for key, x in task.data(list(ids)).items()}
            task.losses(model, batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
