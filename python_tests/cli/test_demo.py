"""`lmcleaner demo --quick --json` from end to end, as a process without a terminal."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lmcleaner_ext.cli import main


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(parsed stdout, stderr, output folder) of one run."""
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-m", "lmcleaner_ext.cli"]
    command += ["demo", "--quick", "--json", "--keep-log", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr, out


@pytest.fixture(scope="module")
def rows(demo):
    return {row["key"]: row for row in demo[0]["rows"]}


def test_rows_and_fixed_points(rows):
    assert list(rows) == ["nothing", "gradient_step", "default", "exact", "retrained"]
    assert rows["nothing"]["residual"] == pytest.approx(1)
    assert rows["nothing"]["kl_ratio"] == pytest.approx(1)
    assert rows["retrained"]["residual"] == pytest.approx(0)
    assert rows["retrained"]["kl_ratio"] == pytest.approx(0, abs=1e-9)


def test_the_default_forgets_and_the_published_recursion_does_not(rows):
    assert rows["default"]["residual"] < 0.4
    assert rows["default"]["kl_ratio"] < 0.2
    assert rows["gradient_step"]["residual"] > 0.95
    assert rows["exact"]["residual"] < 0.1 < rows["default"]["residual"]


def test_losses_move_to_those_of_the_retrained_model(rows):
    target = rows["retrained"]["forget_loss"]
    distance = {key: abs(row["forget_loss"] - target) for key, row in rows.items()}
    assert rows["retrained"]["forget_loss"] > rows["nothing"]["forget_loss"]
    assert distance["default"] < 0.5 * distance["nothing"]
    assert distance["exact"] < 0.1 * distance["nothing"]
    assert abs(rows["default"]["retain_loss"] - rows["retrained"]["retain_loss"]) < 0.05


def test_what_the_rows_cost(demo, rows):
    result = demo[0]
    vector = 2 * result["parameters"]  # fp16
    assert rows["default"]["bytes_read"] >= result["steps"] * vector * 0.5
    assert all(rows[key]["seconds"] > 0 for key in ("gradient_step", "default", "exact", "retrained"))
    assert result["audit"]["mode"] == "none"
    assert result["audit"]["weights_match"] is True
    assert result["audit"]["gradients_computed"] == result["uses"] >= result["forgotten_samples"]


def test_files_and_streams(demo):
    result, stderr, out = demo
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "demo.json").read_text()) == result
    assert (out / "demo.md").read_text().count("\n|") == len(result["rows"]) + 1
    page = (out / "demo.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert result["author"] in page
    assert not any(outside in page for outside in ("<link", "<script", 'src="http'))
    assert "fine-tuning" in stderr
    assert "\x1b[" not in stderr


def test_the_kept_log_is_served_by_inspect(demo, capsys):
    result, _, out = demo
    assert main(["inspect", str(out / "log"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["steps"] == [0, result["steps"]]
    assert summary["parameters"] == result["parameters"]
    assert summary["rule"] == "adam"
    assert summary["dtype"] == "fp16"
    assert summary["vectors"] == ["gradient"]
    assert summary["closed"] is True
    assert summary["anchors"] == [0, 10]
    assert summary["tied"] == 1


def test_an_existing_log_is_not_overwritten(demo, capsys):
    assert main(["demo", "--quick", "--out", str(demo[2])]) == 1
    assert "exists" in capsys.readouterr().err
    assert (demo[2] / "log" / "steps.lmc").exists()
