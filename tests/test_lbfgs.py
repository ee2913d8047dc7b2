"""L-BFGS against torch's, and its direction against the dense matrix."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict

import purestep as ps
from _lbfgs import NOTHING, PROBLEMS, Place, objective_of
from purestep.lbfgs import lbfgs_step
from purestep.optimizers.lbfgs import direction, lbfgs, remember


def run_torch(function, start, iterations, *, line_search, rate=1.0, history=10):
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    options = {"max_iter": 1, "max_eval": 26, "tolerance_grad": 0, "tolerance_change": 1e-9}
    optimizer = torch.optim.LBFGS([x], rate, history_size=history, line_search_fn=line_search, **options)
    evaluations = [0]

    def closure():
        evaluations[0] += 1
        optimizer.zero_grad()
        loss = function(x)
        loss.backward()
        return loss

    for _ in range(iterations):
        optimizer.step(closure)
        yield x.detach().clone(), evaluations[0]


def run_ours(function, start, iterations, *, line_search, rate=1.0, history=10, **options):
    model, optimizer = Place(start), lbfgs(rate, history=history)
    step = lbfgs_step(model, objective_of(function), optimizer, line_search=line_search, **options)
    state, evaluations = ps.init_state(model, optimizer, seed=0), 0
    for _ in range(iterations):
        state, metrics = step(state, NOTHING)
        evaluations += 1 + int(metrics.get("evaluations", 0))
        yield torch.cat([state.params["first"], state.params["rest"]]), evaluations


# Roundings grow along the way: Rosenbrock's valley doubles them at each turn.
@pytest.mark.parametrize("history", [3, 10])
@pytest.mark.parametrize(
    ("name", "iterations"), [("rosenbrock, 2", 20), ("rosenbrock, 10", 25), ("quadratic", 20), ("least squares", 8)]
)
def test_with_a_line_search_it_takes_torchs_steps(name, iterations, history):
    function, start = PROBLEMS[name]
    options = {"line_search": "strong_wolfe", "history": history}
    both = zip(
        run_ours(function, start, iterations, **options), run_torch(function, start, iterations, **options), strict=True
    )
    for (got, tried), (right, counted) in both:
        assert torch.allclose(got, right, rtol=1e-10, atol=1e-10)
        assert tried == counted


@pytest.mark.parametrize("name", ["rosenbrock, 2", "quadratic"])
def test_without_one_too(name):
    function, start = PROBLEMS[name]
    options = {"line_search": None, "rate": 0.01, "history": 4}
    for (got, _), (right, _) in zip(
        run_ours(function, start, 25, **options), run_torch(function, start, 25, **options), strict=True
    ):
        assert torch.allclose(got, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
def test_it_reaches_torchs_minimum_in_as_many_evaluations(name):
    """What torch reaches after 60 iterations, with a tenth more evaluations at most."""
    function, start = PROBLEMS[name]
    *_, (right, counted) = run_torch(function, start, 60, line_search="strong_wolfe")
    bar = function(right).item() + 1e-13
    for place, tried in run_ours(function, start, 66, line_search="strong_wolfe"):  # noqa: B007
        if function(place) <= bar:
            break
    assert function(place) <= bar
    assert tried <= 1.1 * counted


def test_backtracking_converges_too():
    function, start = PROBLEMS["least squares"]
    *_, (right, _) = run_torch(function, start, 40, line_search="strong_wolfe")
    *_, (place, tried) = run_ours(function, start, 40, line_search="backtracking")
    assert function(place).item() == pytest.approx(function(right).item(), rel=1e-12)
    assert tried < 200


def pairs(count, size, seed=0):
    """Steps and changes of the gradient of a positive-definite quadratic."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    steps = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return steps, steps @ (root @ root.T + torch.eye(size))


def dense(steps, changes, size):
    """BFGS's matrix itself, from the newest pair's scale on: (6.17) and (6.20) of Nocedal & Wright."""
    matrix = torch.eye(size, dtype=torch.float64)
    if len(steps):
        matrix = matrix * (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1])
    for s, y in zip(steps, changes, strict=True):
        rho = 1 / (y @ s)
        left = torch.eye(size, dtype=torch.float64) - rho * torch.outer(s, y)
        matrix = left @ matrix @ left.T + rho * torch.outer(s, s)
    return matrix


def remembered(steps, changes, history):
    size = steps.shape[1]
    state = lbfgs(history=history).init(TensorDict({"w": torch.zeros(size, dtype=torch.float64)}))
    zero = torch.zeros(size, dtype=torch.float64)
    for s, y in zip(steps, changes, strict=True):
        state = remember(state, (zero, zero), (s, y))
    return state


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
def test_the_direction_is_that_of_the_dense_matrix(count):
    steps, changes = pairs(count, 6)
    state = remembered(steps, changes, 4)
    g = torch.linspace(-1, 2, 6, dtype=torch.float64)
    right = -dense(steps[-4:], changes[-4:], 6) @ g
    assert torch.allclose(direction(state, g), right, rtol=1e-10)
    assert state["count"] == count
    assert (state["inverse_curvatures"] > 0).sum() == min(count, 4)


def test_the_dense_matrix_catches_pairs_in_the_wrong_order():
    steps, changes = pairs(4, 6)
    state = remembered(steps.flip(0), changes.flip(0), 4)
    g = torch.linspace(-1, 2, 6, dtype=torch.float64)
    assert not torch.allclose(direction(state, g), -dense(steps, changes, 6) @ g, rtol=1e-3)


@pytest.mark.parametrize(
    ("step", "change"),
    [
        ([1.0, 0.0], [-1.0, 0.0]),
        ([1.0, 0.0], [0.0, 1.0]),
        ([0.0, 0.0], [1.0, 0.0]),
        ([1.0, 0.0], [math.nan, 0.0]),
        ([1.0, 0.0], [math.inf, 0.0]),
    ],
    ids=["negative curvature", "none", "no step", "not a number", "infinite"],
)
def test_a_pair_without_curvature_is_not_kept(step, change):
    steps, changes = pairs(2, 2)
    state = remembered(steps, changes, 3)
    zero = torch.zeros(2, dtype=torch.float64)
    place = (torch.tensor(step, dtype=torch.float64), torch.tensor(change, dtype=torch.float64))
    after = remember(state, (zero, zero), place)
    for name in ("steps", "grad_changes", "inverse_curvatures", "scale"):
        assert torch.equal(after[name], state[name]), name
    assert torch.equal(after["last_params"], place[0])


def test_a_small_pair_is_kept():
    """torch's bound is 1e-10 whatever the length, which stops near a minimum."""
    steps, changes = pairs(2, 2)
    state = remembered(1e-8 * steps, 1e-8 * changes, 3)
    assert torch.allclose(state["inverse_curvatures"][1:], 1e16 / (steps * changes).sum(1), rtol=1e-10)
