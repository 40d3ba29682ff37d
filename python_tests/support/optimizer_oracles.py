"""What a recorded optimizer really did, and would have done with other gradients: torch.optim itself in float64, no replay rule."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from support.cases import MakeOptimizer, Recording, Schedule, Task, flat, train

State = dict[str, Tensor]


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """The optimizer's tensors joined over the parameters, {name: [P]}; zeros where a parameter has none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    shaped = [
        {k: v for k, v in optimizer.state[p].items() if isinstance(v, Tensor) and v.shape == p.shape}
        for p in parameters
    ]
    names = {name for found in shaped for name in found}
    return {
        name: torch.cat([found.get(name, torch.zeros_like(p)).detach().reshape(-1) for p, found in zip(parameters, shaped, strict=True)])
        for name in names
    }  # fmt: skip


def trajectory(task: Task, schedule: Schedule, make: MakeOptimizer) -> tuple[list[Tensor], list[State]]:
    """theta[0..T] of the unlogged run, and the optimizer's state before each step and after the last."""
    model = task.build()
    optimizer = make(model)
    thetas, states = [flat(model)], [{}]
    for t in range(len(schedule.batches)):
        train(task, schedule.until(t + 1), make, model=model, optimizer=optimizer, start=t)
        thetas.append(flat(model))
        states.append({name: x.clone() for name, x in state_of(model, optimizer).items()})
    return thetas, states


class Side:
    """One of the two runs of the optimizer: it is given its gradients."""

    def __init__(self, run: Recording):
        self.run, self.model = run, run.task.build()
        self.optimizer = run.make_optimizer(self.model)
        self.base = [group["lr"] for group in self.optimizer.param_groups]

    def gradient(self, losses_of: Collection[int], denominator: int) -> Tensor:
        """Gradient of the sum of these samples' losses over the denominator, here, [P]."""
        parameters = list(self.model.parameters())
        loss = self.run.task.losses(self.model, self.run.task.data(list(losses_of))).sum() / denominator
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])

    def curvature(self, v: Tensor, losses_of: Collection[int], denominator: int) -> Tensor:
        """Hessian of the same loss times v, [P]."""
        parameters = list(self.model.parameters())
        loss = self.run.task.losses(self.model, self.run.task.data(list(losses_of))).sum() / denominator
        first = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(first @ v, parameters)])

    def step(self, t: int, gradient: Tensor) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = lr * self.run.schedule.lr(t)
        at = 0
        for p in self.model.parameters():
            p.grad = gradient[at : at + p.numel()].view(p.shape).clone()
            at += p.numel()
        self.optimizer.step()


def two_runs(
    run: Recording, ids: Collection[int], convention: str = "placeholder", *, exact: bool = False
) -> tuple[Tensor, State]:
    """The deviation by its definition: the optimizer run for real with g[t], and with what is left of g[t] without the samples.

    The samples' gradients and, with `exact`, the curvature of the retained samples are taken at theta[t] of the factual run.
    Returns (theta - theta' [P], {state name: factual - counterfactual [P]}) after the last step.
    """
    factual, other = Side(run), Side(run)
    for t, draws in enumerate(run.schedule.batches):
        kept = [i for i in draws if i not in ids]
        removed = [i for i in draws if i in ids]
        g = factual.gradient(draws, len(draws))
        if not (removed and convention == "skip"):
            share = len(kept) / len(draws) if convention == "renormalize" and kept else 1.0
            left = torch.zeros_like(g)
            if kept:
                left = g - factual.gradient(removed, len(draws)) if removed else g
                if exact:
                    delta = flat(factual.model) - flat(other.model)
                    left = left - factual.curvature(delta, kept, len(draws))
            other.step(t, left / share)
        factual.step(t, g)
    before, after = state_of(factual.model, factual.optimizer), state_of(other.model, other.optimizer)
    gaps = {name: x - after.get(name, torch.zeros_like(x)) for name, x in before.items()}
    return flat(factual.model) - flat(other.model), gaps
