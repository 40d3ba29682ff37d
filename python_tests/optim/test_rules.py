"""A rule owns its optimizer: what the rest of the package knows of an optimizer it has asked the rule."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import lmcleaner_ext as lmc
from lmcleaner_ext.layout import ParameterLayout
from lmcleaner_ext.ops import coefficients as col
from lmcleaner_ext.optim import RULES, SERVED, AdamRule, LionRule, SGDRule, StepPlan
from lmcleaner_ext.optim.describe import describe_optimizer, rule_of, run_state, step_groups
from support.cases import OPTIMIZERS, mlp
from support.lion import Lion


@pytest.fixture
def stepped():
    model = mlp(hidden=3).build()
    optimizer = Lion(model.parameters())
    for p in list(model.parameters())[1:]:
        p.grad = torch.randn_like(p)
    optimizer.step()
    return model, optimizer


def test_an_optimizer_outside_torch_is_known_by_its_class_name(stepped, monkeypatch):
    _, optimizer = stepped
    assert rule_of(optimizer) is RULES["lion"]
    assert describe_optimizer(optimizer)["rule"] == "lion"
    assert step_groups(optimizer) == ({"lr": 1e-4, "betas": [0.9, 0.99], "weight_decay": 0.0},)
    monkeypatch.delitem(RULES, "lion")
    assert rule_of(optimizer) is None
    assert describe_optimizer(optimizer)["rule"] == ""


def test_the_state_of_an_optimizer_without_a_counter(stepped):
    model, optimizer = stepped
    layout = ParameterLayout.of(model, optimizer)
    state = run_state(layout, layout.parameters(model), optimizer, 7)
    assert set(state) == {"theta", "exp_avg", "steps"}
    assert state["steps"].tolist() == [-1.0, *[7.0] * (len(layout.entries) - 1)]


def test_a_rule_fills_in_only_what_is_its_own():
    """Gradient, decay, flags and what the counterfactual does differently are the same columns for every rule."""
    group = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.01}
    plans = [StepPlan(), StepPlan(skip=True), StepPlan(keep=0.5, response=2.0, curvature=1.0, damping=0.1)]
    table = LionRule().coefficients([group] * 3, plans, [False, False, True], 0, 0)
    np.testing.assert_array_equal(table[:, col.FLAGS], [0, col.SKIP, col.ABSENT])
    np.testing.assert_array_equal(table[:, col.ALPHA], [1, 1, 0.5])
    np.testing.assert_array_equal(table[:, [col.CURVATURE, col.DAMPING]], [[0, 0], [0, 0], [2, 0.2]])
    np.testing.assert_array_equal(table[0, [col.LR, col.DECAY, col.BETA1, col.BETA2]], [0.1, 0.01, 0.9, 0.99])


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_states_of_a_rule_are_those_of_torch(name):
    model = mlp(hidden=3).build()
    optimizer = OPTIMIZERS[name](model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    held = optimizer.state[next(model.parameters())]
    rule = rule_of(optimizer)
    assert set(rule.state_names(step_groups(optimizer))) == {
        k for k, v in held.items() if k != "step" and v is not None
    }
    assert rule.counts == ("step" in held)


@pytest.mark.parametrize(
    ("rule", "group", "decays"),
    [
        (SGDRule(), {"momentum": 0.8}, {"momentum_buffer": 0.8}),
        (AdamRule(), {"betas": (0.7, 0.95)}, {"exp_avg": 0.7, "exp_avg_sq": 0.95}),
        (LionRule(), {"betas": (0.7, 0.95)}, {"exp_avg": 0.95}),
    ],
)
def test_how_a_state_decays(rule, group, decays):
    assert {state.name: state.decay(group) for state in rule.states([group])} == decays


def test_what_messages_say_is_the_registry():
    assert SERVED == "SGD, Adam and AdamW without amsgrad, RMSprop not centered, Lion"


def test_nobody_else_names_an_optimizer():
    """Outside optim/ and ops/ no code compares an optimizer's or a state's name."""
    package = Path(lmc.__file__).parent
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] not in ("optim", "ops"):
            found = re.findall(
                r"""(?:==|!=|\bin\b)\s*["'](?:sgd|adam|adamw|exp_avg|exp_avg_sq|momentum_buffer)["']""",
                path.read_text(),
            )
            assert not found, path
