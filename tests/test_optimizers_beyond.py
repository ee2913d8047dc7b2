"""Optimizers that torch does not have: against the algorithms of their papers, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict

import purestep as ps
from _papers import CASES, STEPS, gradients, parameters, run, schedule_free_reference
from purestep import laws
from purestep.optimizers.ademamix import ademamix
from purestep.optimizers.adopt import adopt
from purestep.optimizers.layerwise import lamb, lars
from purestep.optimizers.lion import lion
from purestep.optimizers.prodigy import prodigy
from purestep.optimizers.schedule_free import schedule_free_adamw, schedule_free_sgd
from purestep.updates import UpdateContext


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
