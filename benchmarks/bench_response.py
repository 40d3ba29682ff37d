"""How much of the residual a curvature made from gradients and moments could take away, on SmolLM2-135M.

    python benchmarks/bench_response.py        needs 20 GiB of memory and ten minutes on two cores

The run of bench_unlearn.py --model smollm2 --first-row 3968 --forget 30 31 is trained with and without the forgotten rows, side by
side. At every step both give the gradient of the rows that stay; a curvature C is there to say how they differ:

    response r = g(theta) - g(theta')        deviation d = theta - theta'        C d ~ r

Without data, C is made of few numbers. Measured is the share of |r|^2 that the best C of a kind explains, chosen with r known:

    tensor       one number per tensor
    block        one number per 256 parameters
    root of v    a multiple of AdamW's sqrt(v-hat), elementwise: a diagonal from the log
    v            a multiple of v-hat: the diagonal of the empirical Fisher matrix
    gradients    any vector in the span of the gradients of the steps before: all that "fisher" can reach
"""

from __future__ import annotations

from _common import environment, parser  # before torch

# isort: split
import copy
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from _smollm2 import TOFU
from _unlearn_run import Training, flat_parameters
from _unlearn_smollm2 import Experiment, Setting
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lmcleaner_ext import ops
from lmcleaner_ext.layout import ParameterLayout

BLOCK = 256


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--tofu", type=Path, default=TOFU, help="folder with TOFU's full.json")
    options.add_argument(
        "--first-row", type=int, default=3968, help="of TOFU's 4000, first of the 32 rows (default: a hard case)"
    )
    options.add_argument(
        "--forget",
        type=int,
        nargs="+",
        choices=range(32),
        default=[30, 31],
        metavar="PLACE",
        help="places among the rows",
    )
    options.add_argument("--steps", type=int, default=Setting().steps, help="stop after this many of the run's steps")
    chosen = options.parse_args()
    if chosen.device != "cpu" or chosen.quick or not 2 <= chosen.steps <= Setting().steps:
        options.error(f"this benchmark runs on the CPU, --steps 2 to {Setting().steps}; for a quick look --steps 3")
    setting = Setting(first_row=chosen.first_row, forget=tuple(chosen.forget))
    try:
        with Console(stderr=True).status("") as status:
            experiment = Experiment(setting, chosen.tofu, Path(), status.update)
            report = {"benchmark": "response", **measure(experiment, chosen.steps)}
    except ImportError as error:  # a package that only this benchmark needs
        print(f"bench_response.py: {error}", file=sys.stderr)
        return 2
    report["environment"] = environment(chosen.device)
    text = json.dumps(report, indent=1)
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(text + "\n")
    print(text) if chosen.json else show(report)
    return 0


def measure(experiment: Experiment, first: int) -> dict[str, Any]:
    schedule, layout, forgotten = experiment.schedule, experiment.layout, experiment.requests[0]
    models = {"with": experiment.model, "without": copy.deepcopy(experiment.model)}
    optimizers = {name: experiment.optimizer(model) for name, model in models.items()}
    retained = {name: Training(model, optimizers[name], schedule, without=forgotten) for name, model in models.items()}
    all_rows = Training(models["with"], optimizers["with"], schedule)
    earlier: list[Tensor] = []  # unit vectors, orthogonal, bfloat16: a basis of the logged gradients' span
    steps = []
    for t in range(first):
        experiment.progress(f"step {t + 1} of {first}")
        gradients = {}
        for name, run in retained.items():
            run.backward(t)
            gradients[name] = gradient_of(models[name], layout)
        d = flat_parameters(models["with"], layout).sub_(flat_parameters(models["without"], layout))
        r = gradients["with"] - gradients["without"]
        if float(d.abs().max()) > 0:
            v = second_moment(optimizers["with"], models["with"], layout)
            steps.append({"step": t, "response": norm(r) / norm(gradients["with"]), **shares(r, d, v, earlier, layout)})
        retained["without"].move(t)
        models["with"].zero_grad()
        all_rows.backward(t)
        extend(earlier, gradient_of(models["with"], layout))
        all_rows.move(t)
    return {"uses": schedule.uses(forgotten), "steps": steps}


def shares(r: Tensor, d: Tensor, v: Tensor, earlier: list[Tensor], layout: ParameterLayout) -> dict[str, float]:
    """The part of |r|^2 that the best curvature of each kind explains."""
    whole = float(ops.dot(r, r))
    tensors = sum(explained(x.flatten(), y.flatten()) for x, y in zip(layout.views(r), layout.views(d), strict=True))
    even = layout.size // BLOCK * BLOCK
    rows, columns = r[:even].view(-1, BLOCK), d[:even].view(-1, BLOCK)
    products, squares = (rows * columns).sum(1).double(), columns.square().sum(1).double()
    blocks = float((products.square() / squares.clamp_min(1e-300)).sum())
    return {
        "tensor": tensors / whole,
        "block": blocks / whole,
        "root of v": explained(r, v.sqrt().mul_(d)) / whole,
        "v": explained(r, v * d) / whole,
        "gradients": sum(float(ops.dot(r, g.float())) ** 2 for g in earlier) / whole,
    }


def explained(r: Tensor, x: Tensor) -> float:
    """|r|^2 less the smallest |r - c x|^2 over all numbers c."""
    squares = float(ops.dot(x, x))
    return float(ops.dot(r, x)) ** 2 / squares if squares > 0 else 0.0


def extend(basis: list[Tensor], g: Tensor) -> None:
    """Add what g has beyond the span of `basis` (Gram-Schmidt, twice)."""
    for _ in range(2):
        for unit in basis:
            wide = unit.float()
            g = g.sub_(wide, alpha=float(ops.dot(g, wide)))
    basis.append((g / norm(g)).bfloat16())


def norm(x: Tensor) -> float:
    return float(ops.dot(x, x)) ** 0.5


def gradient_of(model: torch.nn.Module, layout: ParameterLayout) -> Tensor:
    return layout.flatten([p.grad for p in layout.parameters(model)])


def second_moment(optimizer: torch.optim.Optimizer, model: torch.nn.Module, layout: ParameterLayout) -> Tensor:
    return layout.flatten([optimizer.state[p]["exp_avg_sq"] for p in layout.parameters(model)])


def show(report: dict[str, Any]) -> None:
    kinds = ["response", "tensor", "block", "root of v", "v", "gradients"]
    table = Table(title=f"forgotten rows used at steps {[step for step, _ in report['uses']]}")
    table.add_column("step")
    for kind in kinds:
        table.add_column("|r| / |g|" if kind == "response" else kind, justify="right")
    for step in report["steps"]:
        table.add_row(str(step["step"]), *[f"{step[kind]:.3f}" for kind in kinds])
    table.add_row("median", *[f"{statistics.median(s[kind] for s in report['steps']):.3f}" for kind in kinds])
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
