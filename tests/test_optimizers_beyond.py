"""Optimizers that torch does not have: against the algorithms of their papers, and their derivatives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep import laws
from purestep.optimizers.ademamix import ademamix
from purestep.optimizers.adopt import adopt
from purestep.optimizers.layerwise import lamb, lars
from purestep.optimizers.lion import lion
from purestep.optimizers.prodigy import prodigy
from purestep.optimizers.schedule_free import schedule_free_adamw, schedule_free_sgd
from purestep.updates import UpdateContext

STEPS = 50
SHAPES = {"scalar": (), "vector": (7,), "matrix": (5, 3), "kernel": (4, 3, 2, 2), "empty": (0, 3), "still": (4,)}


def parameters():
    generator = np.random.default_rng(0)
    params = {name: np.asarray(generator.normal(size=shape)) for name, shape in SHAPES.items()}
    params["zero"] = np.zeros(3)
    params["transposed"] = generator.normal(size=(6, 4)).T
    return params


def gradients():
    """Of many sizes, around a drift; one parameter never has any, and at step 7 none has."""
    generator = np.random.default_rng(1)
    steps = []
    for step in range(STEPS):
        sizes = {name: 10.0 ** (position - 4) for position, name in enumerate(parameters())}
        steps.append(
            {
                name: (0.3 + generator.normal(size=leaf.shape)) * sizes[name] * (step != 7 and name != "still")
                for name, leaf in parameters().items()
            }
        )
    return steps


def matrices(name, leaf):
    return leaf.ndim >= 2


# Each reference is the paper's algorithm in NumPy: (params, grads of each step, options) -> params after each step.
def lamb_reference(params, grads, rate=0.1, betas=(0.9, 0.999), eps=1e-6, decay=0.0, decays=None, trusts=None):
    x = {k: p.copy() for k, p in params.items()}
    m, v = ({k: np.zeros_like(p) for k, p in params.items()} for _ in range(2))
    for t, g in enumerate(grads, 1):
        for k in x:
            m[k] = betas[0] * m[k] + (1 - betas[0]) * g[k]
            v[k] = betas[1] * v[k] + (1 - betas[1]) * g[k] ** 2
            r = (m[k] / (1 - betas[0] ** t)) / (np.sqrt(v[k] / (1 - betas[1] ** t)) + eps)
            u = r + (decay if decays is None or decays(k, x[k]) else 0.0) * x[k]
            sizes = np.sqrt((x[k] ** 2).sum()), np.sqrt((u**2).sum())
            ratio = sizes[0] / sizes[1] if min(sizes) > 0 and (trusts is None or trusts(k, x[k])) else 1.0
            x[k] = x[k] - rate * ratio * u
        yield x


def lars_reference(params, grads, rate=0.1, momentum=0.9, trust=1e-3, decay=0.0, decays=None, trusts=None):
    x = {k: p.copy() for k, p in params.items()}
    b = {k: np.zeros_like(p) for k, p in params.items()}
    for g in grads:
        for k in x:
            own = decay if decays is None or decays(k, x[k]) else 0.0
            size = np.sqrt((x[k] ** 2).sum())
            below = np.sqrt((g[k] ** 2).sum()) + own * size
            local = trust * size / below if min(size, below) > 0 and (trusts is None or trusts(k, x[k])) else 1.0
            b[k] = momentum * b[k] + rate * local * (g[k] + own * x[k])
            x[k] = x[k] - b[k]
        yield x


def lion_reference(params, grads, rate=0.01, betas=(0.9, 0.99), decay=0.0, decays=None):
    x = {k: p.copy() for k, p in params.items()}
    m = {k: np.zeros_like(p) for k, p in params.items()}
    for g in grads:
        for k in x:
            update = np.sign(betas[0] * m[k] + (1 - betas[0]) * g[k])
            x[k] = x[k] - rate * (update + (decay if decays is None or decays(k, x[k]) else 0.0) * x[k])
            m[k] = betas[1] * m[k] + (1 - betas[1]) * g[k]
        yield x


def ademamix_reference(
    params, grads, rate=0.01, betas=(0.9, 0.999, 0.9999), alpha=5.0, warmup=None, eps=1e-8, decay=0.0
):
    x = {k: p.copy() for k, p in params.items()}
    slow, fast, v = ({k: np.zeros_like(p) for k, p in params.items()} for _ in range(3))
    b1, b2, b3 = betas
    for t, g in enumerate(grads, 1):
        share, beta = alpha, b3
        if warmup is not None:
            share = min(t * alpha / warmup, alpha)
            below = (1 - t / warmup) * math.log(b3) + (t / warmup) * math.log(b1)
            beta = min(math.exp(math.log(b1) * math.log(b3) / below), b3) if t < warmup else b3
        for k in x:
            fast[k] = b1 * fast[k] + (1 - b1) * g[k]
            slow[k] = beta * slow[k] + (1 - beta) * g[k]
            v[k] = b2 * v[k] + (1 - b2) * g[k] ** 2
            step = (fast[k] / (1 - b1**t) + share * slow[k]) / (np.sqrt(v[k] / (1 - b2**t)) + 1e-8)
            x[k] = x[k] - rate * (step + decay * x[k])
        yield x


def adopt_reference(params, grads, rate=0.01, betas=(0.9, 0.9999), eps=1e-6, power=0.25, decay=0.0):
    x = {k: p * (1 - rate * decay) for k, p in params.items()}
    m = {k: np.zeros_like(p) for k, p in params.items()}
    v = {k: g**2 for k, g in grads[0].items()}
    yield x
    for t, g in enumerate(grads[1:], 1):
        for k in x:
            step = g[k] / np.maximum(np.sqrt(v[k]), eps)
            if power is not None:
                step = np.clip(step, -(t**power), t**power)
            m[k] = betas[0] * m[k] + (1 - betas[0]) * step
            x[k] = x[k] - rate * (m[k] + decay * x[k])
            v[k] = betas[1] * v[k] + (1 - betas[1]) * g[k] ** 2
        yield x


def schedule_free_reference(params, grads, rate=0.1, beta=0.9, beta2=None, eps=1e-8, r=0.0, power=2.0, decay=0.0):
    """All three sequences are kept; yields y and x."""
    x, y, z = ({k: p.copy() for k, p in params.items()} for _ in range(3))
    v = {k: np.zeros_like(p) for k, p in params.items()}
    largest, total = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        gamma = rate(t) if callable(rate) else rate
        if beta2 is not None:
            gamma *= math.sqrt(1 - beta2**t)
        largest = max(largest, gamma)
        weight = t**r * largest**power
        total += weight
        c = weight / total if total else 0.0
        for k in x:
            direction = g[k]
            if beta2 is not None:
                v[k] = beta2 * v[k] + (1 - beta2) * g[k] ** 2
                direction = g[k] / (np.sqrt(v[k]) + eps)
            z[k] = z[k] - gamma * direction - gamma * decay * y[k]
            x[k] = (1 - c) * x[k] + c * z[k]
            y[k] = (1 - beta) * z[k] + beta * x[k]
        yield {**y, **{f"{k} averaged": leaf for k, leaf in x.items()}}


def prodigy_reference(params, grads, rate=1.0, betas=(0.9, 0.999), eps=1e-8, d=1e-6, factor=1.0, decay=0.0, bc=False):
    x = {k: p.copy() for k, p in params.items()}
    m, v, s = ({k: np.zeros_like(p) for k, p in params.items()} for _ in range(3))
    r, root = 0.0, math.sqrt(betas[1])
    for t, g in enumerate(grads, 1):
        r = root * r + (1 - root) * rate * d**2 * sum((g[k] * (params[k] - x[k])).sum() for k in x)
        correction = math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) if bc else 1.0
        for k in x:
            m[k] = betas[0] * m[k] + (1 - betas[0]) * d * g[k]
            v[k] = betas[1] * v[k] + (1 - betas[1]) * d**2 * g[k] ** 2
            s[k] = root * s[k] + (1 - root) * rate * d**2 * g[k]
            x[k] = (1 - rate * d * decay) * x[k] - rate * d * correction * m[k] / (np.sqrt(v[k]) + d * eps)
        size = sum(np.abs(leaf).sum() for leaf in s.values())
        d = max(d, factor * r / size) if size else d
        yield {**x, "d": d}


MASKS = {"decays": matrices, "trusts": matrices}
OUR_MASKS = {"decay_mask": ps.matrices_only, "trust_mask": ps.matrices_only}
CASES = {
    "lamb": (lambda: lamb(0.1, weight_decay=0.0), lamb_reference, {}),
    "lamb with decay": (lambda: lamb(0.05, betas=(0.5, 0.7), weight_decay=0.1), lamb_reference,
                        {"rate": 0.05, "betas": (0.5, 0.7), "decay": 0.1}),
    "lamb, masked": (lambda: lamb(0.1, eps=1e-3, weight_decay=0.2, **OUR_MASKS), lamb_reference,
                     {"eps": 1e-3, "decay": 0.2, **MASKS}),
    "lars": (lambda: lars(0.1), lars_reference, {}),
    "lars, masked": (lambda: lars(2.0, momentum=0.5, trust_coefficient=0.02, weight_decay=0.1, **OUR_MASKS),
                     lars_reference, {"rate": 2.0, "momentum": 0.5, "trust": 0.02, "decay": 0.1, **MASKS}),
    "lion": (lambda: lion(0.01), lion_reference, {}),
    "lion, masked": (lambda: lion(0.01, betas=(0.5, 0.8), weight_decay=0.3, decay_mask=ps.matrices_only),
                     lion_reference, {"betas": (0.5, 0.8), "decay": 0.3, "decays": matrices}),
    "ademamix": (lambda: ademamix(0.01), ademamix_reference, {}),
    "ademamix with warm-ups": (lambda: ademamix(0.01, betas=(0.8, 0.9, 0.99), alpha=2.0, warmup_steps=30,
                                                weight_decay=0.1),
                               ademamix_reference,
                               {"betas": (0.8, 0.9, 0.99), "alpha": 2.0, "warmup": 30, "decay": 0.1}),
    "adopt": (lambda: adopt(0.01), adopt_reference, {}),
    "adopt, not clipped": (lambda: adopt(0.01, betas=(0.5, 0.9), eps=1e-3, clip_exponent=None, weight_decay=0.1),
                           adopt_reference, {"betas": (0.5, 0.9), "eps": 1e-3, "power": None, "decay": 0.1}),
    "schedule_free_sgd": (lambda: schedule_free_sgd(0.1), schedule_free_reference, {}),
    "schedule_free_sgd with a warm-up": (
        lambda: schedule_free_sgd(ps.schedules.linear(start=0.0, end=0.3, steps=10), momentum=0.7,
                                  weight_power=1.0, weight_decay=0.1),
        schedule_free_reference,
        {"rate": lambda t: 0.3 * min((t - 1) / 10, 1.0), "beta": 0.7, "r": 1.0, "decay": 0.1}),
    "schedule_free_sgd with a decay": (
        lambda: schedule_free_sgd(ps.schedules.linear(start=0.3, end=0.03, steps=40)),
        schedule_free_reference, {"rate": lambda t: 0.3 - 0.27 * min((t - 1) / 40, 1.0)}),
    "schedule_free_adamw": (lambda: schedule_free_adamw(0.01), schedule_free_reference, {"rate": 0.01, "beta2": 0.999}),
    "schedule_free_adamw with powers": (
        lambda: schedule_free_adamw(0.02, betas=(1.0, 0.9), eps=1e-3, weight_power=2.0, weight_rate_power=0.5,
                                    weight_decay=0.2),
        schedule_free_reference,
        {"rate": 0.02, "beta": 1.0, "beta2": 0.9, "eps": 1e-3, "r": 2.0, "power": 0.5, "decay": 0.2}),
    "prodigy": (lambda: prodigy(), prodigy_reference, {}),
    "prodigy with corrections": (
        lambda: prodigy(0.5, betas=(0.8, 0.9), initial_distance=1e-3, distance_factor=2.0, bias_correction=True,
                        weight_decay=0.1),
        prodigy_reference, {"rate": 0.5, "betas": (0.8, 0.9), "d": 1e-3, "factor": 2.0, "bc": True, "decay": 0.1}),
}  # fmt: skip


def run(optimizer, dtype=torch.float64):
    """Yield what the reference yields: the parameters, the averaged ones and the estimate of the distance."""
    params = TensorDict({name: torch.tensor(leaf, dtype=dtype) for name, leaf in parameters().items()})
    state = optimizer.init(params)
    for step, grads in enumerate(gradients()):
        grads = TensorDict({name: torch.tensor(leaf, dtype=dtype) for name, leaf in grads.items()})
        context = UpdateContext(torch.tensor(step), ps.random.key(0))
        params, state = optimizer.update(grads, state, params, context)
        yield {
            **dict(params.items()),
            **{f"{name} averaged": leaf for name, leaf in optimizer.eval_params(params, state).items()},
            **({"d": state["distance"]} if "distance" in state.keys() else {}),  # noqa: SIM118
        }


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_papers_algorithm(name):
    make, reference, options = CASES[name]
    moved = 0
    for ours, right in zip(run(make()), reference(parameters(), gradients(), **options), strict=True):
        for leaf, wanted in right.items():
            difference = np.abs(ours[leaf].numpy() - wanted)
            assert np.all(difference <= 1e-11 * (1 + np.abs(wanted))), f"{leaf}: off by {difference.max()}"
        moved += not np.allclose(right["matrix"], parameters()["matrix"], rtol=1e-7)
    assert moved >= STEPS - 2


@pytest.mark.parametrize("name", CASES)
def test_float32_follows_float64(name):
    make = CASES[name][0]
    *_, wide = run(make())
    *_, narrow = run(make(), torch.float32)
    for leaf, right in wide.items():
        if leaf != "d":
            assert narrow[leaf].dtype == torch.float32
        size = 1 + (right.abs().max() if right.numel() else 0.0)
        # Lion's sign may turn at a rounding, and Prodigy's distance grows from roundings as it does from gradients.
        bar = 0.05 if "prodigy" in name else 2e-4
        if "lion" not in name:
            assert (narrow[leaf].double() - right).abs().sum() <= bar * size * max(right.numel(), 1), leaf


LAWS = {
    "lamb": lambda rate: lamb(rate, decay_mask=ps.matrices_only, trust_mask=ps.matrices_only),
    "lamb, maximizing": lambda rate: lamb(rate, weight_decay=0.3, maximize=True),
    "lars": lambda rate: lars(rate, trust_coefficient=0.5, weight_decay=0.1),
    "lars, masked": lambda rate: lars(rate, trust_mask=ps.matrices_only, maximize=True),
    "ademamix": lambda rate: ademamix(rate, weight_decay=0.1),
    "ademamix with warm-ups": lambda rate: ademamix(rate, warmup_steps=2, maximize=True),
    "adopt": lambda rate: adopt(rate, weight_decay=0.1),
    "adopt, not clipped": lambda rate: adopt(rate, clip_exponent=None, maximize=True),
    "schedule_free_sgd": lambda rate: schedule_free_sgd(rate, weight_power=1.0, weight_decay=0.1),
    "schedule_free_adamw": lambda rate: schedule_free_adamw(rate, weight_decay=0.1, maximize=True),
    "prodigy": lambda rate: prodigy(rate, initial_distance=0.1, weight_decay=0.1),
    "prodigy with corrections": lambda rate: prodigy(rate, initial_distance=0.1, bias_correction=True, maximize=True),
    "lion": lambda rate: lion(rate, weight_decay=0.1, maximize=True),
}


@pytest.mark.parametrize("name", LAWS)
def test_it_keeps_the_laws_of_optimizers(name):
    laws.check_optimizer(LAWS[name], smooth=name != "lion")


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


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def objective(model, batch):
    return ps.mean((model(batch["x"]) - batch["y"]).square())


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 3, generator=generator)
    return TensorDict({"x": x, "y": x.sum(1, keepdim=True).sin()}, batch_size=[16])


def test_schedule_free_evaluates_at_its_average():
    """With frozen parameters, and behind a transformation."""
    network = model()
    optimizer = ps.chain(ps.clip_by_global_norm(1.0), schedule_free_adamw(0.05))
    trainable = ["2.*", "0.weight"]
    step = ps.train_step(network, objective, optimizer, trainable=trainable)
    state = ps.init_state(network, optimizer, seed=0, trainable=trainable)
    for seed in range(20):
        state, _ = step(state, batch(seed))
    averaged = optimizer.eval_params(state.params, state.opt_state)
    assert list(averaged.keys()) == list(state.params.keys())
    assert averaged["0.bias"] is state.params["0.bias"]
    assert not torch.allclose(averaged["2.weight"], state.params["2.weight"], rtol=1e-3)
    got = ps.eval_step(network, objective, optimizer=optimizer)(state, batch())["loss"].value()
    at_x = ps.eval_step(network, objective)(state.replace(params=averaged), batch())["loss"].value()
    at_y = ps.eval_step(network, objective)(state, batch())["loss"].value()
    assert got == at_x
    assert got != at_y


def test_a_schedule_free_momentum_may_change():
    """x is found from y and z by the momentum that made y."""
    momentum = ps.schedules.linear(start=0.5, end=0.95, steps=10)
    params = TensorDict({"w": torch.tensor([1.0, -2.0], dtype=torch.float64)})
    optimizer = schedule_free_sgd(0.1, momentum=momentum)
    state = optimizer.init(params)
    x = z = params["w"]
    for step in range(15):
        y = params["w"]
        params, state = optimizer.update(params, state, params, UpdateContext(torch.tensor(step), ps.random.key(0)))
        z = z - 0.1 * y
        x = x + (z - x) / (step + 1)
        assert torch.allclose(optimizer.eval_params(params, state)["w"], x, rtol=1e-13)
        beta = momentum(step)
        assert torch.allclose(params["w"], (1 - beta) * z + beta * x, rtol=1e-13)


def test_schedule_free_in_an_ensemble_of_rates():
    """Rates and momenta vmapped over replicas, evaluated at each one's average."""
    params = TensorDict({"w": torch.tensor([1.0, -2.0], dtype=torch.float64)})

    def after(rate, momentum):
        optimizer = schedule_free_adamw(rate, betas=(momentum, 0.9))
        p, state = params, optimizer.init(params)
        for step in range(4):
            p, state = optimizer.update(p, state, p, UpdateContext(torch.tensor(step), ps.random.key(0)))
        return optimizer.eval_params(p, state)["w"]

    rates, momenta = torch.tensor([0.1, 0.3]).double(), torch.tensor([0.9, 0.5]).double()
    together = torch.vmap(after)(rates, momenta)
    for i in range(2):
        assert torch.allclose(together[i], after(rates[i].item(), momenta[i].item()), rtol=1e-12)


def test_prodigy_reports_its_distance():
    network, optimizer = model(), prodigy()
    state = ps.init_state(network, optimizer, seed=0)
    step = ps.train_step(network, objective, optimizer)
    seen = []
    for _ in range(60):
        state, metrics = step(state, batch())
        seen.append(metrics["distance"].item())
        assert metrics["learning_rate"] == 1
    assert all(after >= before for before, after in itertools.pairwise(seen))
    assert seen[-1] > 1e3 * seen[0]


def test_scalars_that_add_up_are_wide():
    params = TensorDict({"w": torch.ones(2, dtype=torch.bfloat16)})
    for optimizer, names in (
        (schedule_free_sgd(0.1), ("momentum", "largest_rate", "weight_sum")),
        (prodigy(), ("distance", "inner_product")),
    ):
        state = optimizer.init(params)
        _, after = optimizer.update(params, state, params, UpdateContext(torch.tensor(0), ps.random.key(0)))
        for name in names:
            assert state[name].dtype == after[name].dtype == torch.float64
    assert prodigy().init(params)["distance"].item() == 1e-6


# What each would be with one line wrong; the reference must tell.
def evaluating_at_y(optimizer):
    return ps.Optimizer(optimizer.init, optimizer.update, optimizer.hyperparams)


def with_state(optimizer, change):
    def update(grads, state, params, context):
        params, state = optimizer.update(grads, state, params, context)
        return params, change(state)

    return ps.Optimizer(optimizer.init, update, optimizer.hyperparams, optimizer.eval_params)


def with_grads(optimizer, change):
    return ps.Optimizer(
        optimizer.init,
        lambda grads, state, params, context: optimizer.update(change(grads), state, params, context),
        optimizer.hyperparams,
        optimizer.eval_params,
    )


def setting(name, value):
    def change(state):
        return TensorDict({**dict(state.items()), name: torch.full_like(state[name], value)}, batch_size=[])

    return change


MUTANTS = {
    "schedule-free, evaluated at y": ("schedule_free_sgd", evaluating_at_y),
    "schedule-free whose weights forget the largest rate": (
        "schedule_free_sgd with a decay", lambda o: with_state(o, setting("largest_rate", 0.0))),
    "schedule-free whose weights do not add up": (
        "schedule_free_sgd", lambda o: with_state(o, setting("weight_sum", 0.0))),
    "prodigy that forgets its sums": ("prodigy", lambda o: with_state(o, setting("inner_product", 0.0))),
    "ademamix that counts from zero": ("ademamix", lambda o: with_state(o, setting("count", 0))),
    "adopt that always only looks": ("adopt", lambda o: with_state(o, setting("count", 0))),
    "lion by the raw sign": ("lion", lambda o: with_grads(o, lambda g: g.apply(torch.sign))),
    "lars whose norm sees zeros as ones": ("lars", lambda o: with_grads(o, lambda g: g.apply(lambda x: x + 1e-6))),
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n][1] is schedule_free_reference])
def test_a_sum_of_weights_begins_at_zero(name):
    state = CASES[name][0]().init(TensorDict({"w": torch.ones(2)}))
    assert (state["momentum"], state["largest_rate"], state["weight_sum"]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_reference_catches(mutant, monkeypatch):
    name, change = MUTANTS[mutant]
    make, reference, options = CASES[name]
    monkeypatch.setitem(CASES, name, (lambda: change(make()), reference, options))
    with pytest.raises(AssertionError, match="off by"):
        test_it_is_the_papers_algorithm(name)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lamb(-0.1), ValueError, "rate must be a finite number at least 0, got -0.1"),
        (lambda: lamb(0.1, betas=(0.9, 1.0)), ValueError, "betas[1] must be a finite number at least 0 and below 1"),
        (lambda: lamb(0.1, eps=-1.0), ValueError, "eps must be a finite number at least 0, got -1.0"),
        (lambda: lamb(0.1, weight_decay=math.nan), ValueError, "weight_decay must be a finite number at least 0"),
        (lambda: lamb(0.1, decay_mask=True), TypeError, "decay_mask must be a function (name, parameter) -> bool"),
        (lambda: lamb(0.1, trust_mask="w"), TypeError, "trust_mask must be a function (name, parameter) -> bool"),
        (lambda: lars(0.1, momentum=-1.0), ValueError, "momentum must be a finite number at least 0, got -1.0"),
        (lambda: lars(0.1, trust_coefficient="x"), TypeError, "trust_coefficient must be a number, a 0-d tensor"),
        (lambda: lars(0.1, trust_mask=1), TypeError, "trust_mask must be a function"),
        (lambda: lion(math.nan), ValueError, "rate must be a finite number at least 0, got nan"),
        (lambda: lion(0.1, betas=0.9), TypeError, "betas must be two numbers in [0, 1), got 0.9"),
        (lambda: ademamix(0.1, betas=(0.9, 0.99)), TypeError, "betas must be three numbers in [0, 1)"),
        (lambda: ademamix(0.1, betas=(0.9, 0.99, 0.0)), ValueError, "betas[2] must be a finite number above 0"),
        (lambda: ademamix(0.1, alpha=-1.0), ValueError, "alpha must be a finite number at least 0, got -1.0"),
        (lambda: ademamix(0.1, warmup_steps=0), ValueError, "warmup_steps must be an int of at least 1, got 0"),
        (lambda: ademamix(0.1, warmup_steps=9.5), TypeError, "warmup_steps must be an int of at least 1, got 9.5"),
        (lambda: adopt(0.1, eps=0.0), ValueError, "eps must be a finite number above 0, got 0.0"),
        (lambda: adopt(0.1, clip_exponent=-1.0), ValueError, "clip_exponent must be a finite number at least 0"),
        (lambda: schedule_free_sgd(0.1, momentum=0.0), ValueError, "momentum must be a finite number above 0 and at"),
        (lambda: schedule_free_sgd(0.1, momentum=1.5), ValueError, "momentum must be a finite number above 0 and at"),
        (lambda: schedule_free_sgd(0.1, weight_power=-1.0), ValueError, "weight_power must be a finite number at"),
        (lambda: schedule_free_adamw(0.1, betas=(0.0, 0.9)), ValueError, "betas[0] must be a finite number above 0"),
        (lambda: schedule_free_adamw(0.1, betas=(0.9, 1.0)), ValueError, "betas[1] must be a finite number at least 0"),
        (lambda: schedule_free_adamw(0.1, betas=0.9), TypeError, "betas must be two numbers, in (0, 1] and in [0, 1)"),
        (lambda: prodigy(eps=0.0), ValueError, "eps must be a finite number above 0"),
        (lambda: prodigy(initial_distance=0.0), ValueError, "initial_distance must be a finite number above 0"),
        (lambda: prodigy(distance_factor=-1.0), ValueError, "distance_factor must be a finite number at least 0"),
        (lambda: prodigy(weight_decay="x"), TypeError, "weight_decay must be a number, a 0-d tensor or a schedule"),
    ],
)  # fmt: skip
def test_hyperparameters_out_of_range(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["lamb", "lars", "lion", "ademamix", "adopt", "schedule_free_sgd", "prodigy"])
def test_what_does_not_belong_is_refused(name):
    optimizer = CASES[name][0]()
    params = TensorDict({"w": torch.ones(2)})
    context = UpdateContext(torch.tensor(0), ps.random.key(0))
    with pytest.raises(TypeError, match=f"{name} needs parameters of a real floating-point dtype, got torch.int64"):
        optimizer.init(TensorDict({"w": torch.ones(2, dtype=torch.int64)}))
    other = ps.sgd(0.1, momentum=0.9, dampening=0.1).init(params)
    if name != "lars":
        with pytest.raises(KeyError, match=f"tells the state of another optimizer: {name} keeps"):
            optimizer.update(params, other, params, context)
    with pytest.raises(ValueError, match="must have its parameter's shape"):
        optimizer.update(TensorDict({"w": torch.ones(3)}), optimizer.init(params), params, context)
