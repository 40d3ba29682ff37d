"""A log whose vectors are shorter than its layout, every checksum right: refused before a kernel reads past their end."""

import shutil

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext._native import Ring
from lmcleaner_ext.errors import LogFormatError
from support.cases import OPTIMIZERS, epochs, mlp


@pytest.mark.parametrize("section", [0, 1])  # block exponents, payload
@pytest.mark.parametrize("ring", ["steps.lmc", "samples.lmc"])
def test_short_vectors_are_refused(recorded, tmp_path, ring, section):
    tracked = {"mode": "sample", "track_ids": [3], "sample_capacity": 8}
    run = recorded(mlp(torch.float32, hidden=100), epochs(48, 8, 4), OPTIMIZERS["adamw"], dtype="fp16", **tracked)
    altered = tmp_path / "altered"
    shutil.copytree(run.path, altered)
    (altered / ring).unlink()
    original = Ring.open_read(str(run.path / ring))
    writer = Ring.create(
        str(altered / ring), original.manifest(), original.section_bytes, original.capacity,
        durability=original.durability, metadata_bytes=original.metadata_bytes, run_uuid=original.run_uuid,
        fingerprint=original.fingerprint,
    )  # fmt: skip
    for step, slot, generation, lineage, *_ in original.refresh():
        places = [original.section(slot, generation, k) for k in range(len(original.section_bytes))]
        places[section] = (places[section][0], places[section][1] // 2)
        writer.append(step, lineage, bytes(original.metadata(slot, generation)), places)
    writer.close()
    weights = [p.clone() for p in run.model.parameters()]
    with pytest.raises(LogFormatError, match="layout needs"):
        lmc.unlearn(run.model, altered, [3], hessian_mode="none")
    assert all(torch.equal(a, b) for a, b in zip(weights, run.model.parameters(), strict=True))
