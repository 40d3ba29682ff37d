"""Shared fixtures, and how helpers are imported.

Tests run with `--import-mode=importlib`, which leaves sys.path alone. This file puts its own folder on it, so that every test, from any
working directory, can say `from support.cases import ...`; the helpers are all in python_tests/support. There are no packages here:
test modules of one name in two folders stay apart because of the import mode.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: its kernels then run on the CPU

sys.path.insert(0, str(Path(__file__).parent))

from lmcleaner_ext import _native
from support.cases import Llama, Recording, pretrained_llama, record

# The same examples in every run, and none of them fails because the machine is slow today.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The models here are so small that a second thread only costs; a test about threads sets its own number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


INSTRUCTION_SETS = ("portable", "avx2", "avx512")


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request, monkeypatch):
    """Each instruction set of the CPU kernels that this machine can run."""
    monkeypatch.delenv("LMCLEANER_ISA", raising=False)
    best = INSTRUCTION_SETS.index(_native.cpu_instruction_set())
    if INSTRUCTION_SETS.index(request.param) > best:
        pytest.skip(f"this CPU has no {request.param}")
    monkeypatch.setenv("LMCLEANER_ISA", request.param)
    return request.param


@pytest.fixture
def recorded(tmp_path):
    """recorded(task, schedule, make_optimizer, ...) -> Recording: a trained model and its log in a fresh folder."""
    count = iter(range(1000))

    def run(*arguments, **options) -> Recording:
        return record(tmp_path / f"log{next(count)}", *arguments, **options)

    return run


@pytest.fixture(scope="session")
def llama() -> Llama:
    """The 23k-parameter Llama of docs/method.md, section 4, pretrained on Markov text, in float64."""
    return pretrained_llama()
