"""The parts of gpu_check.sh. Each has a time limit and runs whatever the others did; only a failed build ends the check."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NO_GPU = 2  # exit status
TAIL = 3000  # characters of a failed part's output that are printed


@dataclass
class Part:
    """One command. `seconds`: its limit; `reason`: why it is left out here; `needs`: a failure of it ends the check."""

    name: str
    command: list[str]
    seconds: int
    environment: dict[str, str]
    reason: str = ""
    essential: bool = False


@dataclass
class Outcome:
    name: str
    status: str  # passed | failed | timed out | skipped
    seconds: float = 0.0
    exit_status: int | None = None
    note: str = ""


def main() -> int:
    options = _options()
    gpu = _gpu()
    if gpu is None and not options.rehearse:
        print("no GPU: torch sees no CUDA device here. --rehearse runs what can run without one", file=sys.stderr)
        return NO_GPU
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.txt"
    log.write_text("")
    ends, outcomes = time.monotonic() + options.seconds, []
    for part in parts(out, gpu):
        if options.only and part.name not in options.only:
            continue
        left = ends - time.monotonic()
        outcome = _run(part, min(part.seconds, left), log)
        outcomes.append(outcome)
        print(f"{outcome.status:<10} {outcome.seconds:7.1f} s  {outcome.name}  {outcome.note}", flush=True)
        _write_summary(out, outcomes, gpu, options.seconds - (ends - time.monotonic()))
        if part.essential and outcome.status != "passed":
            print("the check ends here: nothing else can run")
            break
    bad = [o.name for o in outcomes if o.status in ("failed", "timed out")]
    print(f"{'FAILED: ' + ', '.join(bad) if bad else 'every part passed'}; results in {out}")
    return 1 if bad or not outcomes else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description="Build, test, sanitize and measure on a GPU.")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder for the results")
    parser.add_argument("--seconds", type=int, default=570, help="for all parts together")
    parser.add_argument("--only", type=lambda text: text.split(","), help="these parts, by name, separated by commas")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: the parts that can run on the CPU")
    return parser.parse_args()


def _gpu() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": 10 * major + minor,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
    }


def parts(out: Path, gpu: dict[str, Any] | None) -> list[Part]:
    """In order of worth: what comes late is what a slow machine loses."""
    python, on_gpu = sys.executable, gpu is not None
    device = "cuda" if on_gpu else "cpu"
    build = [
        "cmake", "-S", str(ROOT), "-B", str(ROOT / "build-check"), "-G", "Ninja", f"-DPython_EXECUTABLE={python}",
        f"-DLMCLEANER_CUDA={int(on_gpu)}", f"-DLMCLEANER_CUDA_ARCHITECTURES={gpu['capability'] if gpu else 90}",
        "-DLMCLEANER_WARNINGS_AS_ERRORS=OFF",  # another compiler than the one that CI has may warn of something new
    ]  # fmt: skip
    jobs = str(len(os.sched_getaffinity(0)) if on_gpu else 1)
    pytest = [
        python, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "--import-mode=importlib",
        "-W", "default", "-p", "no:cacheprovider", "-q", "-rf",
    ]  # fmt: skip
    parallel = ["-n", "8"] if on_gpu and importlib.util.find_spec("xdist") else []
    selection = ["-m", "cuda"] if on_gpu else ["-k", "triton or panel", "--maxfail=20"]
    folders = ["ops", "replay", "engine", "unlearn", "recorder"]
    tests = [*pytest, *parallel, *selection, f"--junitxml={out / 'tests.xml'}", *folders]
    sanitizer = shutil.which("compute-sanitizer")
    no_sanitizer = "no GPU" if not on_gpu else "" if sanitizer else "compute-sanitizer is not on the PATH"
    # small, and one of each kind: under a sanitizer everything takes many times as long
    kinds = (
        "gpu_kernels_equal or dot_of or nothing_removed or begin_anywhere or empty_state or outside or on_a_gpu "
        "or one_step or gram or combine or diagonal or (gpu_kernels_are and (adamw or momentum))"
    )
    sizes = "not 10000 and not 10003 and not 100000 and not long and not large and not graph"

    def sanitize(tool: str, backend: str, seconds: int) -> Part:
        chosen = f"({kinds}) and {sizes} and {'triton' if backend == 'triton' else 'not triton'}"
        tested = [*pytest, "-m", "cuda", "-k", chosen, "ops"]
        command = [sanitizer or "", "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no", *tested]
        name = tool if backend == "cuda" else f"{tool}-{backend}"
        return Part(name, command, seconds, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, no_sanitizer)

    def bench(name: str, seconds: int, *arguments: str, reason: str = "") -> Part:
        script, *rest = arguments
        command = [python, str(ROOT / "benchmarks" / script), *rest, "--out", str(out / f"{name}.json")]
        return Part(name, command, seconds, {}, reason)

    return [
        Part("configure", build, 60, {}, essential=True),
        Part("build", ["cmake", "--build", str(ROOT / "build-check"), "-j", jobs], 180, {}, essential=True),
        Part("show-config", [python, "-m", "lmcleaner_ext.cli", "show-config"], 60, {}),
        Part("kernel-resources", [python, str(ROOT / "scripts" / "kernel_resources.py")], 30, {}),
        Part("tests", tests, 240, {}),
        bench("bench-ops-quick", 90, "bench_ops.py", "--quick", "--device", device),
        sanitize("memcheck", "cuda", 120),
        sanitize("racecheck", "cuda", 120),
        bench("bench-unlearn", 60, "bench_unlearn.py", "--quick", "--seeds", "1"),
        bench("bench-ops", 240, "bench_ops.py", "--device", device, reason="" if on_gpu else "no GPU"),
        sanitize("memcheck", "triton", 120),
    ]


def _run(part: Part, limit: float, log: Path) -> Outcome:
    if part.reason:
        return Outcome(part.name, "skipped", note=part.reason)
    if limit < 5:
        return Outcome(part.name, "skipped", note="no time left")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **part.environment}
    started = time.monotonic()
    with log.open("a") as file:
        file.write(f"\n==== {part.name}: {' '.join(part.command)}\n")
        file.flush()
        begins = file.tell()
        # away from the sources, in a session of its own so that a limit ends its children too
        process = subprocess.Popen(
            part.command, cwd=ROOT / "python_tests", env=environment, stdout=file, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            exit_status: int | None = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            exit_status = None
    seconds = time.monotonic() - started
    status = "timed out" if exit_status is None else "passed" if exit_status == 0 else "failed"
    output = log.read_text(errors="replace")[begins:].rstrip()
    if status != "passed":
        print(output[-TAIL:])
    return Outcome(
        part.name,
        status,
        round(seconds, 1),
        exit_status,
        output.splitlines()[-1].replace(f"{ROOT}/", "")[:200] if output else "",
    )


def _write_summary(out: Path, outcomes: list[Outcome], gpu: dict[str, Any] | None, seconds: float) -> None:
    import torch

    failed = [o.name for o in outcomes if o.status in ("failed", "timed out")]
    document = {
        "gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0],
        "seconds": round(seconds, 1), "passed": not failed, "failed": failed, "parts": [asdict(o) for o in outcomes],
    }  # fmt: skip
    (out / "summary.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
