"""A vector in parts, encoded in one pass, against the same vector joined first."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcleaner_ext import ops
from lmcleaner_ext.errors import NumericalError
from lmcleaner_ext.ops.recording import average_parts_, encode_parts, encode_parts_difference_

SIZES = st.lists(st.sampled_from([0, 1, 3, 255, 256, 257, 5000, 16383, 16384, 40000]), min_size=1, max_size=8)


def room(n, dtype):
    like_payload, like_scales = ops.encode(torch.zeros(n), dtype)
    return torch.empty_like(like_payload), torch.full_like(like_scales, 9)


@settings(max_examples=25)
@given(SIZES, st.integers(0, 7), st.sampled_from(["fp16", "bf16", "fp32", "int8", "fp8"]), st.sampled_from([1, 2]))
def test_parts_are_encoded_as_the_whole(sizes, absent, dtype, threads):
    generator = torch.Generator().manual_seed(len(sizes))
    parts = [torch.randn(n, generator=generator) * 10.0**-k for k, n in enumerate(sizes)]
    whole = torch.cat([torch.zeros_like(p) if k == absent else p for k, p in enumerate(parts)])
    out = room(len(whole), dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        encode_parts([None if k == absent else p for k, p in enumerate(parts)], sizes, dtype, out)
        shadow = torch.randn(len(whole), generator=generator) * 1e-3
        expected_shadow, difference = shadow.clone(), room(len(whole), dtype)
        encode_parts_difference_(parts, sizes, shadow, dtype, difference)
    finally:
        torch.set_num_threads(before)
    for found, expected in zip(out, ops.encode(whole, dtype, backend="reference"), strict=True):
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
    reference = ops.encode_difference_(torch.cat(parts), expected_shadow, dtype, backend="reference")
    for found, expected in zip((*difference, shadow), (*reference, expected_shadow), strict=True):
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


@settings(max_examples=25)
@given(SIZES, st.integers(0, 7), st.sampled_from([None, "fp16", "bf16", "fp32", "int8"]), st.sampled_from([1, 2]))
def test_a_gradient_in_parts_is_averaged_as_the_whole(sizes, absent, dtype, threads):
    """And encoded in the same pass, or not; against the two ops on the joined gradient, one after the other."""
    generator = torch.Generator().manual_seed(len(sizes))
    parts = [torch.randn(n, generator=generator) * 10.0**-k for k, n in enumerate(sizes)]
    whole = torch.cat([torch.zeros_like(p) if k == absent else p for k, p in enumerate(parts)])
    h = ops.encode(torch.rand(len(whole), generator=generator) * 1e-3, "fp16")
    expected = tuple(x.clone() for x in h)
    out = None if dtype is None else room(len(whole), dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        given_parts = [None if k == absent else p for k, p in enumerate(parts)]
        average_parts_(given_parts, sizes, h, 0.9, 0.3, 17, dtype or "fp16", out)
    finally:
        torch.set_num_threads(before)
    torch.ops.lmcleaner.diag_hessian_update_(*expected, whole, whole, 0.9, 0.3, 17)
    for found, wanted in zip(h, expected, strict=True):
        assert torch.equal(found, wanted)
    if out is not None:
        for found, wanted in zip(out, ops.encode(whole, dtype, backend="reference"), strict=True):
            assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_arithmetic_and_layouts(dtype):
    """What the kernel does not read in place goes through the ops: other dtypes, parts that are not contiguous."""
    parts = [torch.randn(7, 300).to(dtype), torch.randn(50, 6).to(dtype).t()]
    out = room(2400, "fp16")
    encode_parts(parts, [2100, 300], "fp16", out)
    whole = torch.cat([p.reshape(-1) for p in parts])
    expected = ops.encode(whole if dtype == torch.float64 else whole.float(), "fp16")
    for found, wanted in zip(out, expected, strict=True):
        assert torch.equal(found, wanted)
    h, again = ops.encode(torch.zeros(2400), "fp16"), room(2400, "fp16")
    average_parts_(parts, [2100, 300], h, 0.0, 1.0, 3, "fp16", again)
    for found, wanted in zip(again, expected, strict=True):
        assert torch.equal(found, wanted)
    torch.testing.assert_close(ops.decode(*h), whole.float().square(), rtol=2**-9, atol=1e-8)


@pytest.mark.parametrize("at", [0, 20000])
def test_a_nan_in_any_part_is_refused(at):
    parts = [torch.zeros(10000), torch.zeros(30000)]
    torch.cat(parts)
    parts[at > 10000][at % 10000] = float("nan")
    with pytest.raises(NumericalError):
        encode_parts(parts, [10000, 30000], "fp16", room(40000, "fp16"))
    with pytest.raises(NumericalError):
        encode_parts_difference_(parts, [10000, 30000], torch.zeros(40000), "fp16", room(40000, "fp16"))
    h = ops.encode(torch.zeros(40000), "fp16")
    with pytest.raises(NumericalError, match="diagonal"):
        average_parts_(parts, [10000, 30000], h, 0.9, 0.1, 0)
    with pytest.raises(NumericalError, match="the vector"):
        average_parts_(parts, [10000, 30000], h, 0.9, 0.1, 0, "fp16", room(40000, "fp16"))


def test_a_square_beyond_the_diagonal_is_refused():
    with pytest.raises(NumericalError, match="diagonal"):
        average_parts_([torch.full((300,), 1e30)], [300], ops.encode(torch.zeros(300), "fp16"), 0.9, 0.1, 0)
