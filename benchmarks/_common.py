"""What every benchmark shares: options, the description of the machine, a bandwidth probe, interleaved timing, output.

The memory bandwidth of a shared machine swings several-fold from minute to minute. So a figure is always a ratio, measured
A B A B in one process, minimum and median, beside a probe of the bandwidth taken in the same rounds.

Import this module before torch: it sets what gives torch its best chance.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_PROC_BIND", "true")
# torch maps large tensors with huge pages; without it eager is several times slower
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lmcleaner_ext import installation


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has; a benchmark adds its own."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="smaller inputs: under a minute on two cores")
    options.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")
    options.add_argument("--device", default="cpu", help="where the tensors lie (default: cpu)")
    options.add_argument("--out", type=Path, help="also write the results as JSON to this file")
    return options


def environment(device: str) -> dict[str, Any]:
    """What this package says about device, versions and date, and what disturbs or helps a measurement."""
    return {
        **installation.environment(device),
        "environment": {name: os.environ.get(name) for name in ("OMP_PROC_BIND", "THP_MEM_ALLOC_ENABLE")},
        "load_average": os.getloadavg()[0],
    }


@dataclass
class Timing:
    """Seconds of each repetition of one candidate."""

    seconds: list[float] = field(default_factory=list)

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, Timing]:
    """Time the candidates in turn, A B A B, `repeats` rounds after one round of warm-up.

    A short candidate runs several times per turn, up to the time of the longest: a disturbance that hits both alike should
    not decide, and the minimum of a few short runs is easily disturbed.
    """
    timings = {name: Timing() for name in candidates}
    warm_up = {name: _seconds(run, device) for name, run in candidates.items()}
    turns = {
        name: max(1, min(MOST_RUNS_PER_TURN, int(max(warm_up.values()) / warm_up[name] / 2))) for name in candidates
    }
    for _ in range(repeats):
        for name, run in candidates.items():
            timings[name].seconds += [_seconds(run, device) for _ in range(turns[name])]
    return timings


MOST_RUNS_PER_TURN = 5


def _seconds(run: Callable[[], object], device: str) -> float:
    if torch.device(device).type == "cuda":
        return _seconds_on_gpu(run)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _seconds_on_gpu(run: Callable[[], object]) -> float:
    """Between two events of the stream. It sleeps first, so that the host is ahead and its own time does not count."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(SLEEP_CYCLES)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


SLEEP_CYCLES = 2_000_000  # about a millisecond


class BandwidthProbe:
    """What the memory can do at most, a candidate among the others of `interleaved`: `bytes` per call.

    On the CPU it reads on all threads; on a GPU it copies (bytes read and written), many times the L2.
    """

    def __init__(self, device: str = "cpu", size: int | None = None):
        gpu = torch.device(device).type == "cuda"
        self._data = torch.ones((size or 1 << (30 if gpu else 28)) // 4, device=device)
        self._copy = torch.empty_like(self._data) if gpu else None
        self.bytes = self._data.nbytes * (2 if gpu else 1)

    def __call__(self) -> None:
        if self._copy is None:
            self._data.sum()
        else:
            self._copy.copy_(self._data)

    def gigabytes_per_second(self, timing: Timing) -> float:
        return self.bytes / timing.minimum / 1e9


@dataclass
class Row:
    """One comparison: ours against a named baseline, and how near it comes to the memory's speed."""

    name: str
    baseline: str
    ours: Timing
    theirs: Timing
    bytes: int  # that ours must move
    bandwidth: float  # GB/s, read by the probe in the same rounds

    def to_json(self) -> dict[str, Any]:
        rate = self.bytes / self.ours.minimum / 1e9
        return {
            "name": self.name,
            "baseline": self.baseline,
            "ratio_of_minima": round(self.theirs.minimum / self.ours.minimum, 2),
            "ratio_of_medians": round(self.theirs.median / self.ours.median, 2),
            "ours_ms": {"min": round(self.ours.minimum * 1e3, 3), "median": round(self.ours.median * 1e3, 3)},
            "baseline_ms": {"min": round(self.theirs.minimum * 1e3, 3), "median": round(self.theirs.median * 1e3, 3)},
            "repeats": len(self.ours.seconds),
            "gigabytes_per_second": round(rate, 2),
            "probe_gigabytes_per_second": round(self.bandwidth, 2),
            "share_of_bandwidth": round(rate / self.bandwidth, 3),
        }


def compared(
    name: str,
    ours: Callable[[], object],
    baselines: dict[str, Callable[[], object]],
    repeats: int,
    size: int,
    device: str,
) -> list[Row]:
    """Ours against each baseline, all of them and the bandwidth probe interleaved."""
    probe = BandwidthProbe(device)
    timings = interleaved({"ours": ours, "probe": probe, **baselines}, repeats, device)
    bandwidth = probe.gigabytes_per_second(timings["probe"])
    return [Row(name, baseline, timings["ours"], timings[baseline], size, bandwidth) for baseline in baselines]


def report(title: str, rows: list[dict[str, Any]], options: argparse.Namespace, **settings: Any) -> None:
    """Print the results, and write them to --out."""
    document = {"benchmark": title, "settings": settings, "environment": environment(options.device), "results": rows}
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    if options.json:
        print(json.dumps(document, indent=1))
        return
    facts = document["environment"]
    print(f"{title}: {facts['device']}, {facts['threads']} threads, {facts['instruction_set']}, "
          f"torch {facts['torch']}, {facts['date']}, load {facts['load_average']:.1f}")  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    print(f"{'op':<34} {'against':<22} {'min':>7} {'median':>7} {'ours ms':>9} {'GB/s':>7} {'of probe':>9}")
    for row in rows:
        print(f"{row['name']:<34} {row['baseline']:<22} {row['ratio_of_minima']:>6.1f}x {row['ratio_of_medians']:>6.1f}x "
              f"{row['ours_ms']['min']:>9.2f} {row['gigabytes_per_second']:>7.1f} {row['share_of_bandwidth']:>8.0%}")  # fmt: skip
