"""Line searches: where they end, what they keep away from, and that they are pure."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from purestep import _line_search
from purestep._line_search import Backtracking, Point, StrongWolfe, begin


def searched(machine, function, trial, evaluations=25):
    """Drive a search over a function of the length; return it, and how often the function was asked."""

    def point(t):
        with torch.enable_grad():
            moved = t.detach().clone().requires_grad_()
            value = function(moved)
            (slope,) = torch.autograd.grad(value, moved)
        return Point(t, value.detach(), slope, slope[None])

    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    search = begin(point(zero), torch.tensor(trial, dtype=torch.float64), one)
    for _ in range(evaluations):
        if bool(search.done):
            break
        search = machine.advance(search, point(search.trial))
    return search


def wolfe(search, c1=1e-4, c2=0.9):
    start, low = search.start, search.low
    falls = low.value <= start.value + c1 * low.t * start.slope
    return bool(falls & (low.slope.abs() <= -c2 * start.slope))


@given(
    st.lists(st.floats(-1.0, 1.0), min_size=3, max_size=5),
    st.sampled_from([0.01, 0.3, 1.0, 20.0]),
    st.floats(0.05, 0.9),
)
@settings(max_examples=25, deadline=None)
def test_a_search_ends_where_wolfes_conditions_hold(coefficients, trial, c2):
    """Waves above a parabola: many minima, bounded below."""

    def function(t):
        waves = sum(a * torch.sin((i + 1) * t + i) for i, a in enumerate(coefficients))
        return waves + 0.05 * t.square() - 3.0 * t

    search = searched(StrongWolfe(1e-4, c2, 1e-12), function, trial, 60)
    assume(search.start.slope < 0)
    assert search.done
    assert wolfe(search, c2=c2)
    assert torch.equal(search.low.value, function(search.low.t))


def test_backtracking_does_not_see_the_slope():
    """Which is what the test above would tell."""
    search = searched(Backtracking(1e-4, 0.5, 1e-9), lambda t: 0.05 * t.square() - 3.0 * t, 0.01)
    assert search.done
    assert not wolfe(search)


@pytest.mark.parametrize("trial", [1.0, 100.0])
def test_a_search_keeps_away_from_what_is_not_finite(trial):
    """The logarithm has no value beyond 2."""
    for machine in (StrongWolfe(1e-4, 0.9, 1e-9), Backtracking(1e-4, 0.5, 1e-9)):
        search = searched(machine, lambda t: -t - 0.01 * torch.log(2 - t), trial)
        assert search.done
        assert 0 < search.low.t < 2
        assert search.low.value < search.start.value


def test_a_search_that_is_not_downhill_stays():
    for function in (lambda t: t, lambda t: 0.0 * t, lambda t: t * math.nan):
        search = searched(StrongWolfe(1e-4, 0.9, 1e-9), function, 1.0)
        assert (search.low.t, search.tried) == (0, 0)


def test_a_search_that_runs_out_keeps_the_best():
    search = searched(StrongWolfe(1e-4, 1e-6, 0.0), lambda t: (t - 3.7) ** 4 - torch.sin(9 * t), 0.1, evaluations=4)
    assert not search.done
    assert search.tried == 4
    assert search.low.value < search.start.value
    rising = searched(Backtracking(1e-4, 0.5, 1e-9), lambda t: torch.where(t > 0.01, t, -t), 1.0, evaluations=3)
    assert (rising.low.t, rising.tried) == (0, 3)


def test_a_tiny_interval_is_given_up():
    """Where the value jumps there is no length with a flat slope."""
    search = searched(StrongWolfe(1e-4, 0.1, 1e-3), lambda t: torch.where(t < 0.7, -t, 1 + t), 1.0, 60)
    assert search.done
    assert search.tried < 30
    assert abs(search.high.t - search.low.t) < 1e-3
    assert search.low.t == pytest.approx(0.7, abs=1e-3)


def test_the_searches_are_pure():
    """A machine that is done stays as it is, whatever it is told."""
    for machine in (StrongWolfe(1e-4, 0.9, 1e-9), Backtracking(1e-4, 0.5, 1e-9)):
        search = searched(machine, lambda t: (t - 1) ** 2, 1.0)
        other = search.low._replace(value=search.low.value - 5)
        after = machine.advance(search, other)
        assert all(torch.equal(a, b) for a, b in zip(after.low, search.low, strict=True))
        assert (after.tried, after.trial, after.stage) == (search.tried, search.trial, _line_search.DONE)
