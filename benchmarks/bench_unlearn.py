"""How close a deletion comes to retraining, and how much faster it is.

    python benchmarks/bench_unlearn.py --model tiny       the table of docs/method.md, section 4, on a Llama of 23 thousand parameters
    python benchmarks/bench_unlearn.py --model smollm2    SmolLM2-135M on 32 rows of TOFU; needs 16 GiB of memory, 20 GB of disk

--quick is --model tiny at one learning rate. Residual and KL ratio are those of docs/method.md, section 2: 1 = did nothing,
0 = exact. Every ratio names its baseline.
"""

from __future__ import annotations

import os

# Half of a deletion runs on threads that are not OpenMP's (checksums, digests); they would inherit a bound main thread's core.
os.environ.setdefault("OMP_PROC_BIND", "false")

# isort: split
from _common import BandwidthProbe, environment, interleaved, parser  # before torch

# isort: split
import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _smollm2 import TOFU
from rich.console import Console
from rich.table import Table

from lmcleaner_ext.installation import describe

REPOSITORY = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="bench_unlearn-", dir=options.workdir) as folder,
        Console(stderr=True).status("") as status,
    ):
        started = time.perf_counter()

        def progress(text: str) -> None:
            status.update(f"{time.perf_counter() - started:5.0f} s  {text}")

        try:
            measured = measure(options, Path(folder), progress)
        except ImportError as error:  # a package that only this benchmark needs
            print(f"bench_unlearn.py: {error}", file=sys.stderr)
            return 2
    facts = environment(options.device)
    report = {"benchmark": "unlearn", "model": options.model, "environment": facts, **measured}
    text = json.dumps(report, indent=1)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    if options.json:
        print(text)
    else:
        console = Console()
        (print_tiny if options.model == "tiny" else print_smollm2)(report, console)
        print_environment(facts, console)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    options = parser(__doc__ or "")
    options.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    options.add_argument(
        "--workdir", type=Path, default=REPOSITORY.parent, help="where the log goes (and is removed again)"
    )
    options.add_argument("--seeds", type=int, default=3, help="tiny: experiments whose median is taken")
    options.add_argument("--tofu", type=Path, default=TOFU, help="smollm2: folder with TOFU's full.json")
    options.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), default="fp16", help="smollm2: the log's vectors")
    options.add_argument("--clip", type=float, help="smollm2: bound of the gradient's norm (default: not clipped)")
    options.add_argument("--answers-only", action="store_true", help="smollm2: learn the answers, not the questions")
    options.add_argument("--warmup", type=int, default=0, help="smollm2: steps of linear warm-up (default: none)")
    options.add_argument("--seed", type=int, default=0, help="smollm2: of the batches' order")
    options.add_argument("--first-row", type=int, default=3960, help="smollm2: of TOFU's 4000, where the 32 rows begin")
    options.add_argument(
        "--forget",
        type=int,
        nargs="+",
        choices=range(32),
        metavar="PLACE",
        help="smollm2: places in the slice (default: 0 1)",
    )
    options.add_argument("--requests", type=int, default=1, help="smollm2: deletions, each against its own retraining")
    options.add_argument(
        "--repeats",
        type=int,
        default=5,
        help="smollm2: deletions timed with the log in memory; as many with and without memory touched before",
    )
    parsed = options.parse_args(arguments)
    if parsed.quick:
        parsed.model, parsed.seeds = "tiny", 1
    if parsed.device != "cpu":
        options.error("this benchmark trains and deletes on the CPU: --device cpu")
    if parsed.repeats < 1 or parsed.seeds < 1:
        options.error("--repeats and --seeds are at least 1")
    return parsed


def measure(options: argparse.Namespace, workdir: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    if options.model == "tiny":
        from _unlearn_tiny import RATES, measure_tiny

        return measure_tiny((3e-4,) if options.quick else RATES, range(1, options.seeds + 1), workdir, progress)
    from _unlearn_smollm2 import Experiment, Setting

    setting = Setting(
        dtype=options.dtype, clip=options.clip, train_on_question=not options.answers_only, warmup=options.warmup,
        seed=options.seed, requests=options.requests, first_row=options.first_row,
        forget=None if options.forget is None else tuple(options.forget),
    )  # fmt: skip
    measured = Experiment(setting, options.tofu, workdir, progress).measure(options.repeats)
    probe = BandwidthProbe(size=1 << 30)
    measured["probe_gigabytes_per_second"] = probe.gigabytes_per_second(interleaved({"probe": probe}, 5)["probe"])
    return measured


# -- for people --------------------------------------------------------------------------------------------------------


def print_tiny(report: dict[str, Any], console: Console) -> None:
    s = report["setting"]
    table = Table(
        title=f"{s['parameters']} parameters, AdamW, {s['steps']} steps, {s['forgotten']} of {s['samples']} samples "
        f"forgotten: residual / KL ratio, median of {len(s['seed'])} seed(s)"
    )
    table.add_column("method")
    for run in report["runs"]:
        table.add_column(f"lr {run['lr']:g}\n{run['arithmetic']}, {run['log_dtype']} log", justify="right")
    for name in report["runs"][0]["methods"]:
        results = [run["methods"][name] for run in report["runs"]]
        table.add_row(name, *[f"{r['residual']:.4f} / {r['kl_ratio']:.4f}" for r in results])
    console.print(table)
    console.print(f"baseline: {report['baseline']}")


def print_smollm2(report: dict[str, Any], console: Console) -> None:
    s, recording = report["setting"], report["recording"]
    table = Table(title=f"SmolLM2-135M, AdamW, {s['steps']} steps; {s['forgotten']} of {s['rows']} samples forgotten")
    for title in (
        "model",
        "residual",
        "KL ratio\nforget",
        "KL ratio\nretain",
        "forget\nloss",
        "retain\nloss",
        "seconds",
    ):
        table.add_column(title, justify="left" if title == "model" else "right")
    for request in report["requests"]:
        steps = ", ".join(str(step) for step, _ in request["uses"])
        table.add_row(f"[bold]forget {request['ids']}[/bold], used at steps {steps}")
        seconds = {
            "lmcleaner": request["deletion"].get("warm_seconds_median"),
            "retrained": request["retraining"]["seconds"],
        }
        for name, m in request["models"].items():
            table.add_row(
                name, f"{m['residual']:.4f}", f"{m['forget_kl_ratio']:.4f}", f"{m['retain_kl_ratio']:.4f}",
                f"{m['forget_loss']:.3f}", f"{m['retain_loss']:.3f}",
                "" if seconds.get(name) is None else f"{seconds[name]:.2f}",
            )  # fmt: skip
    console.print(table)
    for name, ratio in report["ratios"].items():
        console.print(f"[bold]{ratio['value']:.3g}[/bold]  {name}: {ratio['is']}; baseline: {ratio['baseline']}")
    console.print(
        f"log: {recording['log_bytes'] / 1e9:.2f} GB of {s['dtype']} vectors, {recording['disk_bytes'] / 1e9:.2f} GB on "
        f"disk with spare slots and the anchor; the logged training is bit-identical to the plain one: "
        f"{recording['bit_identical']}\ndata: {s['data']}, loss over {s['text']}\n"
        f"memory read at {report['probe_gigabytes_per_second']:.1f} GB/s afterwards",
        highlight=False,
    )


def print_environment(facts: dict[str, Any], console: Console) -> None:
    console.print(f"{describe(facts)}; load average {facts['load_average']:.1f}", style="dim", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
