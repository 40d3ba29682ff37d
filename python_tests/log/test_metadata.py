"""StepRecord to bytes and back, and what hostile bytes do."""

import contextlib
import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmcleaner_ext.errors import ConfigurationError, LogFormatError
from lmcleaner_ext.log import StepRecord
from lmcleaner_ext.log.record import decode_metadata, encode_metadata, normalize_ids, weights_array

integers = st.integers(-(2**63), 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
identities = st.one_of(integers, st.text(max_size=12))
plain = st.one_of(
    st.none(), st.booleans(), finite, st.integers(-(2**53), 2**53), st.text(max_size=8), st.lists(finite, max_size=2)
)


@st.composite
def records(draw):
    ids = tuple(draw(st.one_of(st.lists(integers, max_size=8), st.lists(identities, max_size=8))))
    clip = draw(st.one_of(st.none(), st.tuples(finite, finite, finite)))
    return StepRecord(
        step=draw(st.integers(0, 2**62)),
        groups=tuple(draw(st.lists(st.dictionaries(st.text(max_size=8), plain, max_size=5), min_size=1, max_size=3))),
        batch_id=draw(identities),
        sample_ids=ids,
        weights=np.array(draw(st.lists(finite, min_size=len(ids), max_size=len(ids))), dtype=np.float64),
        clip_norm=clip and clip[0],
        max_norm=clip and clip[1],
        clip_factor=clip[2] if clip else 1.0,
        loss_normalizer=draw(st.one_of(st.none(), finite)),
        absent=tuple(draw(st.lists(st.integers(0, 1000), max_size=4))),
        lineage=draw(st.integers(0, 1000)),
    )


@given(records())
def test_round_trip(record):
    back = decode_metadata(encode_metadata(record), record.lineage)
    np.testing.assert_array_equal(back.weights, record.weights)
    fields = "step groups batch_id sample_ids clip_norm max_norm clip_factor loss_normalizer absent lineage"
    for name in fields.split():
        assert getattr(back, name) == getattr(record, name), name
    assert [type(i) for i in back.sample_ids] == [type(i) for i in record.sample_ids]


@given(records(), st.data())
def test_cut_bytes_are_a_named_error(record, data):
    whole = encode_metadata(record)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(LogFormatError):
        decode_metadata(whole[:cut], 0)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_named_error(data):
    with contextlib.suppress(LogFormatError):
        decode_metadata(data, 0)


@pytest.mark.parametrize(
    "head",
    [
        [],
        3,
        None,
        {},
        {"samples": -1},
        {"samples": 10**12, "ids": None},
        {"samples": 2, "ids": ["a"]},
        {"samples": 1, "ids": "xy"},
        "nested",
    ],
)
def test_a_hostile_head(head):
    text = json.dumps(head).encode() if head != "nested" else b"[" * 100_000
    with pytest.raises(LogFormatError):
        decode_metadata(struct.pack("<I", len(text)) + text + bytes(64), 0)


def test_ids_as_users_give_them():
    assert normalize_ids([1, "a", np.int64(3), torch.tensor(4)]) == (1, "a", 3, 4)
    assert normalize_ids(torch.tensor([[5, 6], [7, 8]])) == (5, 6, 7, 8)
    assert normalize_ids(np.array(["x", "y"])) == ("x", "y")
    assert normalize_ids(9) == normalize_ids(np.int64(9)) == normalize_ids(torch.tensor(9)) == (9,)
    assert normalize_ids([np.array(3), "né"]) == (3, "né")
    assert normalize_ids("name") == ("name",)
    assert normalize_ids(range(3)) == (0, 1, 2)
    for wrong in ([True], [1.0], [None], torch.tensor([1.5]), [b"bytes"], [(1, 2)]):
        with pytest.raises(ConfigurationError, match="an id is"):
            normalize_ids(wrong)
    for wrong in (b"bytes", bytearray(2), None, 1.5, object()):
        with pytest.raises(ConfigurationError, match="ids are"):
            normalize_ids(wrong)
    for wrong in ([[1]], [torch.tensor([1, 2])], [np.array([1])], {2.5: 1}, np.array([1j]), torch.tensor([True])):
        with pytest.raises(ConfigurationError, match="an id is"):
            normalize_ids(wrong)
    with pytest.raises(ConfigurationError, match="Unicode"):
        normalize_ids(["\ud800"])
    for wrong in ([2**63], [-(2**63) - 1], np.array([2**63], dtype=np.uint64)):
        with pytest.raises(ConfigurationError, match="64 bits"):
            normalize_ids(wrong)


def test_weights_as_users_give_them():
    for given_weights in ([0.25, 0.75], (0.25, 0.75), torch.tensor([0.25, 0.75]), np.array([0.25, 0.75])):
        np.testing.assert_array_equal(weights_array(given_weights, 2), [0.25, 0.75])
    assert weights_array(None, 2) is None
    with pytest.raises(ConfigurationError, match="one weight per id"):
        weights_array([1.0], 2)
    for wrong in ("ab", [object()], [[1], [1, 2]], torch.ones(2, dtype=torch.complex64)):
        with pytest.raises(ConfigurationError, match="one number per sample id"):
            weights_array(wrong, 2)
    for wrong in ([0.5, float("nan")], [0.5, None], torch.tensor([0.5, float("inf")])):
        with pytest.raises(ConfigurationError, match="finite"):
            weights_array(wrong, 2)
