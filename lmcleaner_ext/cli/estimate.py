"""`lmcleaner inspect --parameters N`: what a log would cost, before there is one."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .._native import Ring, slot_bytes
from ..errors import ConfigurationError
from ..ops.recording import encode_parts
from ..optim import RULES
from ..recorder.background import AHEAD
from ..recorder.buffers import BufferPool
from ..recorder.options import RecordingOptions
from ..recorder.writer import GROUP, THREADS, section_sizes
from .output import size

# Vectors [P] that an anchor holds besides theta.
STATES = {name: count for rule in RULES.values() for name, count in rule.anchored.items()}
RECORDING = ("capacity", "anchor_every", "dtype", "metadata_bytes")  # the options of a log that decide its size
SAMPLE = 1 << 22  # elements that are really encoded and written


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("without LOG: estimate one before a run")
    group.add_argument("--parameters", metavar="N", help="trainable parameters: 20e6, 135M, 7B")
    group.add_argument("--model", metavar="DIR", help="or a model folder, whose safetensors files are counted")
    for f in fields(RecordingOptions):
        if f.name in RECORDING:  # checked by RecordingOptions itself
            group.add_argument(
                "--" + f.name.replace("_", "-"),
                type=type(f.default),
                default=f.default,
                metavar=f.metadata["unit"] and f.metadata["unit"].upper(),
                help="default: %(default)s",
            )
    group.add_argument("--vectors", choices=("one", "both"), default="one", help="updates or gradients, or both")
    group.add_argument("--optimizer", choices=STATES, default="adam", help="default: %(default)s")
    group.add_argument(
        "--disk", metavar="DIR", default=".", help="where the log would lie; a little is written there to time it"
    )


def estimate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sizes follow from the format; times from encoding and writing up to four million elements, here and now."""
    if bool(arguments.parameters) == bool(arguments.model):
        raise ConfigurationError("give a LOG, or one of --parameters and --model for an estimate")
    parameters = _count(arguments.model) if arguments.model else _number(arguments.parameters)
    if parameters < 1:
        raise ConfigurationError(f"--parameters is at least 1, found {parameters}")
    options = RecordingOptions(**{name: getattr(arguments, name) for name in RECORDING})
    vectors = 2 if arguments.vectors == "both" else 1
    sections = section_sizes(parameters, options.dtype) * vectors
    slot = slot_bytes(options.metadata_bytes, sections)
    anchor = 4 * parameters * (1 + STATES[arguments.optimizer])
    kept = -(-options.capacity // min(options.anchor_every, options.capacity)) + 1
    encoding, writing = _timed(min(parameters, SAMPLE), options.dtype, Path(arguments.disk))
    ring = (options.capacity + GROUP) * slot
    return {
        "parameters": parameters,
        "dtype": options.dtype,
        "capacity": options.capacity,
        "bytes_per_step": sum(sections),
        "compression": round(4 * parameters * vectors / sum(sections), 3),
        "ring_bytes": ring,
        "anchor_bytes": anchor,
        "anchors": kept,
        "total_bytes": ring + kept * anchor,
        "free_bytes": shutil.disk_usage(arguments.disk).free,
        "memory_bytes": (AHEAD + 1) * sum(sections) + anchor,
        "training_seconds_per_step": encoding * parameters * vectors,
        "writing_seconds_per_step": writing * sum(sections),
        "write_gigabytes_per_second": 1e-9 / writing,
    }


def for_people(found: dict[str, Any]) -> dict[str, Any]:
    enough = "" if found["total_bytes"] <= found["free_bytes"] else ": TOO LARGE for this disk"
    training, writing = found["training_seconds_per_step"], found["writing_seconds_per_step"]
    return {
        "log": f"{size(found['total_bytes'])} ({size(found['free_bytes'])} free{enough})",
        "ring": f"{size(found['ring_bytes'])}: {found['capacity']} steps of {size(found['bytes_per_step'])}, "
        f"{found['compression']:g} times smaller than float32",
        "anchors": f"{found['anchors']} of {size(found['anchor_bytes'])}",
        "memory while recording": f"{size(found['memory_bytes'])} at most",
        "each step": f"{1e3 * training:.1f} ms of the training's time; {1e3 * writing:.1f} ms of the writer's beside it, "
        f"at {found['write_gigabytes_per_second']:.2f} GB/s. Training waits for the disk where its own steps are shorter",
    }


def _timed(elements: int, dtype: str, folder: Path) -> tuple[float, float]:
    """(seconds per element encoded, seconds per byte checksummed and written): the best of three."""
    values = torch.randn(elements)
    buffer = BufferPool(1, elements, dtype, 1).take()
    out = buffer.vectors[0]
    places = [(x.data_ptr() if x.numel() else 0, x.nbytes) for x in (out.scales, out.payload)]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        ring = Ring.create(f"{scratch}/ring", b"", [n for _, n in places], 4, durability="process")
        steps = iter(range(100))

        def encode() -> None:
            encode_parts([values], [elements], dtype, out)

        def write() -> None:
            for _ in range(5):
                ring.append(next(steps), 0, b"", places, THREADS)
            ring.sync()

        times = _best(encode) / elements, _best(write) / (5 * sum(n for _, n in places))
        ring.close()
    return times


def _best(run: Callable[[], None]) -> float:
    run()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _number(text: str) -> int:
    factor = {"K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:].upper(), 1)
    try:
        return int(float(text[:-1] if factor > 1 else text) * factor)
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"--parameters takes a number such as 20e6, 135M or 7B, found {text!r}") from error


def _count(folder: str) -> int:
    """Elements of all tensors in the folder's safetensors files; tied ones are stored once."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ConfigurationError(f"{folder} has no safetensors file: give --parameters instead")
    total = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                elements = 1
                for extent in file.get_slice(name).get_shape():
                    elements *= extent
                total += elements
    return total
