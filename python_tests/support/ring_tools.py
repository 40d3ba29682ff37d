"""What the tests of the ring share: small rings, recognisable contents, writers in other processes."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import lmcleaner_ext
from lmcleaner_ext._native import Ring

PAGE = 4096
SECTIONS = [300, 5000]  # neither a multiple of the page: padding is there to be tested


def create(path: Path, **options) -> Ring:
    """A ring of 4 steps and 2 spare slots, unless told otherwise."""
    options = {"manifest": b'{"a": 1}', "section_bytes": SECTIONS, "capacity": 4, "spare": 2, "metadata_bytes": PAGE,
               "durability": "group", "group": 2} | options  # fmt: skip
    return Ring.create(str(path), **options)


def contents(step: int, sizes: Sequence[int] = SECTIONS) -> list[np.ndarray]:
    """Bytes that only this step has."""
    generator = np.random.default_rng(step)
    return [generator.integers(0, 256, size, dtype=np.uint8) for size in sizes]


def append(ring: Ring, step: int, lineage: int = 0, sizes: Sequence[int] = SECTIONS, threads: int = 1) -> int:
    parts = contents(step, sizes)
    return ring.append(step, lineage, f"step {step}".encode(), [(p.ctypes.data, p.nbytes) for p in parts], threads)


def view(ring: Ring, slot: int, generation: int, k: int) -> np.ndarray:
    address, nbytes = ring.section(slot, generation, k)
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype=np.uint8)


def read_all(ring: Ring, sizes: Sequence[int] = SECTIONS) -> list[int]:
    """Verify and compare everything; return the steps. Raises whatever the ring raises."""
    entries = ring.refresh()
    slots, generations = [e[1] for e in entries], [e[2] for e in entries]
    for step, slot, generation, _ in entries:
        assert ring.metadata(slot, generation) == f"step {step}".encode()
    for k, size in enumerate(sizes):
        ring.verify(slots, generations, k, 0, size)
        for step, slot, generation, _ in entries:
            np.testing.assert_array_equal(view(ring, slot, generation, k), contents(step, sizes)[k])
    return [e[0] for e in entries]


@contextmanager
def flipped_bit(path: Path, contents: bytes, offset: int) -> Iterator[None]:
    """Within the block a bit of the file is wrong, `offset` bytes after the beginning of `contents` in it."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        at = data.find(contents) + offset
        data[at] ^= 4
        try:
            yield
        finally:
            data[at] ^= 4


def python_command(code: str, *arguments: object) -> list[str]:
    """The command that runs `code` in another Python, where this module is imported.

    The package is a bare module there: its __init__ imports torch, which takes longer than the test.
    """
    header = f"""
import sys, types
package = types.ModuleType("lmcleaner_ext")
package.__path__ = {list(lmcleaner_ext.__path__)!r}
sys.modules["lmcleaner_ext"] = package
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from support.ring_tools import *
"""
    return [sys.executable, "-c", header + code, *map(str, arguments)]


def run_python(code: str, *arguments: object) -> tuple[str, str]:
    """What `code` prints: (stdout, stderr)."""
    done = subprocess.run(python_command(code, *arguments), capture_output=True, text=True, check=False)
    return done.stdout.strip(), done.stderr


@contextmanager
def running_python(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `code`; killed at the end of the block."""
    with subprocess.Popen(python_command(code, *arguments), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
