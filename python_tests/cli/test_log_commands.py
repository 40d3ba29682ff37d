"""`lmcleaner log`: verify finds what was damaged and nothing else, export agrees with safetensors, scrub says what it did."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch
from safetensors import safe_open

import lmcleaner_ext as lmc
from lmcleaner_ext.cli import main
from support.cases import OPTIMIZERS, epochs, mlp

TASK = mlp(torch.float32, hidden=40)
STEPS = 6


@pytest.fixture
def run(recorded):
    return recorded(
        TASK, epochs(48, 8, STEPS), OPTIMIZERS["adamw"], capacity=20, anchor_every=3, dtype="fp16", vectors="both",
        mode="sample", track_ids=[1, 2], metadata_bytes=4096,
    )  # fmt: skip


def command(capsys, *arguments):
    code = main(["log", *map(str, arguments), "--json"])
    shown = capsys.readouterr()
    return code, json.loads(shown.out) if shown.out else None, shown.err


def damaged(report):
    return [(f["part"], f["name"]) for f in report["findings"] if f["error"]]


def test_a_good_log(run, capsys):
    code, report, _ = command(capsys, "verify", run.path)
    assert code == 0
    assert damaged(report) == []
    checked = [f["part"] for f in report["findings"]]
    assert checked.count("step") == STEPS
    assert checked.count("tracked gradient") == len(run.schedule.uses([1])) + len(run.schedule.uses([2]))
    assert checked.count("anchor") == 3
    assert main(["log", "verify", str(run.path), "--all"]) == 0
    assert "0 damaged" in capsys.readouterr().out


def test_every_byte_that_counts_is_checked(run, capsys, tmp_path):
    """A bit flipped anywhere in what a step, an anchor or the index holds is reported under its own name, and alone."""
    generator = random.Random(3)
    log = run.log()
    payload = (
        (run.path / "steps.lmc")
        .read_bytes()
        .index(bytes(log.window([4], "gradient")[0].payload.view(torch.uint8).numpy()))
    )
    scale = (run.path / "steps.lmc").read_bytes().index(b'"step":2')
    anchor = log.anchors()[1].path
    places = [("steps.lmc", payload + generator.randrange(2 * log.layout.size), ("step", "4")) for _ in range(5)]
    places += [("steps.lmc", scale, ("step", "2"))]
    places += [
        (f"anchors/{anchor.name}", anchor.stat().st_size - 1 - generator.randrange(2000), ("anchor", anchor.name))
    ]
    places += [("uses.bin", generator.randrange(9 * 24 * (STEPS - 1)), ("uses", "uses.bin"))]
    places += [("steps.lmc", 4096 + 100, ("superblock", "steps.lmc"))]
    for file, offset, name in places:
        copy = tmp_path / "copy"
        shutil.copytree(run.path, copy)
        with open(copy / file, "r+b") as opened:
            opened.seek(offset)
            byte = opened.read(1)[0]
            opened.seek(offset)
            opened.write(bytes([byte ^ 1 << generator.randrange(8)]))
        code, report, err = command(capsys, "verify", copy)
        assert (code, damaged(report)) == (1, [name])
        assert "1 of" in err
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("option", "steps"), [([], range(6)), (["--steps", "2:4"], range(2, 4)), (["--steps", "5"], [5])]
)
def test_export(run, capsys, tmp_path, option, steps):
    out = tmp_path / "out.safetensors"
    code, report, _ = command(capsys, "export", run.path, out, *option)
    assert (code, report["steps"], report["bytes"]) == (0, list(steps), out.stat().st_size)
    assert out.stat().st_mode & 0o777 == 0o600
    log = run.log()
    with safe_open(out, framework="pt") as file:
        assert set(file.keys()) == {f"{t}.{vector}" for t in steps for vector in ("update", "gradient")}
        for t in steps:
            assert torch.equal(file.get_tensor(f"{t}.update"), log[t].update())
            assert torch.equal(file.get_tensor(f"{t}.gradient"), log[t].gradient())
        described = json.loads(file.metadata()["steps"])
    assert [described[str(t)]["sample_ids"] for t in steps] == [list(run.schedule.batches[t]) for t in steps]
    assert main(["log", "export", str(run.path), str(out)]) == 1
    assert "FileInTheWayError" in capsys.readouterr().err


def test_a_failed_export_leaves_no_file(run, capsys, tmp_path):
    log = run.log()
    data = (run.path / "steps.lmc").read_bytes()
    at = data.index(bytes(log.window([4], "gradient")[0].payload.view(torch.uint8).numpy()))
    (run.path / "steps.lmc").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    code, _, err = command(capsys, "export", run.path, tmp_path / "out")
    assert (code, (tmp_path / "out").exists()) == (1, False)
    assert "step 4" in err


def test_scrub(run, capsys, tmp_path):
    arguments = ["scrub", run.path, "--ids", "1,2", "--audit-log", tmp_path / "audit"]
    code, planned, _ = command(capsys, *arguments, "--dry-run")
    assert code == 0
    assert run.log().scrubbed == frozenset()
    code, done, _ = command(capsys, *arguments)
    assert code == 0
    assert done["steps"] == planned["steps"] == run.schedule.uses([1, 2])
    assert lmc.AuditLog(tmp_path / "audit").verify() == 2
    code, report, _ = command(capsys, "verify", run.path)
    assert (code, report["damaged"]) == (0, 0)
    assert report["scrubbed"] == len(done["steps"]) + done["tracked"]
    code, exported, _ = command(capsys, "export", run.path, tmp_path / "out")
    assert set(exported["steps"]) == set(range(STEPS)) - set(done["steps"])


@pytest.mark.parametrize(
    "arguments", [["scrub", "LOG"], ["scrub", "LOG", "--steps", "4:99"], ["export", "LOG", "OUT", "--steps", "x"]]
)
def test_refusals(run, capsys, tmp_path, arguments):
    places = {"LOG": str(run.path), "OUT": str(tmp_path / "out")}
    assert main(["log", *(places.get(a, a) for a in arguments)]) == 1
    assert "ConfigurationError" in capsys.readouterr().err
