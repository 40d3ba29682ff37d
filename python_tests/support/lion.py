"""Lion as in lion-pytorch 0.2: torch has none, so the tests bring one of that name, with its hyper-parameters and state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """theta *= 1 - lr w;  theta -= lr sign(b1 m + (1 - b1) g);  m = b2 m + (1 - b2) g

    With decoupled_weight_decay the decay is w / (the initial lr).  Source: https://arxiv.org/abs/2302.06675, algorithm 2
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
    ):
        self._init_lr, self.decoupled_wd = lr, decoupled_weight_decay
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
            if self.decoupled_wd:
                decay /= self._init_lr
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - lr * decay)
                p.add_((beta1 * m + (1 - beta1) * p.grad).sign_(), alpha=-lr)
                m.mul_(beta2).add_(p.grad, alpha=1 - beta2)
