"""encode, encode_difference_, decode and dot: properties of the format, and cpu against the reference bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lmcleaner_ext import ops
from lmcleaner_ext.errors import ConfigurationError, NumericalError
from support import backends

BACKENDS = backends.params("reference", "cpu", "cuda", "triton")
FAST_BACKENDS = backends.params("reference", "cpu", "cuda")  # not the interpreted one, which equals the reference
DTYPES = ("fp16", "bf16", "fp32", "int8", "fp8")
TOP = {"fp16": 14, "int8": 6, "fp8": 7}  # a block's largest magnitude is brought to this power of two
BITS = {"fp16": 11, "bf16": 8, "int8": 7, "fp8": 4}  # significant bits of a payload
SMALLEST = {"fp16": -24, "int8": 0, "fp8": -9}  # power of two of the smallest payload
SIZES = (0, 1, 127, 128, 129, 255, 256, 257, 511, 10_000, 70_001)

finite = st.floats(-(2.0**127), 2.0**127, width=32)  # rounding may take larger ones to 2^128
vectors = hnp.arrays(np.float32, st.integers(0, 600), elements=finite)
exponents = st.integers(-140, 120)

quick = settings(max_examples=60)


def bits(payload: torch.Tensor) -> torch.Tensor:
    """A payload's bytes, for comparing: torch.equal does not know every type."""
    return payload.view(torch.uint8)


def awkward(n: int, seed: int = 0) -> torch.Tensor:
    """Blocks of very different magnitude, zeros, denormals, and everything in between."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator) * torch.exp(6 * torch.randn(n, generator=generator))
    block = torch.arange(n) // ops.BLOCK
    x *= torch.pow(10.0, ((block * 7) % 41 - 40).float())
    x[block % 5 == 3] = 0
    return x


def blockwise_largest(x: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each element's block."""
    padded = torch.zeros(ops.block_count(len(x)) * ops.BLOCK, dtype=x.dtype)
    padded[: len(x)] = x.abs()
    return padded.view(-1, ops.BLOCK).amax(1).repeat_interleave(ops.BLOCK)[: len(x)]


def assert_equals_the_reference(backend: backends.Backend, n: int, dtype: str) -> None:
    reference = backends.Backend("reference")
    x = awkward(n)
    payload, scales = backend.encode(x, dtype)
    expected_payload, expected_scales = reference.encode(x, dtype)
    assert torch.equal(bits(payload), bits(expected_payload))
    assert torch.equal(scales, expected_scales)
    assert torch.equal(backend.decode(payload, scales), reference.decode(payload, scales))

    theta, shadow = awkward(n, seed=1), awkward(n, seed=2)
    expected_shadow = shadow.clone()
    payload, scales = backend.encode_difference_(theta, shadow, dtype)
    expected_payload, expected_scales = reference.encode_difference_(theta, expected_shadow, dtype)
    assert torch.equal(bits(payload), bits(expected_payload))
    assert torch.equal(scales, expected_scales)
    assert torch.equal(shadow, expected_shadow)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_cpu_equals_the_reference_bit_for_bit(n: int, dtype: str, instruction_set: str):
    assert_equals_the_reference(backends.Backend("cpu"), n, dtype)


@pytest.mark.parametrize("backend", backends.params("cuda", "triton"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES[:-1])
def test_gpu_kernels_equal_the_reference_bit_for_bit(n: int, dtype: str, backend: backends.Backend):
    assert_equals_the_reference(backend, n, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOP)
@quick
@given(x=vectors)
def test_error_bound(backend: backends.Backend, dtype: str, x: np.ndarray):
    """|decoded - x| <= 2^-bits |x|, or half a step of the block's smallest values, a share of the block's largest."""
    tensor = torch.from_numpy(x)
    decoded = ops.decode(*backend.encode(tensor, dtype), torch.float64, backend=None)
    error = (decoded - tensor.double()).abs()
    # after scaling the largest is at least 2^TOP, 127.5 / 2 for int8; the exponent byte is not under 0, which is 2^-127
    half_step = 2.0 ** (SMALLEST[dtype] - 1)
    share = half_step / (63.75 if dtype == "int8" else 2.0 ** TOP[dtype])
    floor = (blockwise_largest(tensor).double() * share).clamp(min=half_step * 2.0**-127)
    relative = 0.0 if dtype == "int8" else 2.0 ** -BITS[dtype]
    assert bool((error <= torch.maximum(tensor.double().abs() * relative, floor)).all())
    assert bool((decoded[tensor == 0] == 0).all())


ERRORS = {"fp16": (3e-4, 3e-4), "int8": (1.2e-2, 2.5e-2), "fp8": (2.8e-2, 2.8e-2)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ERRORS)
def test_relative_error_of_updates(backend: backends.Backend, dtype: str):
    """Values near 1e-6, Gaussian and with heavy tails: |decoded - x| / |x| over the whole vector."""
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(100_000, generator=generator)
    heavy = gaussian / torch.randn(4, 100_000, generator=generator).square().mean(0).sqrt()  # Student's t, 4 degrees
    for x, bound in zip((gaussian * 1e-6, heavy * 1e-6), ERRORS[dtype], strict=True):
        decoded = ops.decode(*backend.encode(x, dtype), torch.float64)
        assert bound / 3 < float((decoded - x).norm() / x.double().norm()) < bound


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_every_payload_decodes_to_its_value(dtype: str, instruction_set: str):
    payload = torch.arange(256, dtype=torch.uint8).view(ops.payload_dtype(dtype))
    values = payload.double()  # torch's own conversion; NaN where fp8 has no number
    payload, values = payload[~values.isnan()], values[~values.isnan()]
    assert len(values) == {"int8": 256, "fp8": 254}[dtype]
    for exponent in (0, 1, 100, 127, 200, 246):
        scales = torch.tensor([exponent], dtype=torch.uint8)
        decoded = ops.decode(payload, scales, backend="cpu")
        assert torch.equal(decoded.double(), values * 2.0 ** (exponent - 127))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_half_way_goes_to_even(backend: backends.Backend, dtype: str):
    """Between every two neighbours, the one whose last digit is 0; either side of the middle, the nearer one."""
    numbers = torch.arange(128, dtype=torch.uint8).view(ops.payload_dtype(dtype)).double()
    numbers = numbers[numbers <= 2.0 ** (TOP[dtype] + 1)]
    low, high = numbers[:-1], numbers[1:]
    middle = ((low + high) / 2).float()
    even = torch.where(torch.arange(len(low)) % 2 == 0, low, high)
    below, above = (torch.nextafter(middle, torch.full_like(middle, to)) for to in (0.0, math.inf))
    for x, expected in ((middle, even), (below, low), (above, high), (-middle, -even)):
        x = torch.cat([x, torch.tensor([2.0 ** TOP[dtype]])])  # so that the scale is 2^0
        payload, scales = backend.encode(x[-ops.BLOCK :], dtype)
        keep = scales.item() == 127
        assert keep or dtype == "int8"  # 127.5 itself is out of int8's range
        if keep:
            assert torch.equal(payload[:-1].double(), expected)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@quick
@given(x=vectors)
def test_encoding_again_changes_nothing(backend: backends.Backend, dtype: str, x: np.ndarray):
    """Decoded values are representable: a second encoding is exact."""
    once = backend.decode(*backend.encode(torch.from_numpy(x), dtype))
    twice = backend.decode(*backend.encode(once, dtype))
    assert torch.equal(once, twice)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", TOP)
@quick
@given(exponent=exponents, count=st.integers(1, 300))
def test_powers_of_two_are_exact(backend: backends.Backend, dtype: str, exponent: int, count: int):
    assume(exponent >= SMALLEST[dtype] - 127)
    x = torch.full((count,), math.ldexp(1.0, exponent))
    payload, scales = backend.encode(x, dtype)
    assert torch.equal(backend.decode(payload, scales), x)
    if exponent >= TOP[dtype] - 127:
        assert float(payload[0]) == 2.0 ** TOP[dtype]
        assert int(scales[0]) == exponent - TOP[dtype] + 127


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", TOP)
@quick
@given(x=vectors, shift=st.integers(-20, 20))
def test_scaling_by_a_power_of_two_changes_only_the_exponents(
    backend: backends.Backend, dtype: str, x: np.ndarray, shift: int
):
    tensor = torch.from_numpy(x).clamp(-1e20, 1e20)
    tensor[tensor.abs() < 1e-20] = 0
    payload, scales = backend.encode(tensor, dtype)
    moved_payload, moved_scales = backend.encode(tensor * 2.0**shift, dtype)
    assert torch.equal(bits(payload), bits(moved_payload))
    zero = torch.zeros(len(scales), dtype=torch.bool)
    for block in range(len(scales)):
        zero[block] = not bool(tensor[block * ops.BLOCK : (block + 1) * ops.BLOCK].any())
    assert torch.equal(torch.where(zero, scales, (scales.int() + shift).to(torch.uint8)), moved_scales)
    assert bool((scales[zero] == 127).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 255, 256, 700])
def test_non_finite_values_are_refused(backend: backends.Backend, dtype: str, value: float, position: int):
    x = torch.randn(701)
    x[position] = value
    with pytest.raises(NumericalError, match=dtype):
        backend.encode(x, dtype)
    with pytest.raises(NumericalError, match="theta - shadow"):
        backend.encode_difference_(x, torch.zeros(701), dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", BITS)
def test_values_that_would_round_to_infinity_are_refused(backend: backends.Backend, dtype: str):
    bits = BITS[dtype]
    limit = torch.tensor(2.0**128 * (1 - 2.0 ** -(bits + 1)), dtype=torch.float64).float()  # half-way to 2^128
    with pytest.raises(NumericalError, match=dtype):
        backend.encode(limit.repeat(3), dtype)
    largest = torch.tensor(2.0**128 * (1 - 2.0**-bits), dtype=torch.float64).float().repeat(3)
    below = torch.nextafter(limit, torch.tensor(0.0)).repeat(3)
    for x in (largest, below):
        assert torch.equal(backend.decode(*backend.encode(x, dtype)), largest)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_feedback_does_not_drift(backend: backends.Backend, dtype: str):
    """The sum of the logged differences stays within one quantisation step of theta, however many steps."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3000, generator=generator) * 0.02
    theta, shadow, rebuilt = start.clone(), start.clone(), start.double()
    steps = 64
    for _ in range(steps):
        theta += torch.randn(3000, generator=generator) * 1e-6
        difference = theta - shadow
        rebuilt += ops.decode(*backend.encode_difference_(theta, shadow, dtype), torch.float64)
    # the step at an element of the last difference: of its own size, for int8 of the block's largest
    size = blockwise_largest(difference) if dtype == "int8" else difference.abs() + blockwise_largest(difference) * 2e-5
    quantisation_step = size.double() * {"int8": 2 / 127.5, "fp32": 0.0}.get(dtype, 2.0 ** (1 - BITS.get(dtype, 0)))
    rounding = theta.double().abs() * 2.0**-23
    assert bool(((shadow - theta).double().abs() <= quantisation_step + rounding).all())
    # float32 also rounds the shadow at every step
    assert bool(((rebuilt - theta.double()).abs() <= quantisation_step + steps * rounding).all())


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_without_error_feedback_it_drifts(backend: backends.Backend):
    """What the feedback is for: int8 updates of 64 steps, relative to the distance moved."""
    generator = torch.Generator().manual_seed(0)
    theta, shadow, plain, fed_back = (torch.zeros(100_000) for _ in range(4))
    for _ in range(64):
        update = torch.randn(100_000, generator=generator) * 1e-6
        theta += update
        plain += ops.decode(*backend.encode(update, "int8"))
        fed_back += ops.decode(*backend.encode_difference_(theta, shadow, "int8"))
    errors = [float((x - theta).norm() / theta.norm()) for x in (plain, fed_back)]
    assert errors[1] < 2e-3
    assert errors[0] > 4 * errors[1]


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "fp64", "int8", "fp8"])
def test_float64_vectors_go_through_the_reference(dtype: str):
    x = torch.randn(1000, dtype=torch.float64) * 1e-7
    payload, scales = ops.encode(x, dtype)
    assert payload.dtype == ops.payload_dtype(dtype)
    decoded = ops.decode(payload, scales, out_dtype=torch.float64)
    bound = {"fp32": 2.0**-24, "fp64": 0.0, "int8": 1 / 127.5}.get(dtype, 2.0 ** -BITS.get(dtype, 0))
    assert bool(((decoded - x).abs() <= bound * blockwise_largest(x)).all())
    shadow = torch.zeros_like(x)
    ops.encode_difference_(x, shadow, dtype)
    assert torch.equal(shadow, decoded)


def assert_accurate_dot(backend: backends.Backend, n: int, a_dtype: str, b_dtype: str) -> None:
    generator = torch.Generator().manual_seed(n)
    a = ops.encode(torch.randn(n, generator=generator) * 1e-5, a_dtype)
    b = ops.encode(torch.randn(n, generator=generator) * 1e3, b_dtype)
    exact = ops.decode(*a, torch.float64) @ ops.decode(*b, torch.float64)
    found = backend.dot(a, b)
    scale = ops.decode(*a, torch.float64).norm() * ops.decode(*b, torch.float64).norm()
    assert found.dtype == torch.float64
    assert abs(float(found - exact)) <= 1e-12 * float(scale)
    assert torch.equal(found, backend.dot(a, b))


@pytest.mark.parametrize("a_dtype", DTYPES)
@pytest.mark.parametrize("b_dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 40_003])
def test_dot(n: int, a_dtype: str, b_dtype: str, instruction_set: str):
    assert_accurate_dot(backends.Backend("cpu"), n, a_dtype, b_dtype)


@pytest.mark.parametrize("backend", backends.params("reference", "cuda", "triton"))
@pytest.mark.parametrize("a_dtype", DTYPES)
@pytest.mark.parametrize("b_dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 257, 10_003])
def test_dot_of_the_other_backends(n: int, a_dtype: str, b_dtype: str, backend: backends.Backend):
    assert_accurate_dot(backend, n, a_dtype, b_dtype)


def test_dot_is_the_same_for_any_number_of_threads():
    x, y = torch.randn(200_001), torch.randn(200_001)
    threads = torch.get_num_threads()
    try:
        values = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            values.append(float(ops.dot(x, y, backend="cpu")))
    finally:
        torch.set_num_threads(threads)
    assert len(set(values)) == 1


def test_decode_into_a_given_tensor():
    payload, scales = ops.encode(torch.randn(300), "fp16")
    out = torch.empty(300)
    assert ops.decode(payload, scales, out=out) is out
    assert torch.equal(out, ops.decode(payload, scales))


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize_and_dequantize(dtype: str):
    x = awkward(700)
    payload, scales = ops.quantize(x, dtype, 256)
    expected = ops.encode(x, dtype)
    assert torch.equal(bits(payload), bits(expected[0]))
    assert torch.equal(scales, expected[1])
    assert torch.equal(ops.dequantize(payload, scales), ops.decode(*expected))
    with pytest.raises(ConfigurationError, match="256"):
        ops.quantize(x, dtype, 32)
