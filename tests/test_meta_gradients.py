"""Derivatives through whole train steps, by parameters and hyperparameters, against finite differences (law 8)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn

import purestep as ps
from _optimizer_table import TORCH
from purestep import optimizers
from purestep.schedules import warmup_cosine
from purestep.transforms.partition import partition

STEPS = (1, 5)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 2)).double()


def batch(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(n, 3, generator=generator, dtype=torch.float64),
        "y": torch.randint(0, 2, (n,), generator=generator),
    }


def objective(model, batch):
    return ps.mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="none"))


def nothing(model, batch):
    """Its gradient is exactly zero."""
    return ps.mean(0.0 * model(batch["x"]))


@pytest.fixture(autouse=True)
def float64_by_default():
    """torch, and so purestep, keeps some scalars in the default dtype: NAdam's product of momenta, ASGD's rate. What
    float32 rounds, differences of 1e-5 do not resolve."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def sgd(h):
    return ps.sgd(h["rate"], momentum=h.get("momentum", 0.7), weight_decay=h.get("decay", 0.1))


def scheduled(h):
    rate = warmup_cosine(peak=h["peak"], warmup_steps=1, total_steps=9, initial=h["initial"], floor=h["floor"])
    return ps.adamw(rate, weight_decay=0.1)


def clipped(h):
    return ps.chain(ps.clip_by_global_norm(h["max_norm"]), sgd(h))


def muon(h):
    return optimizers.muon(
        h["rate"], momentum=h["momentum"], weight_decay=h["weight_decay"], ns_dtype=None, others=ps.sgd(0.1)
    )


RULES = {
    **{name: (row.with_hyperparameters, {"rate": row.rate, **row.hyperparameters}) for name, row in TORCH.items()},
    "muon": (muon, {"rate": 0.03, "momentum": 0.7, "weight_decay": 0.2}),
    "schedule": (scheduled, {"peak": 0.1, "initial": 0.02, "floor": 0.01}),
    "clip": (clipped, {"rate": 0.2, "max_norm": 0.1}),
}
# Hyperparameters that do nothing before the first update is over: an average has nothing behind it yet.
LATE = {
    "sgd": {"momentum", "dampening"},
    "adam": {"beta1", "beta2"},
    "adamw": {"beta1", "beta2"},
    "adamax": {"beta1", "beta2"},
    "nadam": {"beta2"},
    "radam": {"beta1", "beta2"},
    "adagrad": {"lr_decay"},
    "adadelta": set(),
    "rmsprop": {"momentum"},
    "asgd": {"alpha"},
    "adafactor": {"beta2_decay"},
    "muon": {"momentum"},
    "schedule": {"peak", "floor"},
}
LONG = ["adamw", "radam"]
CASES = [(name, steps) for name in RULES for steps in STEPS] + [(name, 50) for name in LONG]


def outcome(name, steps, loss):
    """``(hyperparameters, move along a direction of the initial parameters) -> the loss after some steps``."""
    make, start = RULES[name]
    network = model()
    direction = {k: torch.cos(7 * leaf) for k, leaf in network.named_parameters()}
    final = ps.loss_step(network, objective, training=False)

    def function(hyperparameters, move):
        optimizer = make(hyperparameters)
        state = ps.init_state(network, optimizer, seed=0)
        params = {k: leaf + move * direction[k].detach() for k, leaf in state.params.items()}
        state = state.replace(params=TensorDict(params, batch_size=[]))
        step = ps.train_step(network, loss, optimizer)
        for t in range(steps):
            state, _ = step(state, batch(5, seed=t))
        return final(state, batch(8, seed=9))[0].value()

    numbers = {k: torch.tensor(v, dtype=torch.float64) for k, v in start.items()}
    return function, numbers, torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_a_derivative_through_steps_is_what_differences_give(name, steps):
    function, numbers, move = outcome(name, steps, objective)
    by_numbers, by_move = torch.func.grad(function, argnums=(0, 1))(numbers, move)
    size = 1e-5
    for which in (*numbers, "the initial parameters"):
        ends = []
        for sign in (1, -1):
            moved = {k: v + sign * size * (k == which) for k, v in numbers.items()}
            ends.append(function(moved, move + sign * size * (which not in numbers)).item())
        slope = by_move if which not in numbers else by_numbers[which]
        difference = (ends[0] - ends[1]) / (2 * size)
        assert slope.item() == pytest.approx(difference, rel=1e-5 if steps < 50 else 1e-4, abs=1e-9), which
    assert by_move != 0
    without = LATE.get(name, set()) if steps == 1 else {"beta2"} if name == "radam" and steps == 5 else set()
    for which, slope in by_numbers.items():
        assert abs(slope) > 1e-13 or which in without, which


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", RULES)
def test_a_derivative_through_steps_is_finite_where_the_gradient_is_zero(name, steps):
    function, numbers, move = outcome(name, steps, nothing)
    slopes, by_move = torch.func.grad(function, argnums=(0, 1))(numbers, move)
    assert all(torch.isfinite(slope) for slope in (*slopes.values(), by_move))
    leaves = {k: v.clone().requires_grad_() for k, v in numbers.items()}
    for k, slope in zip(
        leaves, torch.autograd.grad(function(leaves, move), leaves.values(), allow_unused=True), strict=True
    ):
        assert slope is None or torch.isfinite(slope), k


@pytest.mark.parametrize("name", RULES)
def test_plain_autograd_and_forward_mode_agree(name):
    function, numbers, move = outcome(name, 2, objective)
    by_func = torch.func.grad(function)(numbers, move)
    leaves = {k: v.clone().requires_grad_() for k, v in numbers.items()}
    by_autograd = torch.autograd.grad(function(leaves, move), list(leaves.values()))
    one = {k: torch.ones_like(v) for k, v in numbers.items()}
    _, along = torch.func.jvp(lambda h: function(h, move), (numbers,), (one,))
    assert torch.allclose(torch.stack(list(by_func.values())), torch.stack(by_autograd), rtol=1e-10, atol=1e-14)
    assert along.item() == pytest.approx(sum(by_func.values()).item(), rel=1e-10)


def test_a_rate_for_each_layer_is_learned_by_its_hypergradient():
    """The worked example of docs/optimizers.md: two rates, from the loss after five steps."""
    network = model()
    final = ps.loss_step(network, objective, training=False)

    def loss_after(log_rates):
        rules = {"first": ps.sgd(log_rates[0].exp()), "last": ps.sgd(log_rates[1].exp())}
        rule = partition(rules, {"0.*": "first", "3.*": "last"})
        step, state = ps.train_step(network, objective, rule), ps.init_state(network, rule, seed=0)
        for t in range(5):
            state, _ = step(state, batch(5, seed=t))
        return final(state, batch(8, seed=9))[0].value()

    log_rates = torch.tensor([-3.0, -3.0])
    losses = []
    for _ in range(10):
        slope, loss = torch.func.grad_and_value(loss_after)(log_rates)
        losses.append(loss.item())
        log_rates = log_rates - 10.0 * slope
    assert losses[-1] < losses[0]
    assert log_rates[0] != log_rates[1]
