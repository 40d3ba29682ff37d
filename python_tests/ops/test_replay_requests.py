"""Several requests in one call of `optimizer_replay_window_` against as many calls of their own, in float64."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from lmcleaner_ext import ops
from lmcleaner_ext.errors import ConfigurationError
from lmcleaner_ext.ops import coefficients as column
from support import backends, replay_cases
from support.replay_accuracy import FEW_ULP, oracle_with_travel, worst
from support.replay_cases import Vectors
from support.replay_requests import Requests, build_requests, differing, row

RULES = replay_cases.RULES
SEGMENTS = ((3, 130, 1), (130, 131, 0), (200, 700, 2), (701, 990, 1))
VARIANTS = ("classes", "lead", "lead-absent", "lead-all", "missing", "diagonal", "bf16", "int8", "no-theta", "zeros")
CASES = {f"{rule}-{n}": replace(case, n=n) for rule, case in RULES.items() for n in (0, 1, 127, 128, 129, 10_003)}
CASES |= {name: case for name, case in replay_cases.variants().items() if name.partition("-")[2] in VARIANTS}
CASES |= {name: replay_cases.variants()[name] for name in ("nesterov", "momentum-first", "adamw-eps-tiny")}
LONG = {
    f"{rule}-200-large-steps": replace(
        case, n=700, steps=200, lr=0.1 if rule.startswith("adam") else 0.5, magnitude=3.0, taken=0,
        injections=((0, 1.0), (70, 1.0), (150, -1.0)),
    )
    for rule, case in RULES.items()
}  # fmt: skip
CASES |= LONG


@functools.cache
def expected(name: str) -> tuple[Requests, list[tuple[dict, dict, dict]]]:
    """The inputs, and for each request alone: float64 outcome, travel, and the error that each vector may have."""
    requests = build_requests(differing(CASES[name]))
    found = []
    for inputs in requests.alone:
        oracle, travel = oracle_with_travel(inputs)
        eager, _ = inputs.outcome(torch.float32, "reference")
        found.append(
            (oracle, travel, {k: 2 * worst(x, oracle[k], travel[k]) + FEW_ULP for k, x in eager.named().items()})
        )
    return requests, found


def assert_as_accurate_as_float32_torch(backend: str, name: str) -> None:
    requests, alone = expected(name)
    together, squares = requests.outcome(torch.float32, backend)
    for r, (oracle, travel, allowed) in enumerate(alone):
        for vector, x in row(together, r).named().items():
            assert worst(x, oracle[vector], travel[vector]) <= allowed[vector], (r, vector)
    assert squares.dtype == torch.float64
    torch.testing.assert_close(squares, together.delta.double().square().sum(1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_cpu_is_as_accurate_as_float32_torch(name: str, instruction_set: str):
    assert_as_accurate_as_float32_torch("cpu", name)


def gpu_cases() -> list:
    """(backend, case); interpreted, one case per rule and some variants, the others only with -m slow."""
    found = []
    for backend in backends.params("cuda", "triton"):
        interpreted = backend.values[0].device == "cpu"
        for index, (name, case) in enumerate(CASES.items()):
            later = case.steps > 20 or case.n > 5_000 or index % 4
            marks = [*backend.marks, pytest.mark.slow] if interpreted and later else backend.marks
            found.append(pytest.param(*backend.values, name, id=f"{backend.id}-{name}", marks=marks))
    return found


@pytest.mark.parametrize(("backend", "name"), gpu_cases())
def test_gpu_kernels_are_as_accurate_as_float32_torch(backend: backends.Backend, name: str):
    assert_as_accurate_as_float32_torch(backend.name, name)


@pytest.mark.parametrize("name", LONG)
def test_the_reference_is_as_many_calls(name: str):
    """200 steps, each as large as the parameters themselves, in float64."""
    requests, alone = expected(name)
    together, _ = requests.outcome(torch.float64)
    for r, (oracle, _, _) in enumerate(alone):
        for vector, x in row(together, r).named().items():
            torch.testing.assert_close(x, oracle[vector], rtol=1e-9, atol=1e-25)
        assert float(oracle["delta"].norm()) > 0.1, "the updates are meant to be large"


def skip_most_if_interpreted(backend: backends.Backend, rule: str, runs: tuple[str, ...] = ("adamw",)) -> None:
    """Two states are where rows can be taken for one another; numbers that depend on the rule need more than one."""
    if (backend.name, backend.device) == ("triton", "cpu") and rule not in runs:
        pytest.skip("interpreted, these rules take long enough: " + ", ".join(runs))


@pytest.mark.parametrize("backend", backends.params("cpu", "cuda", "triton"))
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 9])
def test_any_number_of_requests(count: int, backend: backends.Backend):
    """Whatever requests are taken together, each comes out as it does beside any other."""
    cases = differing(replace(RULES["adamw"], n=300))[:2] * 5
    requests = build_requests([replace(case, seed=i // 2) for i, case in enumerate(cases)][:count])
    native, _ = requests.outcome(torch.float32, backend.name)
    exact, _ = requests.outcome(torch.float64)
    for name, x in native.named().items():
        error = (x.double() - exact.named()[name]).norm() / exact.named()[name].norm()
        assert float(error) < 1e-5, name


@pytest.mark.parametrize("backend", backends.params("reference", "cpu", "cuda", "triton"))
@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_the_requests_changes_no_bit(rule: str, backend: backends.Backend):
    skip_most_if_interpreted(backend, rule)
    requests = build_requests(differing(replace(RULES[rule], n=1000, segments=SEGMENTS)))
    order = [3, 0, 4, 2, 1]
    first, squares = requests.outcome(torch.float32, backend.name)
    start = requests.alone[0].start
    reordered = Requests(
        [replace(requests.alone[i], start=replace(requests.alone[i].start, theta=start.theta)) for i in order]
    )
    reordered.alone[0] = replace(reordered.alone[0], gradients=requests.alone[0].gradients)
    second, squares_of_second = reordered.outcome(torch.float32, backend.name)
    assert torch.equal(squares[order], squares_of_second)
    for r, at in enumerate(order):
        for name, x in row(second, r).named().items():
            assert torch.equal(x, row(first, at).named()[name]), (at, name)


@pytest.mark.parametrize("rule", RULES)
def test_same_bits_for_any_number_of_threads(rule: str, instruction_set: str):
    requests = build_requests(differing(replace(RULES[rule], n=70_001)))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(requests.outcome(torch.float32, "cpu"))
    finally:
        torch.set_num_threads(threads)
    (one, squares_of_one), (three, squares_of_three) = found
    for name, x in one.named().items():
        assert torch.equal(x, three.named()[name]), name
    assert torch.equal(squares_of_one, squares_of_three)


@pytest.mark.parametrize("backend", backends.params("reference", "cpu", "cuda", "triton"))
@pytest.mark.parametrize("theta", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_a_request_without_removals_has_no_deviation(rule: str, theta: bool, backend: backends.Backend):
    """Beside requests whose skipped steps and injections move the common unit of the moments."""
    skip_most_if_interpreted(backend, rule, ("momentum", "adamw"))
    case = replace(RULES[rule], n=400, steps=24, lead=2, theta=theta, decay=0.01 if theta else 0.0, injections=())
    skipped = replace(case, flags={(0, 7): column.SKIP, (0, 15): column.SKIP})
    requests = build_requests([skipped, replace(case, damping=0.1), replace(case, injections=((5, 1.0),)), case])
    vectors, squares = requests.outcome(torch.float32, backend.name)
    assert not vectors.delta[[1, 3]].any()
    assert bool((squares[[0, 2]] > 0).all())


@pytest.mark.parametrize("backend", backends.params("cpu", "cuda", "triton"))
@pytest.mark.parametrize("rule", RULES)
def test_rows_of_larger_matrices_that_begin_anywhere(rule: str, backend: backends.Backend):
    """As the panels of the engine are; elements outside of the segments and of the rows keep their bits."""
    skip_most_if_interpreted(backend, rule)
    requests = build_requests(differing(replace(RULES[rule], n=1000, segments=SEGMENTS)))
    aligned, squares = requests.outcome(torch.float32, backend.name)
    start = requests.start(torch.float32, backend.device)

    def wider(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x, (3, 2), value=7.0)

    wide = Vectors(
        wider(start.delta), wider(start.theta), list(map(wider, start.state)), list(map(wider, start.counterfactual))
    )
    inside = Vectors(
        wide.delta[..., 3:-2],
        wide.theta[3:-2],
        [x[3:-2] for x in wide.state],
        [x[..., 3:-2] for x in wide.counterfactual],
    )
    found = requests.run(inside, backend.name)
    torch.testing.assert_close(found.cpu(), squares, rtol=1e-12, atol=0)
    outside = torch.ones(1000, dtype=torch.bool)
    for begin, end, _ in SEGMENTS:
        outside[begin:end] = False
    for name, x in inside.named().items():
        assert torch.equal(x.cpu(), aligned.named()[name]), name
        assert torch.equal(x.cpu()[..., outside], start.named()[name].cpu()[..., outside]), name
        around = torch.cat([wide.named()[name][..., :3], wide.named()[name][..., -2:]], dim=-1)
        assert bool((around == 7).all()), name


@pytest.mark.parametrize("backend", backends.params("reference", "cpu", "cuda", "triton"))
@pytest.mark.parametrize("rule", ["momentum", "adamw"])
def test_an_empty_state_begins_at_zero(rule: str, backend: backends.Backend):
    requests = build_requests(differing(replace(RULES[rule], n=601)))
    zeros, absent = (requests.start(torch.float32, backend.device) for _ in range(2))
    for vectors in (zeros.state, zeros.counterfactual):
        for x in vectors:
            x.zero_()
    absent.state = [torch.empty(0, device=x.device) for x in absent.state]
    absent.counterfactual = [torch.empty(0, device=x.device) for x in absent.counterfactual]
    assert torch.equal(requests.run(zeros, backend.name), requests.run(absent, backend.name))
    assert torch.equal(zeros.delta, absent.delta)


@pytest.mark.parametrize("rule", RULES)
def test_opcheck(rule: str):
    requests = build_requests(differing(replace(RULES[rule], n=300)))
    window = requests.window(requests.start(torch.float32))
    torch.library.opcheck(torch.ops.lmcleaner.optimizer_replay_window_, window.flat())


REFUSED = {
    "no request": ("delta", lambda x: x[:0], "row for each request, one or more"),
    "overlapping rows": ("delta", lambda x: x[:1].expand(x.shape), "row for each request"),
    "columns": ("delta", lambda x: x.T.contiguous().T, "row for each request"),
    "fewer states": (
        "counterfactual",
        lambda x: [m[:-1] for m in x],
        r"counterfactual\[0\] must have a contiguous row",
    ),
    "one table": ("coefficients", lambda x: x[0], "coefficients must be a contiguous torch.float64 table"),
    "fewer tables": ("coefficients", lambda x: x[:-1], "5 requests need as many coefficient tables; found 4"),
    "no request column": ("injection_table", lambda x: x[:, :2].contiguous(), "injection_table must be a contiguous"),
    "unknown request": ("injection_table", lambda x: torch.cat([x[:-1], x[-1:] + 5]), "must be sorted by request"),
    "by step": ("injection_table", lambda x: x[x[:, 0].argsort(stable=True)], "must be sorted by request"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str):
    requests = build_requests(differing(replace(RULES["adamw"], n=300)))
    window = requests.window(requests.start(torch.float32))
    name, change, message = REFUSED[what]
    window = replace(window, **{name: change(getattr(window, name))})
    before = window.delta.clone()
    with pytest.raises(ConfigurationError, match=message):
        ops.optimizer_replay_window_(window)
    assert torch.equal(window.delta, before)


@pytest.mark.parametrize("name", ["GAIN", "LR", "DECAY", "BETA1", "BETA2", "EPS", "SIZE", "ROOT"])
def test_the_factual_side_is_one(name: str):
    requests = build_requests(differing(replace(RULES["adamw"], n=300)))
    window = requests.window(requests.start(torch.float32))
    window.coefficients[3, 0, 2, getattr(column, name)] += 1e-6
    with pytest.raises(ConfigurationError, match="share the factual side"):
        ops.optimizer_replay_window_(window)
