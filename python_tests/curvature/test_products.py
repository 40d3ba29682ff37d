"""C v against dense float64 matrices: the Hessian by torch.func.hessian, the Gauss-Newton matrix as J^T H_out J."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev

import lmcleaner_ext as lmc
from lmcleaner_ext.errors import ConfigurationError, MissingDataError
from lmcleaner_ext.losses import CausalLMLoss
from support.cases import OPTIMIZERS, SGD, Schedule, epochs, mlp, optimizer, sequence_losses
from support.tolerances import DENSE

ROWS = ((0, 1, 2, 2, 5),)  # one sample drawn twice


def split(flat, model):
    """A flat vector as {name: tensor}, in named_parameters order."""
    shapes = {n: p.shape for n, p in model.named_parameters()}
    return {
        n: t.view(s) for (n, s), t in zip(shapes.items(), flat.split([s.numel() for s in shapes.values()]), strict=True)
    }


class _Call(nn.Module):
    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch):
        return self.function(self.model, batch)


def at(flat, model, function, batch):
    """function(model with these parameters, batch)."""
    return functional_call(_Call(model, function), {"model." + n: t for n, t in split(flat, model).items()}, (batch,))


def dense_hessian(task, model, theta, ids):
    return hessian(lambda x: at(x, model, task.losses, task.data(ids)).sum() / len(ids))(theta)


def dense_gauss_newton(logits, theta, count):
    """sum over positions of J^T (diag(p) - p p^T) J / count; logits: theta -> [positions, V], already weighted equally."""
    j, z = jacrev(logits)(theta), logits(theta)  # [positions, V, P], [positions, V]
    p = z.softmax(-1)
    h_out = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nvp,nvw,nwq->pq", j, h_out, j) / count


@pytest.fixture
def classifier(recorded):
    return recorded(mlp(hidden=4), Schedule(ROWS * 3), optimizer(SGD, lr=0.5))


def product(run, mode, v, step=2, **options):
    log = run.log()
    return lmc.hvp_apply(mode, v, log[step], theta=log.parameters_at(step), model=run.model, **run.options, **options)


def probes(size, count=3):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def test_exact_is_the_hessian(classifier):
    theta = classifier.log().parameters_at(2)
    dense = dense_hessian(classifier.task, classifier.model, theta, list(ROWS[0]))
    for v in probes(len(theta)):
        torch.testing.assert_close(product(classifier, "exact", v), dense @ v, rtol=DENSE, atol=DENSE)


def test_ggn_is_the_gauss_newton_matrix(classifier):
    log, model = classifier.log(), classifier.model
    theta, batch = log.parameters_at(2), classifier.task.data(list(ROWS[0]))
    dense = dense_gauss_newton(lambda x: at(x, model, lambda m, b: m(b["inputs"]), batch), theta, len(ROWS[0]))
    for v in probes(len(theta)):
        torch.testing.assert_close(product(classifier, "ggn", v), dense @ v, rtol=DENSE, atol=DENSE)
    assert torch.linalg.eigvalsh(dense).min() > -1e-12
    exact = dense_hessian(classifier.task, model, theta, list(ROWS[0]))
    assert float((dense - exact).norm() / exact.norm()) > 0.05
    assert torch.linalg.eigvalsh(exact).min() < -1e-3  # far from a minimum, where the two must differ


@pytest.mark.parametrize("mode", ["exact", "ggn"])
def test_it_belongs_to_the_historical_parameters(classifier, mode):
    v = probes(classifier.log().layout.size, 1)[0]
    # the default: at the model's own parameters
    there = lmc.hvp_apply(mode, v, classifier.log()[2], model=classifier.model, **classifier.options)
    assert float((product(classifier, mode, v) - there).norm() / there.norm()) > 1e-3


@pytest.mark.parametrize("mode", ["exact", "ggn"])
def test_micro_batches_change_nothing(classifier, mode):
    v = probes(classifier.log().layout.size, 1)[0]
    whole, pieces = (product(classifier, mode, v, micro_batch=n) for n in (8, 2))
    torch.testing.assert_close(whole, pieces, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", ["none", "diag", "fisher", "ggn", "exact"])
def test_damping_is_added_once(classifier, mode):
    log = classifier.log()
    v, h = probes(log.layout.size, 2)
    options = {"diagonal": h} if mode == "diag" else {}
    plain, damped = (product(classifier, mode, v, damping=d, **options) for d in (0.0, 0.5))
    expected = plain if mode == "none" else plain + 0.5 * v  # no curvature: nothing to damp
    torch.testing.assert_close(damped, expected, rtol=1e-12, atol=1e-14)


def test_fisher_is_rank_one_in_the_logged_gradient(recorded):
    run = recorded(mlp(hidden=4), Schedule(ROWS * 3), OPTIMIZERS["adamw"])
    theta = run.log().parameters_at(1)
    loss = at(theta.requires_grad_(), run.model, run.task.losses, run.task.data(list(ROWS[0]))).mean()
    (g,) = torch.autograd.grad(loss, [theta])
    v = probes(len(theta), 1)[0]
    torch.testing.assert_close(product(run, "fisher", v, step=1), g * (g @ v), rtol=1e-9, atol=1e-12)


def test_a_small_language_model(llama, recorded):
    """CausalLMLoss with padding: positions without a label count in neither the loss nor the curvature."""
    vocabulary, length = 7, 6
    ids = torch.randint(vocabulary, (4, length), generator=torch.Generator().manual_seed(8))
    mask = torch.ones(4, length, dtype=torch.long)
    mask[1, 4:] = mask[3, 3:] = 0

    class Bigram(nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(1)
            self.e = nn.Parameter(torch.randn(vocabulary, 3, generator=generator, dtype=torch.float64))
            self.out = nn.Parameter(torch.randn(3, vocabulary, generator=generator, dtype=torch.float64))

        def forward(self, input_ids, attention_mask=None):
            return torch.tanh(self.e[input_ids]) @ self.out

    def losses(model, batch):
        log_p = model(batch["input_ids"])[:, :-1].log_softmax(-1)
        token = -log_p.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        valid = batch["attention_mask"][:, 1:]
        return (token * valid).sum(1) / valid.sum(1)

    from support.cases import Task

    task = Task(Bigram, lambda rows: {"input_ids": ids[rows], "attention_mask": mask[rows]}, losses, CausalLMLoss())
    run = recorded(task, Schedule(((0, 1, 2, 3),) * 2), optimizer(SGD, lr=0.1))
    log = run.log()
    theta, batch = log.parameters_at(1), task.data([0, 1, 2, 3])
    valid = mask[:, 1:].bool()
    share = (valid / valid.sum(1, keepdim=True))[valid] / 4  # each scored position's share of the step's loss

    def logits(x):
        return at(x, run.model, lambda m, b: m(b["input_ids"])[:, :-1], batch)[valid]

    j, z = jacrev(logits)(theta), logits(theta)
    p = z.softmax(-1)
    h_out = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) * share[:, None, None]
    gauss_newton = torch.einsum("nvp,nvw,nwq->pq", j, h_out, j)
    exact = hessian(lambda x: at(x, run.model, losses, batch).mean())(theta)
    for v in probes(len(theta)):
        torch.testing.assert_close(product(run, "ggn", v, step=1), gauss_newton @ v, rtol=DENSE, atol=DENSE)
        torch.testing.assert_close(product(run, "exact", v, step=1), exact @ v, rtol=DENSE, atol=DENSE)


def test_a_llama_by_finite_differences(llama, recorded):
    """The Hessian of a whole Llama is too large to be dense here: central differences of its gradient instead."""
    task = llama.task()
    run = recorded(task, epochs(160, 4, 2), optimizer(SGD, lr=0.01))
    log = run.log()
    theta, rows = log.parameters_at(1), list(log[1].sample_ids)
    v = probes(len(theta), 1)[0]
    v /= v.norm()

    def gradient(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(at(x, run.model, sequence_losses, task.data(rows)).mean(), [x])[0]

    step = 1e-2  # transformers' softmax and norms are float32 inside, whatever the model's dtype
    expected = (gradient(theta + step * v) - gradient(theta - step * v)) / (2 * step)
    exact = product(run, "exact", v, step=1)
    assert float((exact - expected).norm() / expected.norm()) < 1e-3
    ggn = product(run, "ggn", v, step=1)
    assert float((ggn - exact).norm() / exact.norm()) > 0.05
    assert v @ ggn > 0


def test_refusals(classifier):
    record, v = classifier.log()[0], probes(classifier.log().layout.size, 1)[0]
    with pytest.raises(ConfigurationError):
        lmc.hvp_apply("hessian", v, record)
    with pytest.raises(ConfigurationError):
        lmc.hvp_apply("diag", v, record)
    with pytest.raises(MissingDataError):
        lmc.hvp_apply("exact", v, record, model=classifier.model, loss_fn=classifier.task.loss_fn)
    with pytest.raises(ConfigurationError, match="outputs"):  # losses alone do not show the logits
        lmc.hvp_apply(
            "ggn", v, record, model=classifier.model, data=classifier.task.data, loss_fn=classifier.task.losses
        )
