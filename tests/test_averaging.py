"""Averages of parameters around an optimizer, and lookahead, against their sums written out and against torch."""

from __future__ import annotations

from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tensordict import TensorDict
from torch import nn

import purestep as ps
from _rules import SHAPES, assert_close, assert_same_bits, context, gradients, moved, tree
from purestep.optimizers.averaging import ema, swa
from purestep.optimizers.wrappers import lookahead

PARAMS = tree()
few = settings(max_examples=25, deadline=None)


def averages(optimizer, steps):
    """The parameters after each update, and what is evaluated then."""
    params, state, path, evaluated = PARAMS, optimizer.init(PARAMS), [], []
    for step, grads in enumerate(gradients(steps)):
        params, state = optimizer.update(grads, state, params, context(step))
        path.append(params)
        evaluated.append(optimizer.eval_params(params, state))
    return path, evaluated


def weighted(path, weights):
    return {n: sum(w * p[n] for w, p in zip(weights, path, strict=True)) / sum(weights) for n in SHAPES}


@given(decay=st.sampled_from([0.0, 0.5, 0.9, 0.999]), debias=st.booleans())
@few
def test_ema_is_the_weighted_sum_that_is_said(decay, debias):
    path, evaluated = averages(ema(ps.sgd(0.1), decay, debias=debias), 6)
    for t, got in enumerate(evaluated, 1):
        first = 1 if debias else 1 / (1 - decay)
        weights = [decay ** (t - i) * (first if i == 1 else 1) for i in range(1, t + 1)]
        assert_close(dict(got.items()), weighted(path[:t], weights))


def test_ema_of_a_scheduled_decay_weighs_by_what_each_decay_left():
    betas = [0.5, 0.0, 0.9, 0.3]
    path, evaluated = averages(ema(ps.sgd(0.1), lambda step: torch.tensor(betas, dtype=torch.float64)[step]), 4)
    weights: list[float] = []
    for beta in betas:
        weights = [w * beta for w in weights] + [1 - beta]
    assert_close(dict(evaluated[-1].items()), weighted(path, weights))


@given(start=st.integers(1, 5), every=st.integers(1, 3))
@few
def test_swa_is_the_mean_from_start_on(start, every):
    path, evaluated = averages(swa(ps.sgd(0.1), start=start, every=every), 7)
    for t, got in enumerate(evaluated, 1):
        taken = [float(i >= start and (i - start) % every == 0) for i in range(1, t + 1)]
        right = weighted(path[:t], taken) if any(taken) else dict(path[t - 1].items())
        assert_close(dict(got.items()), right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_they_have_the_bits_of_torchs_averaged_model(kind, dtype):
    swa_utils = torch.optim.swa_utils
    model = nn.Linear(4, 3, dtype=dtype)
    average = {"ema": swa_utils.get_ema_multi_avg_fn(0.9), "swa": swa_utils.get_swa_multi_avg_fn()}[kind]
    theirs = swa_utils.AveragedModel(model, multi_avg_fn=average)
    inner = ps.sgd(0.1, momentum=0.9)
    optimizer = ema(inner, 0.9, debias=False) if kind == "ema" else swa(inner)
    params = TensorDict({n: p.detach().clone() for n, p in model.named_parameters()})
    state = optimizer.init(params)
    for step in range(20):
        grads = tree(step, dtype=dtype, shapes={n: p.shape for n, p in params.items()})
        params, state = optimizer.update(grads, state, params, context(step))
        with torch.no_grad():
            for name, leaf in model.named_parameters():
                leaf.copy_(params[name])
        theirs.update_parameters(model)
        right = {n.removeprefix("module."): p.detach() for n, p in theirs.named_parameters()}
        got = dict(optimizer.eval_params(params, state).items())
        if kind == "swa" and dtype == torch.float64:  # torch rounds 1 / n to float32; ours is held by the mean above
            assert_close(got, right, relative=1e-6)
        else:
            assert_same_bits(got, right)


def check_stays(wrap):
    """An average of parameters that do not move is those parameters, to the bit."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        optimizer, params = wrap(ps.sgd(0.0)), tree(dtype=dtype)
        state = optimizer.init(params)
        assert_same_bits(dict(optimizer.eval_params(params, state).items()), dict(params.items()))
        for step in range(6):
            params, state = optimizer.update(params, state, params, context(step))
        assert_same_bits(dict(optimizer.eval_params(params, state).items()), dict(params.items()))


@pytest.mark.parametrize("wrap", [lambda o: ema(o, 0.9), lambda o: ema(o, 0.9, debias=False), swa, lookahead])
def test_an_average_of_parameters_that_stay_is_those_to_the_bit(wrap):
    check_stays(wrap)


def summing(optimizer):
    """A mean that is a sum over a count, in the parameters' dtype."""

    def init(params):
        return TensorDict({"sum": params.apply(torch.zeros_like), "count": torch.zeros(())})

    def update(grads, state, params, context):
        total = TensorDict({n: leaf + params[n] for n, leaf in state["sum"].items()})
        return params, TensorDict({"sum": total, "count": state["count"] + 1})

    def eval_params(params, state):
        return state["sum"].apply(lambda leaf: leaf / state["count"]) if state["count"] else params

    return ps.Optimizer(init, update, eval_params=eval_params)


def test_that_law_catches_a_sum_that_rounds():
    with pytest.raises(AssertionError):
        check_stays(summing)


def test_the_average_of_half_precision_is_kept_in_float32():
    optimizer = ema(ps.sgd(1.0), 0.99, debias=False)
    params = TensorDict({"w": torch.full((3,), 256.0, dtype=torch.bfloat16)})
    state = optimizer.init(params)
    grads = [0.0, 2.0, *([0.0] * 400)]  # from 256 down to 254 at the second update
    for step, size in enumerate(grads):
        params, state = optimizer.update(
            params.apply(lambda p, size=size: torch.full_like(p, size)), state, params, context(step)
        )
    assert params["w"][0].item() == 254
    assert state["average", "w"].dtype == torch.float32
    evaluated = optimizer.eval_params(params, state)["w"]
    assert evaluated.dtype == torch.bfloat16
    assert evaluated[0].item() == 254  # in bfloat16 no step of a hundredth would have moved it from 256


def test_an_average_is_of_what_the_optimizer_evaluates_with():
    inner = lookahead(ps.sgd(0.1), every=2)
    path, evaluated = averages(inner, 4)
    got = averages(ema(inner, 0.5), 4)[1][-1]
    assert_close(dict(got.items()), weighted(evaluated, [0.125, 0.25, 0.5, 1]))
    assert not torch.allclose(got["weight"], weighted(path, [0.125, 0.25, 0.5, 1])["weight"])


def test_a_step_evaluates_with_the_average():
    model = nn.Linear(3, 1, bias=False).double()
    objective = lambda model, batch: ps.mean(model(batch).square())  # noqa: E731
    optimizer = ema(ps.sgd(0.1), 0.5)
    step, batch = ps.train_step(model, objective, optimizer), torch.ones(2, 3, dtype=torch.float64)
    state = ps.init_state(model, optimizer, seed=0)
    for _ in range(3):
        state, _ = step(state, batch)
    averaged = state.replace(params=optimizer.eval_params(state.params, state.opt_state))
    right = ps.eval_step(model, objective)(averaged, batch)["loss"].value()
    assert torch.equal(ps.eval_step(model, objective, optimizer=optimizer)(state, batch)["loss"].value(), right)
    assert right != ps.eval_step(model, objective)(state, batch)["loss"].value()


def test_evaluation_leaves_what_nobody_trains():
    for wrap in (partial(ema, decay=0.9), swa, lookahead):
        optimizer = wrap(ps.sgd(0.1))
        [after], state = moved(optimizer, gradients(1), PARAMS)
        everything = TensorDict({"frozen": torch.ones(2), **dict(after.items())})
        assert optimizer.eval_params(everything, state)["frozen"] is everything["frozen"]


# Lookahead.
@given(every=st.integers(1, 4), alpha=st.sampled_from([0.3, 0.5, 1.0]))
@few
def test_lookahead_written_out(every, alpha):
    fast = slow = {n: leaf.clone() for n, leaf in PARAMS.items()}
    velocity = {n: torch.zeros_like(leaf) for n, leaf in PARAMS.items()}
    path, evaluated = averages(lookahead(ps.sgd(0.1, momentum=0.9), every=every, alpha=alpha), 7)
    for t, grads in enumerate(gradients(7), 1):
        velocity = {n: 0.9 * v + grads[n] for n, v in velocity.items()}
        fast = {n: p - 0.1 * velocity[n] for n, p in fast.items()}
        if t % every == 0:
            fast = slow = {n: p + alpha * (fast[n] - p) for n, p in slow.items()}
        assert_close(dict(path[t - 1].items()), fast)
        assert_close(dict(evaluated[t - 1].items()), slow)
