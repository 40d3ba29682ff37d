"""What `inspect` predicts and measures, against logs that exist."""

import json

import pytest
import torch
from safetensors.torch import save_file

import lmcleaner_ext as lmc
from lmcleaner_ext.cli import main
from support.cases import OPTIMIZERS, epochs, mlp


def inspect(capsys, *arguments):
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("dtype", "vectors", "metadata"), [("fp16", "one", 65536), ("fp32", "both", 5000), ("bf16", "one", 1)]
)
def test_the_estimate_is_the_log(tmp_path, capsys, dtype, vectors, metadata):
    """Ring and anchors as they come to lie on disk, to the byte (an anchor: its header apart)."""
    model = torch.nn.Linear(700, 901)
    optimizer = torch.optim.AdamW(model.parameters())
    log = lmc.TrainingLogger(
        tmp_path / "log", model, optimizer, capacity=30, anchor_every=4, dtype=dtype, metadata_bytes=max(metadata, 2000),
        vectors="both" if vectors == "both" else "auto",
    )  # fmt: skip
    with log:
        for step in range(12):
            log.batch([step])
            model(torch.randn(2, 700)).sum().backward()
            optimizer.step()
    found = inspect(
        capsys, "--parameters", 701 * 901, "--capacity", 30, "--anchor-every", 4, "--dtype", dtype, "--vectors", vectors,
        "--metadata-bytes", max(metadata, 2000), "--disk", tmp_path,
    )  # fmt: skip
    manifest = 8192 + 4096 * -(-len(json.dumps(lmc.StepLog.open(tmp_path / "log").manifest)) // 4096)
    assert found["ring_bytes"] == (tmp_path / "log" / "steps.lmc").stat().st_size - manifest
    anchor = (tmp_path / "log" / "anchors" / "000000000004-000000.safetensors").stat().st_size
    assert found["anchor_bytes"] < anchor < found["anchor_bytes"] + 2000
    assert found["bytes_per_step"] == inspect(capsys, tmp_path / "log")["bytes_per_step"]
    assert found["compression"] == inspect(capsys, tmp_path / "log")["compression"]
    assert found["training_seconds_per_step"] > 0
    assert found["writing_seconds_per_step"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


def test_a_model_folder_is_counted(tmp_path, capsys):
    save_file({"a": torch.zeros(30, 40), "b": torch.zeros(7)}, tmp_path / "model.safetensors")
    assert inspect(capsys, "--model", tmp_path, "--disk", tmp_path)["parameters"] == 1207
    assert inspect(capsys, "--parameters", "1.5K", "--disk", tmp_path)["parameters"] == 1500


@pytest.mark.parametrize(
    "options", [[], ["--parameters", "many"], ["--parameters", "9", "--dtype", "fp1"], ["--model", "x"]]
)
def test_refusals(capsys, options):
    assert main(["inspect", *options]) == 1
    assert "ConfigurationError" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_the_reconstruction_error_is_measured(recorded, capsys, dtype):
    """Nothing is lost in fp32, about a rounding in low precision; and a changed anchor shows."""
    run = recorded(mlp(torch.float32), epochs(48, 8, 12), OPTIMIZERS["adamw"], dtype=dtype, anchor_every=4)
    found = inspect(capsys, run.path, "--measure")
    low, high = {"fp32": (0, 1e-5), "fp16": (1e-7, 2e-3), "bf16": (1e-5, 2e-2)}[dtype]
    assert low <= found["reconstruction_error"] <= high
    assert found["read_gigabytes_per_second"] > 0
    assert main(["inspect", str(run.path), "--measure"]) == 0
    assert "GB/s" in capsys.readouterr().out
