"""docs/log-format.md read by hand: a second reader of the ring in plain Python, which must agree with the native one.

What the format says twice over (sizes that follow from others, padding, reserved bytes) is left to the tests of the native reader.
"""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from lmcleaner_ext._native import Ring
from support.cases import OPTIMIZERS, epochs, mlp
from support.ring_tools import append, contents, create, read_all

# -- the reader: everything down to the next line of this kind, in at most 60 lines ------------------------------------
PAGE, CHUNK, COMMITTED, TABLE = 4096, 1 << 20, 2, 2**64 - 1


def padded(size: int) -> int:
    return -(-size // PAGE) * PAGE


def seed(slot: int, step: int, chunk: int) -> int:
    return xxh3_64_intdigest(struct.pack("<QqQ", slot, step, chunk), 0)


def read_superblock(data: np.ndarray) -> tuple:
    for offset in (0, PAGE):
        block = data[offset : offset + PAGE].tobytes()
        (checksum,) = struct.unpack_from("<Q", block, 4088)
        if block[:8] == b"\x89LMC\r\n\x1a\n" and checksum == xxh3_64_intdigest(block[:4088], offset):
            assert struct.unpack_from("<HHI", block, 8)[0::2] == (1, 0), (
                "another major version, or a feature unknown here"
            )
            return (*struct.unpack_from("<7QI", block, 24), struct.unpack_from("<8Q", block, 144))
    raise ValueError("no intact superblock")


def read_ring(path: Path) -> tuple[bytes, dict[int, tuple[int, bytes, list[bytes]]]]:
    """(manifest, {step: (lineage, metadata, sections)}) of the steps that can be read."""
    data = np.memmap(path, np.uint8, "r")
    slots_offset, stride, slots, capacity, manifest_size, manifest_sum, *room = read_superblock(data)
    metadata_capacity, section_count, section_capacity = room
    manifest = data[2 * PAGE : 2 * PAGE + padded(manifest_size)].tobytes()
    assert xxh3_64_intdigest(manifest, 2 * PAGE) == manifest_sum
    committed = []
    for index in range(slots):
        slot = data[slots_offset + index * stride :][:stride]
        magic, state, lineage, own, generation, step, *sizes = struct.unpack_from("<8sIIQQqQ2I8Q2Q", slot)
        good = magic == b"LMCSLOT\0" and own == index and not slot[512:PAGE].any()
        if (
            good
            and struct.unpack_from("<Q", slot, 504)[0] == xxh3_64_intdigest(slot[:504].tobytes(), index)
            and state == COMMITTED
        ):
            committed.append((generation, step, lineage, index, slot, sizes))
    found: dict[int, tuple[int, bytes, list[bytes]]] = {}
    for _, step, lineage, index, slot, sizes in sorted(committed, key=lambda entry: -entry[0]):
        if len(found) == capacity or (found and step >= min(found)):
            continue
        used, table_size, table_sum = [sizes[0], *sizes[3 : 3 + section_count]], padded(sizes[2] * 8), sizes[11]
        table = slot[PAGE : PAGE + table_size].tobytes()
        assert xxh3_64_intdigest(table, seed(index, step, TABLE)) == table_sum
        parts, offset, chunk = [], PAGE + table_size, 0
        for size, capacity_bytes in zip(used, [metadata_capacity, *section_capacity[:section_count]], strict=True):
            for i in range(0, padded(capacity_bytes), CHUNK):
                part = slot[offset + i : offset + min(i + CHUNK, padded(size))].tobytes()
                if i < size:
                    (expected,) = struct.unpack_from("<Q", table, 8 * chunk)
                    assert xxh3_64_intdigest(part, seed(index, step, chunk)) == expected, f"step {step}, chunk {chunk}"
                chunk += 1
            parts.append(slot[offset : offset + size].tobytes())
            offset += padded(capacity_bytes)
        found[step] = lineage, parts[0], parts[1:]
    return manifest[:manifest_size], dict(sorted(found.items()))


# -- the gradients of tracked samples, from what that reader finds -------------------------------------------------------


def read_tracked(folder: Path) -> dict[tuple, np.ndarray]:
    """{(step, id): [P]} of a log in fp32, fp16 or int8; linear layers that are kept as factors are multiplied out."""
    manifest = json.loads(read_ring(folder / "steps.lmc")[0])
    kind = {"fp32": "<f4", "fp16": "<f2", "int8": "i1"}[manifest["dtype"]]
    shapes = [shape for _, shape, _, tied, trainable, _ in manifest["layout"]["parameters"] if trainable and not tied]
    uses: dict[tuple, list[tuple[dict, np.ndarray]]] = {}
    for _, metadata, (exponents, payload) in read_ring(folder / "samples.lmc")[1].values():
        head, values = json.loads(metadata), np.frombuffer(payload, kind).astype(np.float64)
        if exponents:
            values *= np.exp2(np.frombuffer(exponents, np.uint8) - 127.0).repeat(256)[: len(values)]
        uses.setdefault((head["step"], head["sample_id"]), []).append((head, values))
    return {
        use: multiplied_out(np.concatenate([values for _, values in parts]), shapes, parts[0][0].get("tokens"))
        for use, parts in uses.items()
        if [head.get("part", 0) for head, _ in parts] == list(range(parts[0][0].get("parts", 1)))
    }


def multiplied_out(record: np.ndarray, shapes: list[list[int]], tokens: list[int | None] | None) -> np.ndarray:
    """[P]: the dense parameters stand first, then A and B of each of the others; every A and B begins at a block of 256."""
    if tokens is None:
        return record
    sizes = [int(np.prod(shape)) for shape in shapes]
    at, dense = -(-sum(n for n, t in zip(sizes, tokens, strict=True) if t is None) // 256) * 256, 0
    found = []
    for shape, size, t in zip(shapes, sizes, tokens, strict=True):
        if t is None:
            found.append(record[dense : dense + size])
            dense += size
            continue
        factors = []
        for width in (shape[1], shape[0]):
            factors.append(record[at : at + t * width].reshape(t, width))
            at += -(-t * width // 256) * 256
        found.append((factors[1].T @ factors[0]).reshape(-1))
    assert at == len(record)
    return np.concatenate(found)


# -- the tests ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    sizes=st.lists(st.sampled_from([0, 1, 300, 4096, 5000, CHUNK, CHUNK + 1]), min_size=1, max_size=4),
    capacity=st.integers(1, 5),
    durability=st.sampled_from(["step", "group", "process"]),
    manifest=st.binary(max_size=5000),
    actions=st.lists(st.sampled_from(["append"] * 6 + ["skip", "rewind", "reopen"]), max_size=20),
)
def test_both_readers_agree(tmp_path, sizes, capacity, durability, manifest, actions):
    path = tmp_path / "ring"
    path.unlink(missing_ok=True)
    ring = create(path, section_bytes=sizes, capacity=capacity, durability=durability, manifest=manifest)
    for action in actions:
        if action == "rewind":
            ring.rewind(max(0, ring.last_step - 1))
        elif action == "reopen":
            ring.close()
            ring = Ring.open_write(str(path))
        else:
            append(ring, ring.last_step + 1 + (action == "skip"), ring.lineage, sizes)
    reader = Ring.open_read(str(path))
    found_manifest, found = read_ring(path)
    assert found_manifest == reader.manifest() == manifest
    assert list(found) == read_all(reader, sizes)
    assert [lineage for lineage, _, _ in found.values()] == [lineage for _, _, _, lineage in reader.refresh()]
    for step, (_, metadata, sections) in found.items():
        assert metadata == f"step {step}".encode()
        assert sections == [part.tobytes() for part in contents(step, sizes)]


@pytest.mark.parametrize("place", ["header", "table", "metadata", "contents"])
def test_the_second_reader_checks_too(tmp_path, place):
    path = tmp_path / "ring"
    ring = create(path)
    append(ring, 0)
    offset = ring.file_bytes - ring.slots * ring.slot_bytes
    offset += {"header": 40, "table": PAGE, "metadata": 2 * PAGE, "contents": ring.slot_bytes - PAGE}[place]
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    if place == "header":
        assert read_ring(path)[1] == {}
    else:
        with pytest.raises(AssertionError):
            read_ring(path)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("options", [{}, {"sample_tokens": 2}, {"sample_tokens": 1, "sample_capacity": 15}])
def test_tracked_gradients(recorded, dtype, options):
    """Two tokens per sample, for this loss runs the model twice: with slots for one the gradients lie in two, of which some are gone."""
    task = mlp(torch.float32, hidden=200)

    def loss_fn(model, batch):
        return task.losses(model, batch) + task.losses(model, batch | {"inputs": 2 * batch["inputs"]})

    run = recorded(task, epochs(48, 8, 4), OPTIMIZERS["adamw"], dtype=dtype, loss_fn=loss_fn,
                   mode="sample", track_ids=range(20), **options)  # fmt: skip
    log, found = run.log(), read_tracked(run.path)
    assert list(found) == log.tracked_uses()
    assert len(found) == (7 if "sample_capacity" in options else sum(i < 20 for b in run.schedule.batches for i in b))
    for use, expected in found.items():
        own = log.sample_window([use]).decode(0, torch.float64).numpy()
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
