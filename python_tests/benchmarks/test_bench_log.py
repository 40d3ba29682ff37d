"""benchmarks/bench_log.py as a user runs it; its figures are the machine's, its form is ours."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_log.py"


def test_the_parts_without_training(tmp_path):
    (tmp_path / "work").mkdir()
    options = [
        "--quick",
        "--json",
        "--part",
        "disk",
        "--part",
        "find",
        "--out",
        tmp_path / "out",
        "--workdir",
        tmp_path / "work",
    ]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, options)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "out").read_text())
    assert [r["name"] for r in report["results"]] == [
        "write",
        "read, cold",
        "read, streamed",
        "find",
        "find, unknown id",
    ]
    for result in report["results"]:
        assert result["value"] > 0
        assert result["met"] == (
            result["value"] >= result["limit"] if result["unit"] == "share" else result["value"] <= result["limit"]
        )
    assert list((tmp_path / "work").iterdir()) == []
