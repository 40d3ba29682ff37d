"""Panels that stream through a device give the numbers of the kernel run on everything at once, bit for bit.

Without a GPU the device is the CPU: the same buffers and turns, without streams.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmcleaner_ext import ops
from lmcleaner_ext.errors import BackendUnavailableError
from lmcleaner_ext.replay import device_panels
from lmcleaner_ext.replay.device_panels import DevicePanels
from support import replay_cases

N, PANEL = 5_000, 768
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
    ),
]


def submit_panels(stream: DevicePanels, inputs: replay_cases.Inputs, vectors: replay_cases.Vectors) -> None:
    window = ops.ReplayWindow(
        vectors.delta, vectors.theta, vectors.state, vectors.counterfactual, inputs.coefficients, inputs.segments,
        inputs.gradients, inputs.injections, inputs.injection_table, inputs.diagonal, inputs.case.rule, inputs.case.lead,
    )  # fmt: skip
    for begin in range(0, N, PANEL):
        stream.submit(window.narrow(begin, min(begin + PANEL, N)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "changes", [{}, {"curvature": 0.02, "theta": False, "decay": 0.0}, {"missing": (1, 2), "dtype": "bf16"}]
)
@pytest.mark.parametrize("rule", replay_cases.RULES)
def test_panels_through_a_device(rule: str, changes: dict, device: str):
    segments = ((0, 700, 0), (700, 2_000, 1), (2_100, N, 0))
    inputs = replay_cases.build(replace(replay_cases.RULES[rule], n=N, segments=segments, **changes))
    whole, expected = inputs.start.to(torch.float32, device), None
    expected = inputs.run(whole)
    vectors = inputs.start.to(torch.float32)
    with DevicePanels(torch.device(device)) as stream:
        submit_panels(stream, inputs, vectors)
        squares = stream.finish()
    for name, x in whole.named().items():
        assert torch.equal(vectors.named()[name], x.cpu()), name
    assert squares == pytest.approx(float(expected), rel=1e-12)


def test_an_empty_state_is_not_written():
    inputs = replay_cases.build(replace(replay_cases.RULES["adamw"], n=N))
    vectors = inputs.start.to(torch.float32)
    vectors.state, vectors.counterfactual = ([torch.empty(0)] * 2 for _ in range(2))
    whole = inputs.start.to(torch.float32)
    whole.state, whole.counterfactual = ([torch.empty(0)] * 2 for _ in range(2))
    inputs.run(whole)
    with DevicePanels(torch.device("cpu")) as stream:
        submit_panels(stream, inputs, vectors)
        stream.finish()
    assert torch.equal(vectors.delta, whole.delta)


def test_where_a_window_is_replayed():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    for backend in (None, "cpu", "reference"):
        assert device_panels.replay_device(cpu, backend, torch.float32) is None
    assert device_panels.replay_device(gpu, "cpu", torch.float32) is None
    assert device_panels.replay_device(gpu, None, torch.float64) is None  # the reference computes it, where the log is
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailableError):
            device_panels.replay_device(gpu, "cuda", torch.float32)


def test_a_panel_is_whole_checksum_chunks():
    chunk = 1 << 19
    assert device_panels.panel_elements(1e9, chunk) == chunk
    elements = device_panels.panel_elements(40.0, chunk)
    assert elements % chunk == 0
    assert elements * 40 <= device_panels.PANEL_BYTES < (elements + chunk) * 40
