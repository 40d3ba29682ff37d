"""The ops' backends as test parameters: each with the device its tensors must lie on, and a reason where it cannot run.

CPU-only machines run Triton's kernels interpreted (conftest.py sets TRITON_INTERPRET); machines with a GPU compile them.
`pytest -m cuda` selects what runs on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from torch import Tensor

from lmcleaner_ext import ops


@dataclass(frozen=True)
class Backend:
    """The ops on CPU tensors, computed by one backend on its own device."""

    name: str

    @property
    def device(self) -> str:
        return device_of(self.name)

    def skip_if_long(self, n: int) -> None:
        """Interpreted, a thousand elements take milliseconds: leave large vectors to machines with a GPU."""
        if self.name == "triton" and self.device == "cpu" and n > 20_000:
            pytest.skip(f"interpreted, {n} elements take long")

    def encode(self, x: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
        payload, scales = ops.encode(x.to(self.device), dtype, backend=self.name)
        return payload.cpu(), scales.cpu()

    def encode_difference_(self, theta: Tensor, shadow: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
        own_shadow = shadow.to(self.device)
        payload, scales = ops.encode_difference_(theta.to(self.device), own_shadow, dtype, backend=self.name)
        shadow.copy_(own_shadow)
        return payload.cpu(), scales.cpu()

    def decode(self, payload: Tensor, scales: Tensor) -> Tensor:
        return ops.decode(payload.to(self.device), scales.to(self.device), backend=self.name).cpu()

    def dot(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        return ops.dot(*((p.to(self.device), s.to(self.device)) for p, s in (a, b)), backend=self.name).cpu()


def device_of(name: str | None) -> str:
    if name == "cuda":
        return "cuda"
    if name == "triton" and ops.available_backends()[name] is None:
        from lmcleaner_ext.ops import triton

        return "cpu" if "cpu" in triton.DEVICES else "cuda"
    return "cpu"


def params(*names: str) -> list:
    """One pytest parameter per backend, a Backend; skipped with its reason where it cannot run."""
    return [_param(name) for name in names]


def _param(name: str):  # type: ignore[no-untyped-def]
    reason = ops.available_backends()[name]
    marks = [pytest.mark.skip(reason=f"{name}: {reason}")] if reason else []
    if device_of(name) == "cuda":
        marks.append(pytest.mark.cuda)
    return pytest.param(Backend(name), id=name, marks=marks)
