"""Which backend runs, what is refused, and that the ops are well-formed for torch.library."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lmcleaner_ext import _native, ops
from lmcleaner_ext.errors import BackendUnavailableError, ConfigurationError
from support import backends, replay_cases


def window_of(case: replay_cases.Case) -> ops.ReplayWindow:
    inputs = replay_cases.build(case)
    start = inputs.start
    return ops.ReplayWindow(
        start.delta, start.theta, start.state, start.counterfactual, inputs.coefficients, inputs.segments,
        inputs.gradients, inputs.injections, inputs.injection_table, inputs.diagonal, case.rule, case.lead,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["momentum-no-theta", "update-skip", "adam-diagonal", "adamw-missing", "adamw-0"])
def test_opcheck_of_the_replay(name: str):
    case = (replay_cases.variants() | replay_cases.sizes())[name]
    torch.library.opcheck(torch.ops.lmcleaner.optimizer_replay_window_, window_of(case).flat())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 300])
def test_opcheck_of_the_encodings(n: int, dtype: torch.dtype):
    x = torch.randn(n, dtype=dtype)
    payload, scales = ops.encode(x, "fp16")
    torch.library.opcheck(torch.ops.lmcleaner.encode, (x, "fp16"))
    torch.library.opcheck(torch.ops.lmcleaner.encode_difference_, (x, torch.zeros_like(x), "bf16"))
    torch.library.opcheck(torch.ops.lmcleaner.decode, (payload, scales, torch.empty_like(x)))
    torch.library.opcheck(torch.ops.lmcleaner.dot, (payload, scales, payload, scales))


def test_available_backends():
    found = ops.available_backends()
    assert list(found) == ["reference", "cpu", "cuda", "triton"]
    assert found["reference"] is None
    assert found["cpu"] is None
    if not torch.cuda.is_available():
        assert found["cuda"]


def test_triton_without_a_gpu_says_how_to_interpret():
    """In a process of its own: Triton reads the variable when it is imported."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    pytest.importorskip("triton")
    code = "from lmcleaner_ext import ops; print(ops.available_backends()['triton'])"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "no CUDA device" in done.stdout
    assert "TRITON_INTERPRET=1" in done.stdout


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_an_unavailable_backend_is_an_error_with_its_reason(name: str, monkeypatch):
    reason = ops.available_backends()[name]
    if reason is None:
        pytest.skip(f"{name} is available here")
    for attempt in (lambda: ops.encode(torch.randn(3), "fp16", backend=name), lambda: ops.use_backend(name)):
        with pytest.raises(BackendUnavailableError) as caught:
            attempt()
        assert caught.value.name == name
        assert caught.value.reason == reason
    monkeypatch.setenv("LMCLEANER_BACKEND", name)
    with pytest.raises(BackendUnavailableError):
        ops.encode(torch.randn(3), "fp16")


def test_unknown_names():
    with pytest.raises(ConfigurationError, match="unknown backend 'gpu'"):
        ops.use_backend("gpu")
    with pytest.raises(ConfigurationError, match="unknown vector dtype 'int3'"):
        ops.encode(torch.randn(3), "int3")


def test_cpu_does_not_quietly_compute_float64_elsewhere():
    with pytest.raises(BackendUnavailableError, match="float64"):
        ops.encode(torch.randn(3, dtype=torch.float64), "fp16", backend="cpu")
    with ops.use_backend("cpu"), pytest.raises(BackendUnavailableError):
        ops.decode(torch.randn(3), torch.empty(0, dtype=torch.uint8), out_dtype=torch.float64)


def test_use_backend_returns_to_what_was_before(monkeypatch):
    case = replace(replay_cases.RULES["adamw"], n=600)
    inputs = replay_cases.build(case)
    reference, native = (inputs.outcome(torch.float32, name)[0].delta for name in ("reference", "cpu"))
    assert not torch.equal(reference, native)
    with ops.use_backend("reference"):
        with ops.use_backend("cpu"):
            assert torch.equal(inputs.outcome(torch.float32)[0].delta, native)
        assert torch.equal(inputs.outcome(torch.float32)[0].delta, reference)
        assert torch.equal(inputs.outcome(torch.float32, "cpu")[0].delta, native)
    assert torch.equal(inputs.outcome(torch.float32)[0].delta, native)
    monkeypatch.setenv("LMCLEANER_BACKEND", "reference")
    assert torch.equal(inputs.outcome(torch.float32)[0].delta, reference)


def test_unknown_instruction_set(monkeypatch):
    monkeypatch.setenv("LMCLEANER_ISA", "mmx")
    with pytest.raises(ConfigurationError, match="LMCLEANER_ISA=mmx"):
        ops.encode(torch.randn(3), "fp16", backend="cpu")


STRIDED = torch.zeros(2000)[::2]


def gradients(payload: Tensor, scales: Tensor = replay_cases.NO_SCALES) -> list[ops.EncodedVector]:
    return [ops.EncodedVector(payload, scales)] * 6


REFUSED = {
    "not contiguous": ({"delta": STRIDED}, "delta must be a contiguous vector"),
    "three-dimensional": ({"delta": torch.zeros(1, 10, 100)}, "delta must be a contiguous vector"),
    "two-dimensional": ({"delta": torch.zeros(10, 100)}, r"theta must be a contiguous vector \[100\]"),
    "half precision": ({"delta": torch.zeros(1000, dtype=torch.float16)}, "delta must be float32 or float64"),
    "mixed precision": ({"state": [torch.zeros(1000), torch.zeros(1000).double()]}, r"state\[1\] must be torch.float32"),
    "too short": ({"state": [torch.zeros(1000), torch.zeros(999)]}, r"state\[1\] must be a contiguous vector \[1000\]"),
    "no state": ({"state": []}, "takes 2 state vectors"),
    "one side": ({"counterfactual": [torch.zeros(1000)]}, "found 2 and 1"),
    "float32 table": ({"coefficients": torch.zeros(1, 6, 16)}, "coefficients must be a contiguous torch.float64 table"),
    "too few steps": ({"coefficients": torch.zeros(1, 5, 16).double()}, "6 gradients need as many"),
    "segment outside": ({"segments": torch.tensor([[0, 1001, 0]])}, "segments must be sorted"),
    "segments overlap": ({"segments": torch.tensor([[0, 10, 0], [9, 20, 0]])}, "segments must be sorted"),
    "unknown class": ({"segments": torch.tensor([[0, 10, 1]])}, "with a class under 1"),
    "lead too long": ({"lead": 7}, "0 <= lead <= 6"),
    "unknown rule": ({"rule": "adagrad"}, "unknown rule 'adagrad'"),
    "short scales": ({"gradients": gradients(torch.zeros(1000).half(), torch.zeros(3, dtype=torch.uint8))}, r"scales of gradients\[0\]"),
    "integer payload": ({"gradients": gradients(torch.zeros(1000, dtype=torch.int16))}, r"payload of gradients\[0\]"),
    "two formats": (
        {"gradients": [*gradients(torch.zeros(1000))[1:], *gradients(torch.zeros(1000).bfloat16())[:1]]},
        "all gradients must have one format",
    ),
    "unsorted injections": ({"injection_table": torch.tensor([[3.0, 1], [0, 1], [0, 1]]).double()}, "must be sorted by request"),
    "late injection": ({"injection_table": torch.tensor([[0.0, 1], [0, 1], [6, 1]]).double()}, "must be sorted by request"),
}  # fmt: skip


@pytest.mark.parametrize("backend", backends.params("reference", "cpu", "triton"))
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str, backend: backends.Backend):
    if backend.device != "cpu":
        pytest.skip("the arguments lie on the CPU")
    changes, message = REFUSED[what]
    window = replace(window_of(replace(replay_cases.RULES["adamw"], n=1000)), **changes)
    before = window.delta.clone()
    with pytest.raises(ConfigurationError, match=message):
        ops.optimizer_replay_window_(window, backend=backend.name)
    assert torch.equal(window.delta, before)


def test_as_many_scales_as_payloads():
    flat = list(window_of(replace(replay_cases.RULES["adamw"], n=1000)).flat())
    flat[7] = flat[7][:-1]
    with pytest.raises(ConfigurationError, match="gradients: found 6 payloads and 5 scales"):
        torch.ops.lmcleaner.optimizer_replay_window_(*flat)


def test_the_schema_is_what_it_was():
    """Those who call torch.ops give these arguments in this order."""
    found = str(torch.ops.lmcleaner.optimizer_replay_window_.default._schema)
    assert found == (
        "lmcleaner::optimizer_replay_window_(Tensor(a!) delta, Tensor(b!)? theta, Tensor(c!)[] state, "
        "Tensor(d!)[] counterfactual, Tensor coefficients, Tensor segments, Tensor[] gradients, Tensor[] gradient_scales, "
        "Tensor[] injections, Tensor[] injection_scales, Tensor injection_table, Tensor? diagonal, str rule, int lead) -> Tensor"
    )


def test_what_the_encodings_refuse():
    with pytest.raises(ConfigurationError, match="contiguous"):
        ops.encode(STRIDED, "fp16")
    with pytest.raises(ConfigurationError, match="float32 or float64"):
        ops.encode(torch.zeros(3, dtype=torch.int32), "fp16")
    with pytest.raises(ConfigurationError, match=r"shadow must be a contiguous vector \[3\]"):
        ops.encode_difference_(torch.zeros(3), torch.zeros(4), "fp16")
    payload, scales = ops.encode(torch.randn(300), "fp16")
    with pytest.raises(ConfigurationError, match="payload"):
        ops.decode(payload, scales, out=torch.empty(299))
    with pytest.raises(ConfigurationError, match="scales"):
        ops.decode(payload, scales[:1])
    with pytest.raises(ConfigurationError, match="payload of b"):
        ops.dot(torch.randn(3), torch.randn(4))


def test_triton_reads_the_numbers_of_the_native_kernels():
    """Triton's own constants and formats, where it cannot take them from _native while it compiles."""
    launch = pytest.importorskip("lmcleaner_ext.ops.triton.launch")
    replay = pytest.importorskip("lmcleaner_ext.ops.triton.optimizer_replay")
    assert launch.TILE == launch.TILE_BLOCKS * _native.BLOCK
    assert sorted(launch.FORMATS.values()) == sorted(_native.formats)
    flags = _native.replay_flags
    assert {name: getattr(replay, name).value for name in flags} == flags
