"""Every optimizer on small problems with a known minimum: it reaches the bar, and what its counterpart reaches.

The problems are those that Optax and TorchOpt test with: a parabola, Rosenbrock's valley, quadratics of bad condition,
least squares. A bar is a share of what the loss is above its minimum at the beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

import purestep as ps
from _optimizer_table import BEYOND, TORCH
from purestep.updates import UpdateContext

ROWS = {**TORCH, **BEYOND}


@dataclass(frozen=True)
class Problem:
    """A loss of one matrix, as Muon wants it, in float64.

    Attributes:
        start: where it begins.
        minimum: where the loss is least.
        loss, gradient: functions of the matrix.
        steps: how many are taken.
        bar: the share of the first loss (above the least) that may be left.
    """

    start: Tensor
    minimum: Tensor
    loss: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    steps: int
    bar: float

    def share(self, w: Tensor) -> float:
        least = self.loss(self.minimum)
        return ((self.loss(w) - least) / (self.loss(self.start) - least)).item()


def double(rows):
    return torch.tensor(rows, dtype=torch.float64)


def parabola():
    minimum = double([[1.0, -1.0, 1.0]])
    return Problem(
        double([[-1.0, 10.0, 1.0]]), minimum, lambda w: (w - minimum).square().sum(), lambda w: 2 * (w - minimum),
        200, 2e-3,
    )  # fmt: skip


def quadratic(condition):
    """Turned by an orthogonal matrix made without chance."""
    index = torch.arange(6, dtype=torch.float64)
    q = torch.linalg.qr(torch.cos(index[:, None] * index + 1))[0]
    matrix = q @ torch.diag(condition ** (-index / 5)) @ q.T
    minimum = double([[1.0, -1.0, 0.5], [2.0, 0.3, -0.7]])

    def gradient(w):
        return (matrix @ (w - minimum).reshape(-1)).reshape(2, 3)

    return Problem(minimum * 0 + 3, minimum, lambda w: 0.5 * ((w - minimum) * gradient(w)).sum(), gradient, 300, 5e-3)


def least_squares():
    index = torch.arange(1, 31, dtype=torch.float64)
    rows = torch.stack([torch.cos(index * k) * k**0.5 for k in range(1, 7)], 1)
    targets = torch.sin(0.3 * index)
    minimum = torch.linalg.lstsq(rows, targets[:, None]).solution.reshape(2, 3)
    return Problem(
        torch.ones_like(minimum),
        minimum,
        lambda w: (rows @ w.reshape(-1) - targets).square().mean(),
        lambda w: (rows.T @ (rows @ w.reshape(-1) - targets)).reshape(2, 3) / 15,
        200,
        1e-3,
    )


def rosenbrock():
    def loss(w):
        x, y = w.reshape(-1)
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2

    def gradient(w):
        x, y = w.reshape(-1)
        return torch.stack([2 * (x - 1) - 400 * x * (y - x**2), 200 * (y - x**2)]).reshape(2, 1)

    return Problem(double([[0.0], [0.0]]), double([[1.0], [1.0]]), loss, gradient, 600, 0.2)


PROBLEMS = {
    "parabola": parabola(),
    "quadratic of condition 100": quadratic(100.0),
    "least squares": least_squares(),
    "rosenbrock": rosenbrock(),
}

# By optimizer, in the order of PROBLEMS, found by trying a few.
RATES = {
    "sgd": (0.1, 1.0, 0.1, 1.8e-3),
    "adam": (1.0, 1.0, 0.1, 0.1),
    "adamw": (1.0, 1.0, 0.1, 0.1),
    "adamax": (1.0, 1.0, 0.3, 0.1),
    "nadam": (0.3, 0.3, 0.03, 0.03),
    "radam": (1.0, 1.0, 0.1, 0.03),
    "adagrad": (3.0, 3.0, 0.3, 0.3),
    "adadelta": (3.0, 1.0, 0.1, 0.01),
    "rmsprop": (0.1, 0.03, 0.01, 0.003),
    "asgd": (0.1, 1.0, 0.1, 1.8e-3),
    "rprop": (0.1, 0.1, 0.1, 0.01),
    "adafactor": (0.3, 0.3, 0.1, 0.03),
    "muon": (0.1, 0.03, 0.03, 0.003),
    "lamb": (0.03, 0.03, 0.03, 0.01),
    "lars": (0.03, 0.01, 0.03, 0.003),
    "lion": (0.15, 0.03, 0.015, 0.003),
    "schedule_free_sgd": (1.0, 3.0, 0.3, 0.01),
    "schedule_free_adamw": (1.0, 1.0, 0.1, 0.03),
    "ademamix": (0.3, 0.3, 0.1, 0.03),
    "adopt": (1.0, 1.0, 0.1, 0.1),
    "prodigy": (1.0, 1.0, 1.0, 1.0),
}


def run(name: str, problem: Problem, rate: float) -> Tensor:
    """Return where our optimizer ends, its average where it keeps one."""
    row = ROWS[name]
    optimizer = row.ours(rate, **row.options)
    params = TensorDict({"w": problem.start})
    state = optimizer.init(params)
    key = ps.random.key(0)
    for step in range(problem.steps):
        grads = TensorDict({"w": problem.gradient(params["w"])})
        params, state = optimizer.update(grads, state, params, UpdateContext(torch.tensor(step), key))
    return optimizer.eval_params(params, state)["w"]


def run_torch(name: str, problem: Problem, rate: float) -> Tensor:
    row = ROWS[name]
    w = problem.start.clone().requires_grad_()
    optimizer = row.theirs([w], rate, **row.options)
    for _ in range(problem.steps):
        w.grad = problem.gradient(w.detach())
        optimizer.step()
    return w.detach()


CASES = [(name, which) for name in ROWS for which in PROBLEMS]


@pytest.mark.parametrize(("name", "which"), CASES, ids=[f"{name}, {which}" for name, which in CASES])
def test_it_reaches_the_minimum(name, which):
    problem = PROBLEMS[which]
    rate = RATES[name][list(PROBLEMS).index(which)]
    left = problem.share(run(name, problem, rate))
    assert left <= problem.bar
    if ROWS[name].torch_class is not None and "ns_dtype" not in ROWS[name].options:  # which torch has not
        assert left == pytest.approx(problem.share(run_torch(name, problem, rate)), rel=1e-6, abs=1e-12)


def test_every_optimizer_is_here():
    assert {*RATES} == {*ROWS}


@pytest.mark.parametrize("which", PROBLEMS)
def test_a_minimum_is_one_and_a_gradient_the_losss(which):
    problem = PROBLEMS[which]
    assert problem.gradient(problem.minimum).abs().max() < 1e-9
    assert problem.share(problem.minimum + 0.01) > 0
    right = torch.func.grad(problem.loss)(problem.start)
    assert torch.allclose(problem.gradient(problem.start), right, rtol=1e-12)


@pytest.mark.parametrize("mutation", ["ascends", "stands still"])
def test_the_bars_catch_one_that(mutation, monkeypatch):
    options = {"maximize": True} if mutation == "ascends" else {}
    rate = 0.01 if options else 0.0
    row = BEYOND["lion"]
    monkeypatch.setitem(ROWS, "lion", type(row)(row.make, None, row.grid, options=options))
    monkeypatch.setitem(RATES, "lion", (rate,) * len(PROBLEMS))
    for which in PROBLEMS:
        with pytest.raises(AssertionError):
            test_it_reaches_the_minimum("lion", which)
