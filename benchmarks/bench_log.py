"""The training log: what it costs the training, and how fast it writes, reads, opens and finds.

    python benchmarks/bench_log.py --quick
    python benchmarks/bench_log.py --out benchmarks/results/log-cpu.json

Every figure is a ratio or a time with a limit, measured against a baseline in the same process, turn by turn:

    training overhead   steps of a Llama with and without a TrainingLogger (fp16); the logger's turn ends when its steps are written
    bytes per step      appended by the logger, against 2 bytes per parameter
    write               appends to a ring, against O_DIRECT writes of 8 MiB to a file of the same size on the same disk, both synced
    read, cold          a window that is not in memory, checksums verified, panel by panel as the sweep does it, against O_DIRECT reads of
                        8 MiB from a file of the same size
    read, streamed      the same past the page cache, for windows larger than memory
    open, find          a log of 10,000 steps; an index of 10^7 uses
"""

from __future__ import annotations

import os

# The writer thread would inherit the core that OpenMP binds the main thread to, and write in its way.
os.environ.setdefault("OMP_PROC_BIND", "false")

# isort: split
from _common import Timing, environment, interleaved, parser  # before torch

# isort: split
import json
import mmap
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import lmcleaner_ext as lmc
from lmcleaner_ext._native import Ring
from lmcleaner_ext.log import VectorWindow
from lmcleaner_ext.log.uses import SAMPLE, UseIndex
from lmcleaner_ext.log.vectors import PANEL_BYTES
from lmcleaner_ext.recorder.buffers import BufferPool
from lmcleaner_ext.recorder.writer import THREADS, section_sizes

DIRECT_BYTES = 8 << 20  # per request of the baseline


@dataclass
class Size:
    """How much is measured."""

    hidden: int = 384
    layers: int = 8
    tokens: int = 1024  # per batch
    turn: int = 8  # training steps
    turns: int = 6
    vector: int = 20_000_000
    vectors: int = 25  # in the window
    rounds: int = 5
    disk_rounds: int = 7
    steps: int = 10_000
    uses: int = 10_000_000


QUICK = Size(
    hidden=128,
    layers=2,
    tokens=512,
    turn=4,
    turns=2,
    vector=5_000_000,
    vectors=12,
    rounds=2,
    disk_rounds=11,
    uses=1_000_000,
)


def figure(name: str, value: float, limit: float, unit: str, baseline: str, **details: Any) -> dict[str, Any]:
    """One result; `limit` is the most that it may be, or the least for a share."""
    met = value >= limit if unit == "share" else value <= limit
    return {
        "name": name,
        "value": round(value, 4),
        "limit": limit,
        "unit": unit,
        "met": met,
        "baseline": baseline,
        **details,
    }


def seconds(timing: Timing) -> dict[str, float]:
    return {"min": round(timing.minimum, 5), "median": round(timing.median, 5)}


# -- what training pays --------------------------------------------------------------------------------------------------


def training(size: Size, folder: Path, device: str) -> list[dict[str, Any]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8192, hidden_size=size.hidden, intermediate_size=size.hidden * 8 // 3, num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64, num_key_value_heads=size.hidden // 64,
    )  # fmt: skip
    batch = torch.randint(0, config.vocab_size, (size.tokens // 128, 128), device=device)

    def loop(logged: bool) -> tuple[Callable[[], None], lmc.TrainingLogger | None, int]:
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        log = None
        if logged:
            log = lmc.TrainingLogger(folder / "training", model, optimizer, capacity=32, anchor_every=32).attach()

        def turn() -> None:
            for _ in range(size.turn):
                if log is not None:
                    log.batch(range(len(batch)))
                model(input_ids=batch, labels=batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            if log is not None:
                log._writer.drain()

        return turn, log, sum(p.numel() for p in model.parameters())

    (plain, _, parameters), (logged, log, _) = loop(False), loop(True)
    assert log is not None
    timings = interleaved({"plain": plain, "logged": logged}, size.turns, device)
    steps, written = log.step, log.bytes_written
    log.close()
    over = timings["logged"].median / timings["plain"].median - 1
    details = {"parameters": parameters, "tokens_per_step": size.tokens, "steps_per_turn": size.turn}
    return [
        figure("training overhead", over, 0.05, "of the time", "the same loop without a logger, medians",
               of_minima=round(timings["logged"].minimum / timings["plain"].minimum - 1, 4),
               plain_seconds=seconds(timings["plain"]), logged_seconds=seconds(timings["logged"]), **details),
        figure("bytes per step", abs(written / steps / (2 * parameters) - 1), 0.02, "off", "2 bytes per parameter",
               bytes_per_step=written // steps, **details),
    ]  # fmt: skip


# -- the disk ------------------------------------------------------------------------------------------------------------


class DirectFile:
    """The baseline: one preallocated file, read and written sequentially past the page cache."""

    def __init__(self, path: Path, size: int):
        self.path, self.size = path, -(-size // DIRECT_BYTES) * DIRECT_BYTES
        self.buffer = mmap.mmap(-1, DIRECT_BYTES)
        self.buffer.write(os.urandom(DIRECT_BYTES))
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        os.posix_fallocate(self.descriptor, 0, self.size)

    def write(self) -> None:
        for at in range(0, self.size, DIRECT_BYTES):
            os.pwrite(self.descriptor, self.buffer, at)
        os.fdatasync(self.descriptor)

    def read(self) -> None:
        for at in range(0, self.size, DIRECT_BYTES):
            os.preadv(self.descriptor, [self.buffer], at)


def disk(size: Size, folder: Path) -> list[dict[str, Any]]:
    sections = section_sizes(size.vector, "fp16")
    count = size.vectors
    path = folder / "ring"
    ring = Ring.create(str(path), b"{}", sections, count, durability="group", group=16)
    buffer = BufferPool(1, size.vector, "fp16", 1).take()
    payload, scales = buffer.vectors[0]
    payload.copy_(torch.randn(size.vector).half())
    baseline = DirectFile(folder / "baseline", count * sum(sections))
    places = [(scales.data_ptr(), scales.numel()), (payload.data_ptr(), 2 * size.vector)]
    step = 0

    def append() -> None:
        nonlocal step
        for _ in range(count):
            ring.append(step, 0, b"", places, THREADS)
            step += 1
        ring.sync()

    for _ in range(2):  # the spare slots too: the first write of allocated blocks is slower
        append()
    baseline.write()
    writing = taking_turns({"ring": append, "direct": baseline.write}, size.disk_rounds)
    ring.close()

    def opened() -> VectorWindow:
        reader = Ring.open_read(str(path))
        return VectorWindow(reader, [(slot, generation) for _, slot, generation, _ in reader.refresh()], "fp16", 0)

    def read() -> None:
        window = opened()
        for at in range(0, size.vector, PANEL_BYTES // 2):
            window.verify(at, min(at + PANEL_BYTES // 2, size.vector))

    def stream() -> None:
        for _ in opened().panels():
            pass

    # what is mapped stays in memory: no reader is open between two turns
    reading = taking_turns(
        {"mapped": read, "direct": baseline.read, "stream": stream}, size.disk_rounds, lambda: drop_from_memory(path)
    )
    size_bytes = count * sum(sections)

    def share(name: str, timings: dict[str, Timing], ours: str, what: str) -> dict[str, Any]:
        return figure(name, median_ratio(timings["direct"], timings[ours]), 0.8, "share", f"O_DIRECT {what} of 8 MiB, median of rounds",
                      of_minima=round(timings["direct"].minimum / timings[ours].minimum, 3), bytes=size_bytes,
                      rounds=size.disk_rounds, gigabytes_per_second=round(size_bytes / 1e9 / timings[ours].median, 3),
                      bypasses_page_cache=True)  # fmt: skip

    return [
        share("write", writing, "ring", "writes"),
        share("read, cold", reading, "mapped", "reads"),
        share("read, streamed", reading, "stream", "reads"),
    ]


def taking_turns(
    runs: dict[str, Callable[[], object]], rounds: int, before: Callable[[], object] = lambda: None
) -> dict[str, Timing]:
    """Time each once per round, in the order of the round before moved on by one; `before` runs first each time."""
    timings = {name: Timing() for name in runs}
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            before()
            timings[name].seconds.append(timed(runs[name]))
    return timings


def median_ratio(baseline: Timing, ours: Timing) -> float:
    """A shared disk's speed changes from second to second: both of a round saw about the same one."""
    return statistics.median(a / b for a, b in zip(baseline.seconds, ours.seconds, strict=True))


def drop_from_memory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# -- opening and finding -------------------------------------------------------------------------------------------------


def opening(size: Size, folder: Path) -> list[dict[str, Any]]:
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    path = folder / "steps"
    with lmc.TrainingLogger(
        path, model, optimizer, capacity=size.steps, anchor_every=size.steps, durability="process", metadata_bytes=2048
    ) as log:
        for step in range(size.steps):
            log.batch([step])
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
    timing = interleaved({"open": lambda: lmc.StepLog.open(path).close()}, size.rounds)["open"]
    return [figure("open", timing.minimum, 0.05, "s", f"a log of {size.steps} steps", seconds=seconds(timing))]


def finding(size: Size, folder: Path) -> list[dict[str, Any]]:
    index, generator, per_step = UseIndex(folder / "uses.bin"), np.random.default_rng(0), 1000
    for step in range(size.uses // per_step):
        index.append(step, generator.integers(0, size.uses // 10, per_step).tolist(), step)
    identity = iter(range(10**6))
    first = timed(lambda: UseIndex(folder / "uses.bin").find([next(identity)], SAMPLE))
    reader = UseIndex(folder / "uses.bin")
    timings = interleaved(
        {
            "known": lambda: reader.find([next(identity)], SAMPLE),
            "unknown": lambda: reader.find([size.uses + next(identity)], SAMPLE),
        },
        10 * size.rounds,
    )
    return [
        figure("find", timings["known"].median, 0.1, "s", f"{size.uses} uses, one id", seconds=seconds(timings["known"]),
               first_after_opening=round(first, 5)),
        figure("find, unknown id", timings["unknown"].median, 0.1, "s", f"{size.uses} uses, an id that none has",
               seconds=seconds(timings["unknown"])),
    ]  # fmt: skip


# -- the script ----------------------------------------------------------------------------------------------------------


@contextmanager
def working_folder(parent: Path | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="bench_log-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


PARTS: dict[str, Callable[[Size, Path, str], list[dict[str, Any]]]] = {
    "training": training,
    "disk": lambda size, folder, device: disk(size, folder),
    "open": lambda size, folder, device: opening(size, folder),
    "find": lambda size, folder, device: finding(size, folder),
}


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument(
        "--workdir", type=Path, help="a folder on the disk to measure (default: the system's for temporary files)"
    )
    options.add_argument("--part", choices=PARTS, action="append", help="measure only this (may be repeated)")
    arguments = options.parse_args()
    size, results = QUICK if arguments.quick else Size(), []
    for part in arguments.part or PARTS:
        with working_folder(arguments.workdir) as folder:
            results += PARTS[part](size, folder, arguments.device)
    document = {
        "benchmark": "log",
        "settings": vars(size),
        "environment": environment(arguments.device),
        "results": results,
    }
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(document, indent=1))
        return 0
    facts, table = document["environment"], Table("", "measured", "limit", "", "against")
    for r in results:
        sign = ">=" if r["unit"] == "share" else "<="
        table.add_row(
            r["name"],
            f"{r['value']:.3f}",
            f"{sign} {r['limit']}",
            r["unit"] + ("" if r["met"] else " (missed)"),
            r["baseline"],
        )
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(
        f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}, {facts['date']}, load {facts['load_average']:.1f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
