"""Derivatives through optimizers that torch does not have, by every hyperparameter."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

import purestep as ps
from purestep.optimizers.ademamix import ademamix
from purestep.optimizers.adopt import adopt
from purestep.optimizers.layerwise import lamb, lars
from purestep.optimizers.lion import lion
from purestep.optimizers.prodigy import prodigy
from purestep.optimizers.schedule_free import schedule_free_adamw, schedule_free_sgd
from purestep.updates import UpdateContext

# Every float hyperparameter by name, through some updates on a quadratic whose slopes are far from every kink.
HYPERPARAMETERS = {
    "lamb": (
        lambda h: lamb(h["rate"], betas=(h["beta1"], h["beta2"]), weight_decay=h["decay"]),
        {"rate": 0.05, "beta1": 0.8, "beta2": 0.9, "decay": 0.1},
    ),
    "lars": (
        lambda h: lars(
            h["rate"], momentum=h["momentum"], trust_coefficient=h["trust"], weight_decay=h["decay"]
        ),
        {"rate": 0.3, "momentum": 0.7, "trust": 0.2, "decay": 0.1},
    ),
    "ademamix": (
        lambda h: ademamix(
            h["rate"], betas=(h["beta1"], h["beta2"], h["beta3"]), alpha=h["alpha"], warmup_steps=4,
            weight_decay=h["decay"],
        ),
        {"rate": 0.02, "beta1": 0.8, "beta2": 0.9, "beta3": 0.97, "alpha": 2.0, "decay": 0.1},
    ),
    "adopt": (
        lambda h: adopt(
            h["rate"], betas=(h["beta1"], h["beta2"]), clip_exponent=h["clip_exponent"], weight_decay=h["decay"]
        ),
        {"rate": 0.02, "beta1": 0.8, "beta2": 0.9, "clip_exponent": 0.25, "decay": 0.1},
    ),
    "schedule_free_sgd": (
        lambda h: schedule_free_sgd(
            h["rate"], momentum=h["momentum"], weight_power=h["r"], weight_rate_power=h["p"], weight_decay=h["decay"]
        ),
        {"rate": 0.2, "momentum": 0.7, "r": 0.5, "p": 2.0, "decay": 0.1},
    ),
    "schedule_free_adamw": (
        lambda h: schedule_free_adamw(
            h["rate"], betas=(h["momentum"], h["beta2"]), weight_power=h["r"], weight_rate_power=h["p"],
            weight_decay=h["decay"],
        ),
        {"rate": 0.05, "momentum": 0.7, "beta2": 0.9, "r": 0.5, "p": 1.5, "decay": 0.1},
    ),
    "prodigy": (
        lambda h: prodigy(
            h["rate"], betas=(h["beta1"], h["beta2"]), initial_distance=0.02, distance_factor=h["factor"],
            bias_correction=True, weight_decay=h["decay"],
        ),
        {"rate": 0.8, "beta1": 0.8, "beta2": 0.9, "factor": 0.9, "decay": 0.1},
    ),
}  # fmt: skip


def outcome(name, steps, scale=1.0):
    """``(hyperparameters, a move of the first parameters) -> a number``, through some updates; the gradients are
    ``scale`` times a quadratic's."""
    make = HYPERPARAMETERS[name][0]
    w = torch.tensor([[0.5, -1.0, 1.7], [2.2, -0.4, 0.9]], dtype=torch.float64)
    start = {"w": w, "b": torch.tensor(1.2, dtype=torch.float64)}
    curvature = {"w": w.abs() + 0.3, "b": torch.tensor(0.5, dtype=torch.float64)}

    def function(h, move):
        optimizer = make(h)
        params = TensorDict({k: p + move * torch.cos(3 * p) for k, p in start.items()})
        state = optimizer.init(params)
        for step in range(steps):
            # They grow once, so that adopt's clip has something to clip.
            size = scale * (1.5 if step else 1.0)
            grads = TensorDict({k: size * curvature[k] * (p + 0.3) for k, p in params.items()})
            params, state = optimizer.update(grads, state, params, UpdateContext(torch.tensor(step), ps.random.key(0)))
        params = optimizer.eval_params(params, state)
        return sum((curvature[k] * (p + 0.2).square()).sum() for k, p in params.items())

    numbers = {k: torch.tensor(v, dtype=torch.float64) for k, v in HYPERPARAMETERS[name][1].items()}
    return function, numbers, torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 5, 50])
@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_derivatives_by_every_hyperparameter_are_what_differences_give(name, steps):
    function, numbers, move = outcome(name, steps)
    by_numbers, by_move = torch.func.grad(function, argnums=(0, 1))(numbers, move)
    slopes = {**by_numbers, "move": by_move}
    # Fifty steps around a minimum carry roundings far: differences are worth less there.
    h, tolerance = 1e-5, 2e-3 if steps == 50 else 2e-5
    for which, slope in slopes.items():
        ends = []
        for sign in (1, -1):
            moved = {k: v + sign * h * (k == which) for k, v in numbers.items()}
            ends.append(function(moved, move + sign * h * (which == "move")).item())
        assert slope.item() == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=tolerance, abs=1e-7), which
        if steps == 5:
            assert slope != 0, which


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_derivatives_are_finite_where_the_gradient_is_zero(name):
    function, numbers, move = outcome(name, 5, scale=0.0)
    by_numbers, by_move = torch.func.grad(function, argnums=(0, 1))(numbers, move)
    assert all(torch.isfinite(slope) for slope in (*by_numbers.values(), by_move))
    leaves = {k: v.clone().requires_grad_() for k, v in numbers.items()}
    slopes = torch.autograd.grad(function(leaves, move), list(leaves.values()), allow_unused=True)
    assert all(slope is None or torch.isfinite(slope) for slope in slopes)


def test_the_derivative_of_lions_sign_is_zero():
    def after(rate, grad, beta):
        optimizer, params = lion(rate, betas=(beta, 0.9)), TensorDict({"w": torch.ones(3).double()})
        state = optimizer.init(params)
        for step in range(2):
            grads = TensorDict({"w": grad * torch.tensor([1.0, -2.0, 0.0]).double()})
            params, state = optimizer.update(grads, state, params, UpdateContext(torch.tensor(step), ps.random.key(0)))
        return (params["w"] * torch.tensor([1.0, 2.0, 4.0])).sum()

    numbers = [torch.tensor(value, dtype=torch.float64) for value in (0.1, 0.7, 0.5)]
    slopes = torch.func.grad(after, argnums=(0, 1, 2))(*numbers)
    assert [slope.item() for slope in slopes] == [2 * (2.0 - 1.0), 0.0, 0.0]
