"""What optimizers refuse, and in which words."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict

import purestep as ps
from _optimizer_table import BEYOND, TORCH
from purestep import optimizers
from purestep.updates import UpdateContext

DECAYING = [name for name in TORCH if name != "rprop"]
WITH_BETAS = ["adam", "adamw", "adamax", "nadam", "radam"]
WITH_EPS = [*WITH_BETAS, "adagrad", "adadelta", "rmsprop", "muon"]


def refused(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf, "fast", True, None, torch.ones(2)], ids=str)
@pytest.mark.parametrize("name", TORCH)
def test_a_rate_that_is_none(name, rate):
    error = ValueError if isinstance(rate, (float, torch.Tensor)) else TypeError
    refused(lambda: TORCH[name].make(rate), error, "rate must be a ")


@pytest.mark.parametrize("name", DECAYING)
def test_a_decay_that_is_none(name):
    make = TORCH[name].make
    says = "weight_decay must be a finite number at least 0, got "
    refused(lambda: make(0.1, weight_decay=-1e-3), ValueError, says + "-0.001")
    refused(lambda: make(0.1, weight_decay=math.nan), ValueError, says + "nan")
    refused(lambda: make(0.1, decay_mask="*.weight"), TypeError, "decay_mask must be a function (name, parameter)")


@pytest.mark.parametrize("name", WITH_BETAS)
def test_betas_out_of_range(name):
    make = TORCH[name].make
    says = "must be a finite number at least 0 and below 1, got "
    refused(lambda: make(0.1, betas=(1.0, 0.9)), ValueError, f"betas[0] {says}1.0")
    refused(lambda: make(0.1, betas=(0.9, -0.1)), ValueError, f"betas[1] {says}-0.1")
    refused(lambda: make(0.1, betas=(math.nan, 0.9)), ValueError, f"betas[0] {says}nan")
    refused(lambda: make(0.1, betas=0.9), TypeError, "betas must be two numbers in [0, 1), got 0.9")
    refused(lambda: make(0.1, betas=(0.9, 0.99, 0.999)), TypeError, "betas must be two numbers in [0, 1), got (0.9,")


@pytest.mark.parametrize("name", WITH_EPS)
def test_eps_out_of_range(name):
    refused(lambda: TORCH[name].make(0.1, eps=-1e-8), ValueError, "eps must be a finite number at least 0, got -1e-08")
    refused(lambda: TORCH[name].make(0.1, eps=None), TypeError, "eps must be a finite number at least 0, got None")


FLAGS = {
    "sgd": ("nesterov", "maximize"),
    "adam": ("amsgrad", "maximize"),
    "adamw": ("amsgrad",),
    "nadam": ("decoupled",),
    "radam": ("decoupled",),
    "rmsprop": ("centered",),
    "muon": ("nesterov", "maximize"),
    "prodigy": ("bias_correction", "maximize"),
    "schedule_free_sgd": ("maximize",),
}


@pytest.mark.parametrize(("name", "flag"), [(name, flag) for name, flags in FLAGS.items() for flag in flags])
def test_a_flag_that_is_none(name, flag):
    make = {**TORCH, **BEYOND}[name].make
    refused(lambda: make(0.1, **{flag: "no"}), TypeError, f"{flag} must be True or False, got 'no'")


OTHERS = {
    "momentum": (
        lambda: ps.sgd(0.1, momentum=-0.5),
        ValueError,
        "momentum must be a finite number at least 0, got -0.5",
    ),
    "a decay that is a word": (
        lambda: ps.sgd(0.1, weight_decay="x"),
        TypeError,
        "weight_decay must be a number, a 0-d",
    ),
    "nesterov": (lambda: ps.sgd(0.1, nesterov=True), ValueError, "nesterov=True needs momentum above 0"),
    "dampened": (lambda: ps.sgd(0.1, momentum=0.9, dampening=0.1, nesterov=True), ValueError, "dampening=0.1"),
    "lambd": (lambda: optimizers.asgd(0.1, lambd=-1.0), ValueError, "lambd must be a finite number at least 0"),
    "t0": (lambda: optimizers.asgd(0.1, t0=-1.0), ValueError, "t0 must be a finite number at least 0, got -1.0"),
    "psi": (
        lambda: optimizers.nadam(0.1, momentum_decay=-1.0),
        ValueError,
        "momentum_decay must be a finite number at",
    ),
    "lr_decay": (
        lambda: optimizers.adagrad(0.1, lr_decay=-1.0),
        ValueError,
        "lr_decay must be a finite number at least",
    ),
    "sum": (
        lambda: optimizers.adagrad(0.1, initial_accumulator_value=-1.0),
        ValueError,
        "initial_accumulator_value must be a finite number at least 0",
    ),
    "rho": (lambda: optimizers.adadelta(rho=1.1), ValueError, "rho must be a finite number at least 0 and at most 1"),
    "alpha": (
        lambda: optimizers.rmsprop(0.1, alpha=1.1),
        ValueError,
        "alpha must be a finite number at least 0 and at",
    ),
    "etas": (
        lambda: optimizers.rprop(etas=(1.0, 1.2)),
        ValueError,
        "etas[0] must be a finite number above 0 and below 1",
    ),
    "eta plus": (lambda: optimizers.rprop(etas=(0.5, 1.0)), ValueError, "etas[1] must be a finite number above 1"),
    "an eta": (lambda: optimizers.rprop(etas=0.5), TypeError, "etas must be two numbers, got 0.5"),
    "sizes": (
        lambda: optimizers.rprop(step_sizes=(1.0, 0.5)),
        ValueError,
        "step_sizes[1] must be a finite number at least 1, got 0.5",
    ),
    "beta2_decay": (
        lambda: optimizers.adafactor(beta2_decay=0.5),
        ValueError,
        "beta2_decay must be a finite number at most 0, got 0.5",
    ),
    "one eps": (
        lambda: optimizers.adafactor(eps=1e-3),
        TypeError,
        "eps must be two numbers, the first of them or None",
    ),
    "eps 2": (lambda: optimizers.adafactor(eps=(None, None)), TypeError, "eps[1] must be a finite number at least 0"),
    "eps 1": (lambda: optimizers.adafactor(eps=(-1.0, 1.0)), ValueError, "eps[0] must be a finite number at least 0"),
    "d": (lambda: optimizers.adafactor(d=0.5), ValueError, "d must be a finite number at least 1, got 0.5"),
    "a velocity above 1": (
        lambda: optimizers.muon(0.1, momentum=1.5),
        ValueError,
        "momentum must be a finite number at",
    ),
    "coefficients": (
        lambda: optimizers.muon(0.1, ns_coefficients=(1.0, 2.0)),
        TypeError,
        "ns_coefficients must be three",
    ),
    "steps": (lambda: optimizers.muon(0.1, ns_steps=100), ValueError, "ns_steps must be below 100, got 100"),
    "half a step": (
        lambda: optimizers.muon(0.1, ns_steps=2.5),
        TypeError,
        "ns_steps must be an int of at least 0, got 2.5",
    ),
    "dtype": (
        lambda: optimizers.muon(0.1, ns_dtype=torch.int64),
        TypeError,
        "ns_dtype must be a real floating-point dtype",
    ),
    "adjust": (
        lambda: optimizers.muon(0.1, adjust="rms"),
        ValueError,
        "adjust must be one of 'original', 'match_rms_adamw'",
    ),
    "others": (lambda: optimizers.muon(0.1, others=0.1), TypeError, "others must be an Optimizer or None, got 0.1"),
    "choose": (
        lambda: optimizers.muon(0.1, choose="*"),
        TypeError,
        "choose must be a function (name, parameter) -> bool",
    ),
    "chosen": (lambda: optimizers.muon(0.1, choose=lambda n, p: True), ValueError, "choose needs others="),
}


@pytest.mark.parametrize("name", OTHERS)
def test_hyperparameters_out_of_range(name):
    refused(*OTHERS[name])


# Parameters, gradients, states.


def trees(dtype=torch.float64):
    params = TensorDict({"a": torch.ones(2, 3, dtype=dtype), "b": torch.ones(3, 2, dtype=dtype)})
    return params, params.apply(lambda leaf: 0.5 * leaf)


CONTEXT = UpdateContext(torch.tensor(0), ps.random.key(0))


@pytest.mark.parametrize("name", TORCH)
def test_parameters_of_no_real_dtype(name):
    rule = TORCH[name].make(0.1)
    for dtype in (torch.int64, torch.complex64):
        refused(
            lambda dtype=dtype: rule.init(trees(dtype)[0]),
            TypeError,
            f"{name} needs parameters of a real floating-point dtype, got {dtype} as 'a'",
        )


@pytest.mark.parametrize("name", TORCH)
def test_gradients_of_other_parameters(name):
    rule = TORCH[name].make(0.1)
    params, grads = trees()
    state = rule.init(params)
    fewer, more = grads.select("a"), TensorDict({**dict(grads.items()), "c": torch.ones(2)})
    refused(lambda: rule.update(fewer, state, params, CONTEXT), KeyError, 'key "b"')
    refused(lambda: rule.update(more, state, params, CONTEXT), KeyError, 'key "c"')
    misshaped = TensorDict({"a": grads["a"], "b": torch.ones(2)})
    says = "grads['b'] must have its parameter's shape (3, 2), got (2,)"
    refused(lambda: rule.update(misshaped, state, params, CONTEXT), ValueError, says)
    narrow = TensorDict({"a": grads["a"], "b": grads["b"].float()})
    says = "grads['b'] must have its parameter's dtype torch.float64, got torch.float32"
    refused(lambda: rule.update(narrow, state, params, CONTEXT), TypeError, says)


@pytest.mark.parametrize("name", TORCH)
def test_the_state_of_another_optimizer(name):
    params, grads = trees()
    rule = TORCH[name].make(0.1, **({"momentum": 0.9} if name == "sgd" else {}))
    other = optimizers.rprop() if name != "rprop" else ps.adamw(0.1)
    says = "tells the state of another optimizer: "
    refused(lambda: rule.update(grads, other.init(params), params, CONTEXT), KeyError, says)
    of_fewer = rule.init(params.select("a"))
    refused(lambda: rule.update(grads, of_fewer, params, CONTEXT), KeyError, 'key "b"')


def test_a_step_says_to_whom_a_state_belongs():
    model = torch.nn.Linear(2, 1)
    step = ps.train_step(model, lambda m, x: ps.mean(m(x)), ps.adamw(0.1, amsgrad=True))
    state = ps.init_state(model, ps.adamw(0.1), seed=0)
    says = "state.opt_state does not belong to this optimizer and these trainable parameters: 'max_exp_avg_sq'"
    refused(lambda: step(state, torch.ones(3, 2)), ValueError, says)


def test_what_is_no_matrix_in_muon():
    params = TensorDict({"w": torch.ones(2, 3), "bias": torch.ones(3)})
    says = "muon is for matrices, got 'bias' of shape (3,): give it an optimizer for what is none"
    refused(lambda: optimizers.muon(0.1).init(params), ValueError, says)
    all_chosen = optimizers.muon(0.1, others=ps.sgd(0.1), choose=lambda name, p: name == "bias")
    refused(lambda: all_chosen.init(params), ValueError, "muon is for matrices, got 'bias'")
    none_left = optimizers.muon(0.1, others=ps.sgd(0.1))
    refused(lambda: none_left.init(params.select("w")), ValueError, "no parameter has the label 'others'")


@pytest.mark.parametrize("name", TORCH)
def test_a_gradient_that_is_not_finite_meets_the_policy(name):
    """Law 9: with a step nothing of it is applied."""
    model = torch.nn.Linear(2, 3, bias=False)
    rule = TORCH[name].make(0.1)
    step = ps.train_step(model, lambda m, x: ps.mean(m(x).sum(1)), rule, on_nonfinite="skip")
    state = ps.init_state(model, rule, seed=0)
    for value in (math.nan, math.inf):
        after, _ = step(state, torch.full((4, 2), value))
        assert torch.equal(after.params["weight"], state.params["weight"])
        assert after.aux["skipped"] == 1
