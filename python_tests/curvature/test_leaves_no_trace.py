"""A curvature product borrows the model: attention, modes, gradients and random numbers are afterwards what they were."""

import pytest
import torch

import lmcleaner_ext as lmc
from support.cases import SGD, AdamW, epochs, mlp, optimizer


class Broken(Exception):
    pass


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("mode", ["ggn", "exact", "replay"])
def test_a_llama_with_its_default_attention(llama, recorded, mode):
    """sdpa has no second derivative: it is switched off inside, and on again after."""
    task = llama.task(attention="sdpa")
    run = recorded(task, epochs(160, 4, 3), optimizer(AdamW, lr=1e-4))
    model = run.model
    model.train()
    model.model.layers[1].eval()  # each module's own mode
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True).grad = torch.ones(32, 32, dtype=torch.float64)
    before = modes(model)
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    theta, rng = run.theta, torch.get_rng_state()
    lmc.compute_correction(model, run.path, [run.schedule.batches[0][0]], hessian_mode=mode, **run.options)
    assert model.config._attn_implementation == "sdpa"
    assert modes(model) == before
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}
    for n, p in model.named_parameters():
        assert (p.grad is None) == (grads[n] is None)
        assert p.grad is None or torch.equal(p.grad, grads[n])
    assert torch.equal(run.theta, theta)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("mode", ["ggn", "exact"])
def test_sdpa_and_eager_give_the_same_product(llama, recorded, mode):
    run = recorded(llama.task(), epochs(160, 4, 2), optimizer(AdamW, lr=1e-4))
    v = torch.randn(run.log().layout.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    models = [llama.task(attention=attention).build() for attention in ("sdpa", "eager")]
    products = [lmc.hvp_apply(mode, v, run.log()[1], model=model, **run.options) for model in models]
    torch.testing.assert_close(*products, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["ggn", "exact"])
def test_after_an_error_inside(llama, recorded, mode):
    run = recorded(llama.task(attention="sdpa"), epochs(160, 4, 3), optimizer(AdamW, lr=1e-4))
    run.model.train()
    calls = []

    def data(ids):
        calls.append(ids)
        if len(calls) > 1:
            raise Broken
        return run.task.data(ids)

    theta = run.theta
    with pytest.raises(Broken):
        lmc.unlearn(run.model, run.path, [run.schedule.batches[0][0]], hessian_mode=mode, data=data)
    assert run.model.config._attn_implementation == "sdpa"
    assert all(modes(run.model).values())
    assert torch.equal(run.theta, theta)


@pytest.mark.parametrize("mode", ["ggn", "exact", "replay"])
def test_dropout_is_off_inside(recorded, mode):
    """Trained without dropout, asked with a model in training mode that has it: the random masks must not enter."""
    plain, dropping = mlp(), mlp(dropout=0.5)
    run = recorded(plain, epochs(48, 8, 5), optimizer(SGD, lr=0.1))
    model = dropping.build()
    model.load_state_dict(run.model.state_dict())
    model.train()
    expected = lmc.compute_correction(run.model, run.path, [3], hessian_mode=mode, **run.options)
    rng = torch.get_rng_state()
    found = lmc.compute_correction(model, run.path, [3], hessian_mode=mode, **run.options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(modes(model).values())
