"""Derivatives through whole train steps, by parameters and hyperparameters, against finite differences (law 8)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep.schedules import warmup_cosine

STEPS = (1, 3)


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


def sgd(h):
    return ps.sgd(h["rate"], momentum=h.get("momentum", 0.7), weight_decay=h.get("decay", 0.1))


def adamw(h):
    return ps.adamw(h["rate"], betas=(h["beta1"], h["beta2"]), weight_decay=h["decay"])


def scheduled(h):
    rate = warmup_cosine(peak=h["peak"], warmup_steps=1, total_steps=9, initial=h["initial"], floor=h["floor"])
    return ps.adamw(rate, weight_decay=0.1)


def clipped(h):
    return ps.chain(ps.clip_by_global_norm(h["max_norm"]), sgd(h))


RULES = {
    "sgd": (sgd, {"rate": 0.2, "momentum": 0.7, "decay": 0.1}),
    "adamw": (adamw, {"rate": 0.05, "beta1": 0.8, "beta2": 0.9, "decay": 0.2}),
    "schedule": (scheduled, {"peak": 0.1, "initial": 0.02, "floor": 0.01}),
    "clip": (clipped, {"rate": 0.2, "max_norm": 0.1}),
}


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


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", RULES)
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
        assert slope.item() == pytest.approx((ends[0] - ends[1]) / (2 * size), rel=1e-5, abs=1e-9), which
    assert by_move != 0
    if steps == 3:  # the first step has no velocity, and a warm-up's is at its initial rate alone
        assert all(slope != 0 for slope in by_numbers.values())


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
    function, numbers, move = outcome(name, 3, objective)
    by_func = torch.func.grad(function)(numbers, move)
    leaves = {k: v.clone().requires_grad_() for k, v in numbers.items()}
    by_autograd = torch.autograd.grad(function(leaves, move), list(leaves.values()))
    one = {k: torch.ones_like(v) for k, v in numbers.items()}
    _, along = torch.func.jvp(lambda h: function(h, move), (numbers,), (one,))
    assert torch.allclose(torch.stack(list(by_func.values())), torch.stack(by_autograd), rtol=1e-10, atol=1e-14)
    assert along.item() == pytest.approx(sum(by_func.values()).item(), rel=1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_hyperparameter_is_a_number_a_tensor_or_a_schedule_alike(optimizer):
    numbers = RULES[optimizer][1]
    make = RULES[optimizer][0]
    network, kept = model(), []
    held = {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}
    scheduled = {k: ps.schedules.constant(v) for k, v in numbers.items()}
    for hyperparameters in (numbers, held, scheduled):
        rule = make(hyperparameters)
        state, step = ps.init_state(network, rule, seed=0), ps.train_step(network, objective, rule)
        for t in range(3):
            state, _ = step(state, batch(5, seed=t))
        kept.append(state.params)
    for name, leaf in kept[0].items():
        assert torch.equal(leaf, kept[1][name]), name
        assert torch.equal(leaf, kept[2][name]), name
