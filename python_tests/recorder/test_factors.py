"""The factors that a backward pass leaves behind: multiplied out they are autograd's own gradient, whatever the model does."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from lmcleaner_ext import ops
from lmcleaner_ext.errors import NumericalError
from lmcleaner_ext.layout import ParameterLayout
from lmcleaner_ext.log import EncodedVector
from lmcleaner_ext.log.tracked import FactoredVector, RecordLayout, factors_are_smaller
from lmcleaner_ext.losses import evaluation_mode
from lmcleaner_ext.recorder.layer_factors import LinearFactors
from lmcleaner_ext.recorder.tracked import TrackedSamples, sample_gradient
from support.cases import mlp, sequence_losses

UNSCALED = torch.empty(0, dtype=torch.uint8)


def taken(model, loss_fn, batch):
    """(the gradient as it is stored, not encoded; what a second backward pass of plain torch gives, per parameter)."""
    layout = ParameterLayout.of(model)
    parameters = layout.parameters(model)
    factors = LinearFactors(model, layout, parameters)
    before = [dict(vars(module)) for module in model.modules()]
    values, tokens = factors.record(sample_gradient(model, loss_fn, batch, parameters, factors))
    assert [dict(vars(module)) for module in model.modules()] == before  # nothing is left on the layers
    assert all(p.grad is None for p in parameters)
    stored = FactoredVector(RecordLayout(layout, tokens), [EncodedVector(values, UNSCALED)], lambda: None)
    with evaluation_mode(model):
        expected = torch.autograd.grad(loss_fn(model, batch).sum(), parameters, allow_unused=True)
    return stored, [torch.zeros_like(p) if g is None else g for g, p in zip(expected, parameters, strict=True)]


def agree(stored, expected, tolerance):
    layout = stored.record.layout
    for entry, g in zip(layout.entries, expected, strict=True):
        found = stored.narrow(entry.begin, entry.end).payload
        assert float((found - g.reshape(-1).to(found)).norm()) <= tolerance * float(g.norm()), entry.name
    return {entry.name: t for entry, t in zip(layout.entries, stored.record.tokens, strict=True) if t is not None}


TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_classifier(dtype):
    task = mlp(dtype, hidden=200)
    assert agree(*taken(task.build(), task.loss_fn, task.data([7])), TOLERANCE[dtype]) == {"0.weight": 1, "3.weight": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_llama(llama, dtype):
    """8 tokens: the last predicts nothing, the first has one key only and so no gradient of its query. The embedding is
    the output layer too: it has both layers' tokens."""
    task = llama.task(dtype)
    batch = {"input_ids": llama.rows[3:4, :8]}
    tokens = agree(*taken(task.build(), task.loss_fn, batch), TOLERANCE[dtype])
    assert len(tokens) == 2 * 7 + 1
    assert tokens.pop("model.embed_tokens.weight") == 14
    assert all(t == (6 if "q_proj" in name else 7) for name, t in tokens.items())


def test_padding_is_dropped(llama):
    task = llama.task(torch.float32)
    row = llama.rows[3:4].clone()
    mask = torch.ones_like(row)
    mask[0, 6:] = 0
    tokens = agree(
        *taken(task.build(), task.loss_fn, {"input_ids": row, "attention_mask": mask}), TOLERANCE[torch.float32]
    )
    assert len(tokens) == 2 * 7 + 1
    assert tokens.pop("model.embed_tokens.weight") == 10
    assert all(t == (4 if "q_proj" in name else 5) for name, t in tokens.items())


class Net(nn.Module):
    """Two layers and a way to use them: use(net, x) -> losses."""

    def __init__(self, use, **options):
        super().__init__()
        self.first, self.second, self.use = nn.Linear(32, 32, **options), nn.Linear(32, 32), use

    def forward(self, x):
        return self.use(self, x)


def twice(net, x):
    return net.second(net.first(torch.tanh(net.first(x))))


def by_hand(net, x):
    return net.second(nn.functional.linear(torch.tanh(net.first(x)), net.first.weight))


def penalty(net, x):
    return net.second(net.first(x)) + 0.1 * net.first.weight.square().sum()


def gradient_penalty(net, x):
    """The loss differentiates the network once itself, with respect to the input and to a weight."""
    x = x.requires_grad_()
    y = net.second(torch.tanh(net.first(x)))
    inner = torch.autograd.grad(y.square().sum(), [x, net.second.weight], create_graph=True)
    return y + sum(g.square().sum() for g in inner)


def in_place(net, x):
    return net.second(net.first(x).relu_()).mul_(2)


def unused(net, x):
    return net.first(x)


def checkpointed(net, x):
    return net.second(checkpoint(lambda z: torch.tanh(net.first(z)), x, use_reentrant=False))


def without_gradient(net, x):
    with torch.no_grad():
        x = net.first(x)
    return net.second(x)


def functional(net, x):
    """torch.func inside the loss: a per-token Jacobian, with weights of its own put into the layer."""
    parameters = {"weight": net.second.weight * 2, "bias": net.second.bias}
    y = torch.func.functional_call(net.second, parameters, (net.first(x),))
    return y + torch.func.vmap(torch.func.jacrev(net.second))(x[0]).square().sum()


def autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net.second(torch.tanh(net.first(x))).float()


USES = {
    twice: {"first.weight": 6, "second.weight": 3},
    by_hand: {"second.weight": 3},
    penalty: {"second.weight": 3},
    gradient_penalty: {},
    in_place: {"first.weight": 3, "second.weight": 3},
    unused: {"first.weight": 3, "second.weight": 0},
    checkpointed: {"first.weight": 3, "second.weight": 3},
    without_gradient: {"first.weight": 0, "second.weight": 3},
    functional: {"first.weight": 3},
    autocast: {"first.weight": 3, "second.weight": 3},
}


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize("bias", [True, False])
def test_every_use_counts(use, bias):
    """Three tokens through layers of 32 x 32. What comes to a weight by another way than its layer makes it dense, and is in the sum."""
    torch.manual_seed(2)
    dtype = torch.float32 if use is autocast else torch.float64
    net, x = Net(use, bias=bias).to(dtype), torch.randn(1, 3, 32, dtype=dtype)
    stored, expected = taken(net, lambda model, batch: model(batch).square().sum((1, 2)), x)
    # under autocast torch rounds the product to bfloat16, here it is taken of the rounded factors
    assert agree(stored, expected, 1e-2 if use is autocast else 1e-13) == USES[use]


def test_a_hook_that_changes_a_gradient():
    torch.manual_seed(2)
    net = Net(twice).double()
    net.first.weight.register_hook(lambda gradient: gradient.triu())
    stored, expected = taken(net, lambda model, x: model(x).square().sum((1, 2)), torch.randn(1, 3, 32).double())
    assert float(expected[0].tril(-1).abs().max()) == 0
    assert agree(stored, expected, 1e-13) == {"second.weight": 3}


def test_a_frozen_layer():
    torch.manual_seed(2)
    net = Net(twice).double()
    net.first.requires_grad_(False)
    stored, expected = taken(net, lambda model, x: model(x).square().sum((1, 2)), torch.randn(1, 3, 32).double())
    assert agree(stored, expected, 1e-13) == {"second.weight": 3}


def test_one_weight_in_two_layers():
    """Both layers' tokens are in it, those of an embedding too. A norm among its owners makes it dense."""
    torch.manual_seed(2)
    net = Net(lambda net, x: net.second(torch.tanh(net.first(x)))).double()
    net.second.weight = net.first.weight
    losses = lambda model, x: model(x).square().sum((1, 2))  # noqa: E731
    stored, expected = taken(net, losses, torch.randn(1, 3, 32).double())
    assert agree(stored, expected, 1e-13) == {"first.weight": 6}
    net.table = nn.Embedding(32, 32).double()
    net.table.weight = net.first.weight
    net.use = lambda net, x: net.second(net.table(x))
    stored, expected = taken(net, losses, torch.tensor([[1, 5, 5]]))
    assert agree(stored, expected, 1e-13) == {"first.weight": 6}
    net.scale = nn.PReLU(32).double()
    net.scale.weight = net.first.weight
    net.use = lambda net, x: net.second(net.table(x))
    stored, expected = taken(net, losses, torch.tensor([[1, 5, 5]]))
    assert agree(stored, expected, 1e-13) == {}


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({}, 5), ({"padding_idx": 5}, 3), ({"scale_grad_by_freq": True}, None), ({"max_norm": 1.0}, None)],
)
@pytest.mark.parametrize("magnitude", [1.0, 1e-12, 1e30])
def test_an_embedding(options, tokens, magnitude):
    """Rows that occur twice, a padding row, gradients of any magnitude; options that change the gradient leave it dense."""
    torch.manual_seed(2)
    table = nn.Embedding(50, 32, **options).double()
    stored, expected = taken(
        table, lambda model, x: magnitude * model(x).sin().sum((1, 2)), torch.tensor([[1, 5, 2, 49, 5]])
    )
    assert agree(stored, expected, 1e-13) == ({} if tokens is None else {"weight": tokens})
    if tokens is not None:
        _, b = stored.factors(0)
        assert float(b.max()) == 0.5
        assert torch.equal(
            b != 0, torch.nn.functional.one_hot(torch.tensor([1, 5, 2, 49, 5] if tokens == 5 else [1, 2, 49]), 50) != 0
        )


def test_an_embedding_that_the_loss_differentiates():
    """A penalty on the gradient of the embedding's own weight: what was computed on the way is not noted."""
    torch.manual_seed(2)
    net = Net(lambda net, x: net.second(net.table(x)))
    net.table = nn.Embedding(50, 32)
    net = net.double()

    def loss(model, x):
        y = model(x).tanh()
        inner = torch.autograd.grad(y.square().sum(), model.table.weight, create_graph=True)[0]
        return y.square().sum((1, 2)) + inner.square().sum()

    stored, expected = taken(net, loss, torch.tensor([[1, 5, 5]]))
    tokens = agree(stored, expected, 1e-13)
    assert "second.weight" not in tokens
    assert stored.record.tokens[
        stored.record.layout.entries.index(next(e for e in stored.record.layout.entries if "table" in e.name))
    ]


def test_layers_that_are_not_plain_are_left_alone():
    """A subclass, a layer inside torch's attention, a layer whose forward was replaced, reparametrised weights."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    torch.manual_seed(2)
    net = Net(lambda net, x: net.second(net.attention(*3 * [net.doubled(net.normed(net.first(x)))])[0])).double()
    net.doubled, net.attention = Doubled(32, 32).double(), nn.MultiheadAttention(32, 2, batch_first=True).double()
    net.normed = nn.utils.parametrizations.weight_norm(nn.Linear(32, 32).double())
    own = net.first.forward
    net.first.forward = lambda x: own(x) * 3
    stored, expected = taken(net, lambda model, x: model(x).square().sum((1, 2)), torch.randn(1, 3, 32).double())
    assert agree(stored, expected, 1e-13) == {"second.weight": 3}


def test_a_gradient_that_is_not_finite():
    net = Net(twice)
    samples = TrackedSamples(
        net, (layout := ParameterLayout.of(net)), layout.parameters(net), lambda model, x: model(x).sum((1, 2)), [1], 3
    )
    with pytest.raises(NumericalError):
        samples.gradient(1, torch.full((1, 3, 32), float("nan")), "fp16")


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "fp8", "int8"])
def test_precision(llama, dtype):
    """Two factors are rounded instead of one product: the error over the whole gradient is about sqrt(2) times as large."""
    task = llama.task(torch.float32)
    model, batch = task.build(), {"input_ids": llama.rows[3:4, :8]}
    layout = ParameterLayout.of(model)
    errors = []
    for tokens in (None, 8):
        samples = TrackedSamples(model, layout, layout.parameters(model), task.loss_fn, [3], tokens)
        one = samples.gradient(3, batch, dtype)
        if tokens is None:
            found = ops.decode(*one.vector)
            exact = torch.autograd.grad(
                sequence_losses(model.double(), batch).sum(), list(model.parameters()), allow_unused=True
            )
            exact = layout.flatten(exact, torch.empty(layout.size, dtype=torch.float64))
            model.float()
        else:
            found = FactoredVector(RecordLayout(layout, one.tokens), [EncodedVector(*one.vector)], lambda: None).payload
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] <= 1.5 * errors[0] + 1e-6


# -- shapes ------------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(data=st.data())
def test_any_part_of_any_record(data):
    """narrow(begin, end) of a record in pieces, against NumPy: matrices of all shapes, tokens from none on, every format."""
    shapes = data.draw(
        st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple), min_size=1, max_size=6)
    )
    model = nn.Module()
    for i, shape in enumerate(shapes):
        model.register_parameter(f"p{i}", nn.Parameter(torch.zeros(shape)))
    layout = ParameterLayout.of(model)
    tokens = tuple(data.draw(st.none() | st.integers(0, 30)) if len(shape) == 2 else None for shape in shapes)
    record = RecordLayout(layout, tokens)
    assert record.size % ops.BLOCK == 0
    numbers = np.random.default_rng(data.draw(st.integers(0, 99)))
    vector = ops.encode(torch.from_numpy(numbers.standard_normal(record.size).astype(np.float32)), data.draw(
        st.sampled_from(["fp32", "fp16", "bf16", "fp8", "int8"])))  # fmt: skip
    values = ops.decode(*vector).double().numpy()
    dense = []
    for shape, t, place in zip(shapes, tokens, record.places, strict=True):
        if t is None:
            dense.append(values[place[0] : place[0] + int(np.prod(shape))])
        else:
            a = values[place[0] : place[0] + t * shape[1]].reshape(t, shape[1])
            b = values[place[1] : place[1] + t * shape[0]].reshape(t, shape[0])
            dense.append((b.T @ a).reshape(-1))
    whole, parts = EncodedVector(*vector), []
    piece = ops.BLOCK * data.draw(st.integers(1, 4))
    for begin in range(0, record.size, piece):
        parts.append(whole.narrow(begin, min(begin + piece, record.size)))
    stored = FactoredVector(record, parts, lambda: None)
    begin = data.draw(st.integers(0, layout.size - 1))
    end = data.draw(st.integers(begin + 1, layout.size))
    np.testing.assert_allclose(
        stored.narrow(begin, end).payload, np.concatenate(dense)[begin:end], rtol=1e-4, atol=1e-4
    )
    assert stored.nbytes == sum(part.nbytes for part in parts)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 80), min_size=2, max_size=4),
    tokens=st.integers(1, 30),
    calls=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_chain_of_layers(sizes, tokens, calls, bias, seed):
    """Exact, never larger than the matrix, and as long as foreseen when the log was created (for one call)."""
    torch.manual_seed(seed)
    net = nn.Sequential(*(nn.Linear(i, o, bias=bias, dtype=torch.float64) for i, o in pairwise(sizes)))

    def losses(model, x):
        return sum(model(x * k).square().sum((1, 2)) for k in range(1, calls + 1))

    stored, expected = taken(net, losses, torch.randn(1, tokens, sizes[0], dtype=torch.float64))
    kept = agree(stored, expected, 1e-12)
    record, layout = stored.record, stored.record.layout
    for entry in layout.entries:
        assert (entry.name in kept) == factors_are_smaller(entry, calls * tokens)
    layers = {i: calls for i, entry in enumerate(layout.entries) if entry.name.endswith("weight")}
    assert RecordLayout.expected(layout, layers, tokens).size == record.size
    assert record.size < layout.size + ops.BLOCK
