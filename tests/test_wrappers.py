"""Wrappers of optimizers: what all of them keep, and updates that are not finite."""

from __future__ import annotations

from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tensordict import TensorDict

import purestep as ps
from _rules import assert_close, assert_same_bits, context, gradients, leaves, moved, tree
from purestep import laws, transforms
from purestep.optimizers.averaging import ema, swa
from purestep.optimizers.wrappers import apply_if_finite, inject_hyperparams, lookahead
from purestep.transforms import project, project_nonnegative, project_norm_ball
from purestep.updates import UpdateContext

PARAMS = tree()
OPTIMIZERS = {
    "apply_if_finite": lambda rate: apply_if_finite(ps.adamw(rate)),
    "lookahead": lambda rate: lookahead(ps.sgd(rate, momentum=0.9), every=2),
    "ema": lambda rate: ema(ps.sgd(rate), 0.9),
    "ema without debias": lambda rate: ema(ps.adamw(rate), 0.9, debias=False),
    "swa": lambda rate: swa(ps.sgd(rate), start=2),
    "inject_hyperparams": lambda rate: inject_hyperparams(ps.adamw, rate=rate, betas=(0.8, 0.9), weight_decay=0.1),
    "all of them": lambda rate: apply_if_finite(ema(lookahead(inject_hyperparams(ps.sgd, rate=rate), every=2), 0.5)),
    "projections": lambda rate: ps.chain(
        transforms.trace(0.9), ps.sgd(rate), project_norm_ball(2.0), project_nonnegative(where="b*")
    ),
    "projections of each": lambda rate: ps.chain(
        ps.sgd(rate), project(torch.tanh, where=ps.matrices_only), project_norm_ball(0.5, per_leaf=True)
    ),
}
few = settings(max_examples=25, deadline=None)


@laws.parametrize_with_laws({name: partial(laws.check_optimizer, make) for name, make in OPTIMIZERS.items()})
def test_wrapped_optimizers_keep_the_laws_of_optimizers(law):
    law()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_first_state_shares_no_storage_with_the_parameters(name):
    """A donated step writes over both."""
    state = OPTIMIZERS[name](0.1).init(PARAMS)
    theirs = {leaf.untyped_storage().data_ptr() for leaf in PARAMS.values() if leaf.numel()}
    assert not theirs & {leaf.untyped_storage().data_ptr() for leaf in leaves(state).values() if leaf.numel()}


def test_a_compiler_traces_all_of_it_in_one_graph():
    """By Dynamo alone: what a backend makes of the graph is no affair of an update rule."""
    bias = ps.chain(transforms.add_noise(0.1), inject_hyperparams(ps.sgd, rate=0.1), project_nonnegative())
    weight = lookahead(ps.chain(transforms.clip_by_norm(0.3), ps.sgd(0.1)))
    optimizer = apply_if_finite(ema(transforms.partition({"b": bias, "w": weight}, {"b*": "b", "w*": "w"}), 0.9))
    params, grads = (given.select("bias", "weight") for given in (PARAMS, gradients(1)[0]))

    def run(grads, kept, params, step, key):
        trees = (as_tree(tensors) for tensors in (grads, kept, params))
        return [as_dicts(tree) for tree in optimizer.update(*trees, UpdateContext(step, key))]

    arguments = [*(as_dicts(given) for given in (grads, optimizer.init(params), params)), torch.tensor(2)]
    right = run(*arguments, ps.random.key(3))
    assert_close(torch.compile(run, backend="eager", fullgraph=True)(*arguments, ps.random.key(3)), right)


def as_dicts(tree):
    return {n: v if isinstance(v, torch.Tensor) else as_dicts(v) for n, v in tree.items()}


def as_tree(dicts):
    return TensorDict({n: as_tree(v) if isinstance(v, dict) else v for n, v in dicts.items()}, batch_size=[])


# Wrappers that watch leave the training as it is.
WATCHING = {
    "ema": lambda optimizer: ema(optimizer, 0.9),
    "swa": lambda optimizer: swa(optimizer, start=2, every=2),
    "apply_if_finite": apply_if_finite,
    "lookahead that goes all the way": lambda optimizer: lookahead(optimizer, every=2, alpha=1.0),
    "masked": lambda optimizer: transforms.masked(optimizer, "*"),
    "partition": lambda optimizer: transforms.partition({"all": optimizer}, {"*": "all"}),
    "chain": lambda optimizer: ps.chain(transforms.scale(1.0), optimizer, project_norm_ball(1e9)),
}
INNER = [
    ps.sgd(0.1, momentum=0.9),
    ps.adamw(0.1),
    ps.chain(ps.clip_by_global_norm(1.0), transforms.add_noise(0.1), ps.sgd(0.1)),
]


def check_watching(wrap, optimizer, dtype=torch.float64):
    grads, params = gradients(5, dtype=dtype), tree(dtype=dtype)
    assert_same_bits(moved(wrap(optimizer), grads, params)[0], moved(optimizer, grads, params)[0])


@given(
    name=st.sampled_from(list(WATCHING)),
    optimizer=st.sampled_from(INNER),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
@few
def test_training_is_the_optimizers_own(name, optimizer, dtype):
    check_watching(WATCHING[name], optimizer, dtype)


@pytest.mark.parametrize("mutant", [lambda o: lookahead(o, every=2), lambda o: ps.chain(o, project_norm_ball(0.1))])
def test_that_law_catches_a_wrapper_that_interferes(mutant):
    with pytest.raises(AssertionError):
        check_watching(mutant, INNER[0])


def test_what_the_optimizer_reports_is_reported():
    for name, make in {**OPTIMIZERS, "deep": lambda rate: ema(swa(apply_if_finite(ps.sgd(rate))), 0.9)}.items():
        optimizer = make(0.25)
        _, state = moved(optimizer, gradients(1), PARAMS)
        assert optimizer.hyperparams(state, context())["learning_rate"].item() == 0.25, name


# Updates that are not finite.
def bad(value, name="weight"):
    return TensorDict({n: torch.full_like(g, value) if n == name else g for n, g in tree(1).items()})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_update_that_is_not_finite_changes_nothing_but_its_count(value):
    good = gradients(4)
    path, state = moved(
        apply_if_finite(ps.adamw(0.1)), [good[0], bad(value), bad(value), *good[1:], bad(value)], PARAMS
    )
    right, kept = moved(ps.adamw(0.1), good, PARAMS)
    assert_same_bits([path[i] for i in (0, 3, 4, 5)], right)
    assert_same_bits([path[i] for i in (1, 2, 6)], [right[i] for i in (0, 0, 3)])
    assert_same_bits(state["inner"], kept)
    assert {n: state[n].item() for n in ("skipped", "in_a_row")} == {"skipped": 3, "in_a_row": 1}


def test_none_gets_through_however_many_there_are():
    optimizer = apply_if_finite(ps.sgd(0.1))
    path, state = moved(optimizer, [bad(float("nan"))] * 50, PARAMS)
    assert_same_bits(path[-1], PARAMS)
    reported = optimizer.hyperparams(state, context())
    assert reported["nonfinite_updates"].item() == reported["nonfinite_in_a_row"].item() == 50


def test_a_finite_gradient_whose_update_is_not_finite_is_left_out():
    params = TensorDict({"w": torch.ones(3)})
    for optimizer, size in ((ps.adamw(0.1), 1e30), (ps.sgd(1e10), 1e30)):  # g² overflows; the parameter does
        [after], state = moved(apply_if_finite(optimizer), [params.apply(lambda p, size=size: p * size)], params)
        assert torch.equal(after["w"], params["w"])
        assert state["skipped"].item() == 1


def test_a_state_that_begins_infinite_is_no_reason():
    def update(grads, state, params, context):
        return params.apply(lambda p: p - 1), state.apply(lambda best: best)

    inner = ps.Optimizer(lambda params: TensorDict({"best": torch.tensor(float("inf"))}), update)
    [after], state = moved(apply_if_finite(inner), [PARAMS], PARAMS)
    assert torch.equal(after["bias"], PARAMS["bias"] - 1)
    assert state["skipped"].item() == 0


def test_the_derivative_through_what_was_left_out_is_finite():
    nan = torch.full((2,), float("nan"), dtype=torch.float64)

    def outcome(start, rate, skipped=True):
        optimizer, w = apply_if_finite(ps.adamw(rate)), TensorDict({"w": start})
        grads = [start, *([nan] * skipped), start.square()]
        return moved(optimizer, [TensorDict({"w": g}) for g in grads], w)[0][-1]["w"].sum()

    start, rate = torch.tensor([0.5, -2.0], dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    slopes = torch.func.grad(outcome, argnums=(0, 1))(start, rate)
    right = torch.func.grad(partial(outcome, skipped=False), argnums=(0, 1))(start, rate)
    for slope, without in zip(slopes, right, strict=True):
        assert torch.allclose(slope, without, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: apply_if_finite(transforms.scale(2.0)), TypeError, "optimizer must be an Optimizer, got a Gradient"),
        (lambda: lookahead(ps.sgd), TypeError, "optimizer must be an Optimizer such as ps.adamw(rate), got"),
        (lambda: lookahead(ps.sgd(0.1), every=0), ValueError, "every must be an int of at least 1, got 0"),
        (lambda: lookahead(ps.sgd(0.1), every=2.0), TypeError, "every must be an int of at least 1, got 2.0"),
        (lambda: lookahead(ps.sgd(0.1), alpha=0.0), ValueError, "alpha must be a finite number above 0 and at most 1"),
        (lambda: lookahead(ps.sgd(0.1), alpha=1.1), ValueError, "at most 1, got 1.1"),
        (
            lambda: lookahead(ema(ps.sgd(0.1), 0.9)),
            ValueError,
            "put the average around it, as in ema(lookahead(optimizer))",
        ),
        (lambda: ema(ps.sgd(0.1), 1.0), ValueError, "decay must be a finite number at least 0 and below 1, got 1.0"),
        (lambda: ema(ps.sgd(0.1), 0.9, debias=1), TypeError, "debias must be True or False, got 1"),
        (lambda: ema(None, 0.9), TypeError, "optimizer must be an Optimizer such as ps.adamw(rate), got None"),
        (lambda: swa(ps.sgd(0.1), start=0), ValueError, "start must be an int of at least 1, got 0"),
        (lambda: swa(ps.sgd(0.1), every=True), TypeError, "every must be an int of at least 1, got True"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
