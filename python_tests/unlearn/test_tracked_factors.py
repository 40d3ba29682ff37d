"""sample_tokens: tracked gradients kept as factors serve every deletion as the dense ones do, keep the ring's promises, take less space."""

import copy
import json
import random
from dataclasses import replace

import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext._native import Ring
from lmcleaner_ext.cli import main
from lmcleaner_ext.engine.removal import step_removals
from lmcleaner_ext.engine.sweep import sweep
from lmcleaner_ext.errors import (
    ConfigurationError,
    LogCorruptError,
    LogFormatError,
    LogWriteError,
    MissingDataError,
)
from lmcleaner_ext.log.integrity import summary, verify_log
from lmcleaner_ext.log.tracked import RecordLayout
from lmcleaner_ext.replay import window
from lmcleaner_ext.replay.device_panels import DevicePanels
from support.cases import OPTIMIZERS, VOCABULARY, counterfactual, epochs, flat, mlp, rho, train
from support.tolerances import FP16_PENALTY

TASK = mlp(hidden=200)  # 200 x 10 and 4 x 200: the factors of one token take four blocks
DENSE = {"mode": "sample", "track_ids": range(20), "sample_capacity": 200}
FACTORS = {**DENSE, "sample_tokens": 1}
LENGTH = 8


def short_rows(llama, dtype=torch.float64):
    """The small Llama on sequences of 8 tokens, of which 7 have a loss."""
    task = llama.task(dtype)
    return replace(task, data=lambda ids: {"input_ids": llama.rows[ids][:, :LENGTH]})


def uses_of(run):
    return [(t, i) for t, batch in enumerate(run.schedule.batches) for i in batch if i < 20]


@pytest.mark.parametrize(
    ("mode", "convention", "clip"),
    [("none", "placeholder", 0.1), ("none", "renormalize", None), ("diag", "placeholder", None), ("diag", "skip", 0.1)],
)
@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_a_deletion_is_the_same(recorded, name, mode, convention, clip):
    """Against dense storage, and against gradients recomputed from the data."""
    schedule = epochs(48, 8, 10, clip=clip, micro_batches=2)
    dense, factors = (recorded(TASK, schedule, OPTIMIZERS[name], **options) for options in (DENSE, FACTORS))
    assert torch.equal(factors.theta, dense.theta)
    options = {"hessian_mode": mode, "counterfactual": convention}
    if mode == "diag":
        options["diagonal"] = torch.full((dense.log().layout.size,), 0.1, dtype=torch.float64)
    ids = [3, 17, 8]
    from_dense, from_factors = (lmc.compute_correction(None, run.path, ids, **options) for run in (dense, factors))
    bound = {"rtol": 1e-8, "atol": 1e-8 * float(from_dense.abs().max())}
    torch.testing.assert_close(from_factors, from_dense, **bound)
    (factors.path / "samples.lmc").unlink()
    from_data = lmc.compute_correction(factors.model, factors.path, ids, **options, **factors.options)
    torch.testing.assert_close(from_factors, from_data, **bound)


def test_fisher_and_a_mixture_with_untracked(recorded):
    schedule = epochs(48, 8, 10)
    runs = [recorded(TASK, schedule, OPTIMIZERS["sgd"], **options) for options in (DENSE, FACTORS)]
    for ids, mode in (([3, 17], "fisher"), ([3, 40, 17, 41], "none")):
        dense, factors = (lmc.compute_correction(r.model, r.path, ids, hessian_mode=mode, **r.options) for r in runs)
        torch.testing.assert_close(factors, dense, rtol=1e-8, atol=1e-8 * float(dense.abs().max()))


@pytest.mark.parametrize("tokens", [LENGTH, 3])
def test_a_llama_against_retraining(recorded, llama, tokens):
    """Slots for 8 tokens hold these samples, slots for 3 do not: their records lie in several. Nothing else differs."""
    task, schedule = short_rows(llama), epochs(40, 8, 15)
    runs = [
        recorded(task, schedule, OPTIMIZERS["adamw"], **DENSE, **options) for options in ({}, {"sample_tokens": tokens})
    ]
    log = runs[1].log()
    assert all(log.tracks(*use) for use in uses_of(runs[1]))
    parts = {len(log._tracked[use].slots) for use in uses_of(runs[1])}
    assert parts == ({1} if tokens == LENGTH else {2})
    for use in uses_of(runs[1])[::7]:
        exact, found = (run.log().sample_window([use]).decode(0, torch.float64) for run in runs)
        assert float((found - exact).norm()) <= 1e-13 * float(exact.norm())
    ids = [3, 17]
    dense, factors = (lmc.compute_correction(None, run.path, ids, hessian_mode="none") for run in runs)
    torch.testing.assert_close(factors, dense, rtol=1e-7, atol=1e-9 * float(dense.abs().max()))
    ideal = flat(runs[1].retrained(**counterfactual(ids, {}))[0])
    assert rho(runs[1].theta - factors, ideal, runs[1].theta) == pytest.approx(
        rho(runs[0].theta - dense, ideal, runs[0].theta), abs=1e-6
    )


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8", "fp8"])
def test_in_low_precision(recorded, llama, dtype):
    """rho against retraining is at most FP16_PENALTY above that of dense storage in the same format."""
    task, schedule, ids = short_rows(llama, torch.float32), epochs(40, 8, 15), [3, 17]
    residuals = []
    for options in ({}, {"sample_tokens": LENGTH}):
        run = recorded(task, schedule, OPTIMIZERS["adamw"], dtype=dtype, **DENSE, **options)
        ideal = flat(run.retrained(**counterfactual(ids, {}))[0])
        deviation = lmc.compute_correction(None, run.path, ids, hessian_mode="none")
        residuals.append(rho(run.theta - deviation, ideal, run.theta))
    assert residuals[1] <= residuals[0] + FP16_PENALTY


@pytest.mark.parametrize("path", ["pieces", "past the cache", "device"])
def test_every_path_of_the_engine(recorded, monkeypatch, path):
    """Matrices are multiplied panel by panel, with bounds anywhere within a row; a device (here: the CPU) gets them as they are."""
    run = recorded(mlp(torch.float32, hidden=300), epochs(48, 8, 6), OPTIMIZERS["adamw"], dtype="fp32", **FACTORS)
    log = run.log()
    removal = step_removals(log, {i for _, i in uses_of(run)[:3]}, "sample", None)
    whole = sweep(log, removal).delta
    assert float(whole.norm()) > 0
    if path == "pieces":
        monkeypatch.setattr(window, "CHUNK_BYTES", 4 * 256)
        monkeypatch.setattr(window, "_kernel_verifies", lambda dtype: False)
    elif path == "past the cache":
        monkeypatch.setattr("lmcleaner_ext.replay.panels.ENOUGH_RESIDENT", 2.0)
    with DevicePanels(torch.device("cpu")) as panels:
        found = sweep(log, removal, through=panels if path == "device" else None).delta
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6 * float(whole.abs().max()))


def test_the_space_it_takes(recorded):
    """Of a wide classifier: as the shapes say. 10 x 3000 and 3000 x 4, 1 token."""
    task, schedule = mlp(torch.float32, hidden=3000), epochs(48, 8, 2)
    runs = [recorded(task, schedule, OPTIMIZERS["adamw"], dtype="fp16", **options) for options in (DENSE, FACTORS)]
    size = 10 * 3000 + 3000 + 3000 * 4 + 4
    factors = 3004 + (10 + 3000) + (3000 + 4)  # and each of five in whole blocks
    rings = [Ring.open_read(str(run.path / "samples.lmc")) for run in runs]
    assert rings[0].section_bytes[1] == 2 * size
    assert 2 * factors <= rings[1].section_bytes[1] <= 2 * (factors + 5 * 256)
    pages = 3  # header, checksum table, metadata
    for ring in rings:
        assert ring.slot_bytes == 4096 * (pages + sum(-(-n // 4096) for n in ring.section_bytes))
    ratio = rings[0].section_bytes[1] / rings[1].section_bytes[1]
    assert 4.4 < ratio < size / factors
    log = runs[1].log()
    assert sum(v.nbytes for v in log.sample_window(log.tracked_uses())) == len(log.tracked_uses()) * sum(
        rings[1].section_bytes
    )


def test_a_small_ring_forgets_whole_gradients(recorded, llama):
    """Records of two slots in a ring that wraps: what is left of an overwritten one is not used, and is scrubbed with it."""
    task = short_rows(llama)
    options = {**DENSE, "sample_capacity": 15, "sample_tokens": 3}
    run = recorded(task, epochs(40, 8, 15), OPTIMIZERS["adamw"], **options)
    log = run.log()
    uses = uses_of(run)
    assert log.tracked_uses() == uses[-7:]
    torn = uses[-8]
    assert len(log._tracked[torn].slots) == 1
    with pytest.raises(MissingDataError):
        log.sample_window([torn])
    own = bytes(log._samples.metadata(*log._tracked[torn].slots[0][:2]))
    log.close()
    assert own in (run.path / "samples.lmc").read_bytes()
    assert lmc.scrub(run.path, [torn[1]], tracked_only=True).tracked % 2 == 1
    assert own not in (run.path / "samples.lmc").read_bytes()
    assert torn[1] not in {i for _, i in run.log().tracked_uses()}


def test_scrub(recorded, llama):
    """Nothing of the sample's factors is left in the file: neither inputs nor gradients of outputs."""
    run = recorded(short_rows(llama), epochs(40, 8, 15), OPTIMIZERS["adamw"], **{**DENSE, "sample_tokens": 3})
    log = run.log()

    def traces(use):
        vector = log.sample_window([use])[0]
        index = max(i for i, t in enumerate(vector.record.tokens) if t is not None)
        return [part.payload[:32].numpy().tobytes() for part in vector._parts] + [
            factor[-1].numpy().tobytes() for factor in vector.factors(index)
        ]

    gone, stays = ([use for use in uses_of(run) if use[1] == i] for i in (3, 17))
    traces_gone, traces_stay = ([x for use in uses for x in traces(use)] for uses in (gone, stays))
    expected = lmc.compute_correction(None, run.path, [17], hessian_mode="none")
    log.close()
    assert lmc.scrub(run.path, [3], tracked_only=True).tracked == 2 * len(gone)
    data = (run.path / "samples.lmc").read_bytes()
    assert not any(x in data for x in traces_gone)
    assert all(x in data for x in traces_stay)
    assert torch.equal(lmc.compute_correction(None, run.path, [17], hessian_mode="none"), expected)
    found = list(verify_log(run.log()))
    assert (summary(found)["damaged"], summary(found)["scrubbed"]) == (0, 2 * len(gone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # the kernel verifies the steps itself, or not
def test_any_flipped_bit_is_found(recorded, llama, dtype):
    """In factors and dense values of a use: the request is refused, the weights stay; verify names the slot, and others read."""
    run = recorded(short_rows(llama, dtype), epochs(40, 8, 15), OPTIMIZERS["adamw"], **{**DENSE, "sample_tokens": 3})
    log, generator = run.log(), random.Random(4)
    use = next(use for use in uses_of(run) if use[1] == 3)
    parts = log.sample_window([use])[0]._parts
    original = (run.path / "samples.lmc").read_bytes()
    numbers = [number for _, _, number in log._tracked[use].slots]
    log.close()
    weights = flat(run.model)
    for _ in range(4):
        which = generator.randrange(2)
        begin = original.index(parts[which].payload.numpy().tobytes())
        at = begin + generator.randrange(parts[which].payload.nbytes)
        altered = bytearray(original)
        altered[at] ^= 1 << generator.randrange(8)
        (run.path / "samples.lmc").write_bytes(altered)
        with pytest.raises(LogCorruptError):
            lmc.unlearn(run.model, run.path, [3], hessian_mode="none")
        assert torch.equal(flat(run.model), weights)
        damaged = [(f.part, f.name) for f in verify_log(run.log()) if f.error]
        assert damaged == [("tracked gradient", str(numbers[which]))]
        lmc.compute_correction(None, run.path, [17], hessian_mode="none")


def test_damaged_metadata_untracks_one_use(recorded):
    """Whose gradient it was cannot be told: that use is recomputed from the data or refused, the others are as before."""
    run = recorded(TASK, epochs(48, 8, 10), OPTIMIZERS["adamw"], **FACTORS)
    expected = lmc.compute_correction(None, run.path, [3], hessian_mode="none")
    use = next(use for use in uses_of(run) if use[1] == 3)
    path, name = run.path / "samples.lmc", f'{{"step":{use[0]},"sample_id":3,'.encode()
    data = path.read_bytes()
    path.write_bytes(data.replace(name, name.replace(b'"step"', b'"stop"')))
    with pytest.raises(MissingDataError, match=f"step {use[0]}"):
        lmc.compute_correction(None, run.path, [3], hessian_mode="none")
    assert run.log().tracked_uses() == [u for u in uses_of(run) if u != use]
    found = lmc.compute_correction(run.model, run.path, [3], hessian_mode="none", **run.options)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    assert [f.part for f in verify_log(run.log()) if f.error] == ["tracked gradient"]


@pytest.mark.parametrize(
    "tokens",
    [
        [1, None, 1],  # too few
        [30, None, 1, None],  # not as many elements as there are
        [-1, None, 1, None],
        [1, 1, 1, None],  # a bias as factors
        [10**9, None, 10**9, None],
        "many",
        [None, [1], None, None],
    ],
)
def test_metadata_that_contradicts_the_contents(recorded, tmp_path, tokens):
    """With every checksum right: LogFormatError before anything is allocated or multiplied."""
    run = recorded(TASK, epochs(48, 8, 4), OPTIMIZERS["adamw"], **FACTORS)
    original, path = Ring.open_read(str(run.path / "samples.lmc")), run.path / "samples.lmc"
    altered = Ring.create(
        str(tmp_path / "ring"), original.manifest(), original.section_bytes, original.capacity,
        durability=original.durability, metadata_bytes=original.metadata_bytes, run_uuid=original.run_uuid,
        fingerprint=original.fingerprint,
    )  # fmt: skip
    for number, slot, generation, lineage in original.refresh():
        head = json.loads(bytes(original.metadata(slot, generation))) | {"tokens": tokens}
        places = [original.section(slot, generation, k) for k in range(2)]
        altered.append(number, lineage, json.dumps(head).encode(), places)
    altered.close()
    (tmp_path / "ring").rename(path)
    weights = flat(run.model)
    with pytest.raises(LogFormatError):
        lmc.unlearn(run.model, run.path, [uses_of(run)[0][1]], hessian_mode="none")
    assert torch.equal(flat(run.model), weights)


def test_a_write_that_fails_between_two_parts(tmp_path, llama):
    """LogWriteError, the steps before stand with their gradients; the resumed log drops the half gradient and takes it again."""
    task, schedule = short_rows(llama), epochs(40, 8, 12)
    options = {
        **DENSE,
        "sample_tokens": 3,
        "loss_fn": task.loss_fn,
        "dtype": "fp32",
        "anchor_every": 4,
        "durability": "process",
    }
    model = task.build()
    optimizer = OPTIMIZERS["adamw"](model)
    log = lmc.TrainingLogger(tmp_path / "log", model, optimizer, **options).attach()
    train(task, schedule.until(4), OPTIMIZERS["adamw"], model=model, optimizer=optimizer, logger=log, inputs=True)
    log.drain()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    ring, taken = log._writer._writer.samples, []

    class Failing:
        """The ring, until its second append."""

        def __getattr__(self, name):
            return getattr(ring, name)

        def append(self, *arguments):
            if taken:
                raise LogWriteError("the disk is gone")
            taken.append(ring.append(*arguments))

    log._writer._writer.samples = Failing()
    train(
        task, schedule.until(5), OPTIMIZERS["adamw"], model=model, optimizer=optimizer, logger=log, start=4, inputs=True
    )
    with pytest.raises(LogWriteError, match="the disk is gone"):
        log.close()
    read = lmc.StepLog.open(tmp_path / "log")
    assert read.steps == range(4)
    before = [(t, i) for t in range(4) for i in schedule.batches[t] if i < 20]
    assert read.tracked_uses() == before
    half = read._tracked[4, next(i for i in schedule.batches[4] if i < 20)]
    assert len(half.slots) == 1
    assert half.parts == 2
    read.close()
    model = task.build()
    model.load_state_dict(saved[0])
    optimizer = OPTIMIZERS["adamw"](model)
    optimizer.load_state_dict(saved[1])
    with lmc.TrainingLogger(tmp_path / "log", model, optimizer, resume=True, **options) as log:
        assert log.step == 4
        train(task, schedule, OPTIMIZERS["adamw"], model=model, optimizer=optimizer, logger=log, start=4, inputs=True)
    read = lmc.StepLog.open(tmp_path / "log")
    assert read.tracked_uses() == [(t, i) for t in range(12) for i in schedule.batches[t] if i < 20]
    tracked = lmc.compute_correction(None, read, [3, 17], hessian_mode="none")
    from_data = lmc.compute_correction(
        model, strip_samples(tmp_path), [3, 17], hessian_mode="none", data=task.data, loss_fn=task.loss_fn
    )
    torch.testing.assert_close(tracked, from_data, rtol=1e-7, atol=1e-9 * float(from_data.abs().max()))


def strip_samples(tmp_path):
    (tmp_path / "log" / "samples.lmc").unlink()
    return tmp_path / "log"


def test_resume_takes_the_ring_as_it_is(tmp_path):
    options = {**FACTORS, "loss_fn": TASK.loss_fn}
    model = TASK.build()
    optimizer = OPTIMIZERS["adamw"](model)
    lmc.TrainingLogger(tmp_path / "log", model, optimizer, **options).attach().close()
    for changed, message in (
        ({"sample_tokens": 2}, "sample_tokens=1, found 2"),
        ({"sample_tokens": None}, "sample_tokens=1, found None"),
        ({"track_ids": ["x" * 5000]}, "longer ids"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            lmc.TrainingLogger(tmp_path / "log", model, optimizer, resume=True, **(options | changed))
    lmc.TrainingLogger(tmp_path / "log", model, optimizer, resume=True, **options).close()
    lmc.TrainingLogger(tmp_path / "plain", model, optimizer).attach().close()
    with pytest.raises(ConfigurationError, match="without track_ids"):
        lmc.TrainingLogger(tmp_path / "plain", model, optimizer, resume=True, **options)


@pytest.mark.parametrize("options", [{"sample_tokens": 4}, {**FACTORS, "sample_tokens": 0}])
def test_options(tmp_path, options):
    model = TASK.build()
    with pytest.raises(ConfigurationError, match="sample_tokens"):
        lmc.TrainingLogger(tmp_path / "log", model, OPTIMIZERS["adamw"](model), **options)


def test_inspect_shows_the_sizes(recorded, llama, capsys):
    run = recorded(short_rows(llama), epochs(40, 8, 6), OPTIMIZERS["adamw"], **{**DENSE, "sample_tokens": 3})
    assert main(["inspect", str(run.path), "--json"]) == 0
    tracked = json.loads(capsys.readouterr().out)["tracked"]
    ring = Ring.open_read(str(run.path / "samples.lmc"))
    assert tracked["uses"] == len(uses_of(run))
    assert tracked["sample_tokens"] == 3
    assert tracked["bytes_per_use"] == 2 * sum(ring.section_bytes)
    assert tracked["slots"] == ring.capacity
    assert main(["inspect", str(run.path)]) == 0
    assert "factors of 3 tokens" in capsys.readouterr().out


def test_a_long_sample_is_dense(recorded, llama):
    """24 tokens through layers of 32 x 32 and 32 x 64: no factors are smaller, all is stored as it is, in several slots."""
    task = llama.task()
    run = recorded(task, epochs(40, 8, 2), OPTIMIZERS["adamw"], **DENSE, sample_tokens=2)
    other = recorded(task, epochs(40, 8, 2), OPTIMIZERS["adamw"], **DENSE)
    use = uses_of(run)[0]
    one = run.log().sample_window([use])[0]
    assert set(one.record.tokens) == {None}
    assert one.record.size == RecordLayout.expected(run.log().layout, {}, 2).size
    assert len(one._parts) > 1
    exact = other.log().sample_window([use]).decode(0, torch.float64)
    assert float((one.payload - exact).norm()) <= 1e-13 * float(exact.norm())
    assert one.record.layout.entries[0].end == VOCABULARY * 32
