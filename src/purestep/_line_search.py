"""Line searches as pure state machines: one evaluation of the objective moves them on.

Where values can be read, whoever drives a machine stops when it is done; elsewhere it is driven a fixed number of
times, and a machine that is done stays as it is.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

BRACKETING, ZOOMING, DONE = 0, 1, 2


class Point(NamedTuple):
    """A length and what the objective is there: its value, its slope along the direction (0-d, float64), and its
    gradient, ``(n,)``."""

    t: Tensor
    value: Tensor
    slope: Tensor
    grads: Tensor


class Search(NamedTuple):
    """Where a search stands.

    Attributes:
        trial: the length to evaluate next.
        start: the point of length 0.
        low: the best point so far, which is the result.
        high: the other end of the interval, once there is one.
        stage: int64, 0-d.
        hesitated: bool, 0-d: whether the last trial fell close to an end of the interval.
        tried: int64, 0-d: evaluations so far.
        size: 0-d: the direction's largest entry.
    """

    trial: Tensor
    start: Point
    low: Point
    high: Point
    stage: Tensor
    hesitated: Tensor
    tried: Tensor
    size: Tensor

    @property
    def done(self) -> Tensor:
        return self.stage == DONE


class LineSearch(Protocol):
    """What moves a search on by the point of its trial."""

    def advance(self, search: Search, point: Point) -> Search: ...


def begin(start: Point, trial: Tensor, size: Tensor) -> Search:
    """Return a search from the point of length 0; it is over at once where that is not finite or not downhill."""
    possible = torch.isfinite(start.value) & torch.isfinite(start.slope) & (start.slope < 0)
    tried = torch.zeros((), dtype=torch.int64, device=trial.device)
    stage = torch.where(possible, tried + BRACKETING, tried + DONE)
    return Search(trial, start, start, start, stage, torch.zeros_like(possible), tried, size)


class Backtracking:
    """Shorten the length until the value falls enough, f(t) ≤ f(0) + c₁ t f′(0), or no parameter would move by more
    than ``tolerance_change``.

    Source: Armijo, "Minimization of functions having Lipschitz continuous first partial derivatives" (1966).
    """

    def __init__(self, c1: float, factor: float, tolerance_change: float) -> None:
        self._c1, self._factor, self._tolerance = c1, factor, tolerance_change

    def advance(self, search: Search, point: Point) -> Search:
        falls = _falls(search.start, point, self._c1)
        trial = torch.where(falls, search.trial, search.trial * self._factor)
        new = search._replace(
            trial=trial,
            low=_choose(falls, point, search.low),
            stage=torch.where(falls | (trial * search.size < self._tolerance), DONE, search.stage),
            tried=search.tried + 1,
        )
        return _frozen(search.done, search, new)


class StrongWolfe:
    """Find a length where the value falls enough and the slope is flat enough: also |f′(t)| ≤ c₂ |f′(0)|.

    Source: algorithms 3.5 and 3.6 of Nocedal & Wright, *Numerical optimization* (2006), with cubic interpolation
    (3.59); a trial that falls within a tenth of an interval's end twice is moved a tenth away from it. A value that is
    not finite is worse than any other, and halves the interval. An interval in which no parameter moves by more than
    ``tolerance_change`` is given up.
    """

    def __init__(self, c1: float, c2: float, tolerance_change: float) -> None:
        self._c1, self._c2, self._tolerance = c1, c2, tolerance_change

    def advance(self, search: Search, point: Point) -> Search:
        point = point._replace(value=torch.where(torch.isfinite(point.value), point.value, torch.inf))
        falls = _falls(search.start, point, self._c1)
        flat = torch.isfinite(point.slope) & (point.slope.abs() <= -self._c2 * search.start.slope)
        bracketed = self._bracket(search, point, falls, flat)
        zoomed = _zoom(search, point, falls, flat)
        new = _choose_search(search.stage == BRACKETING, bracketed, zoomed)
        new = self._with_trial(new)._replace(tried=search.tried + 1)
        return _frozen(search.done, search, new)

    def _bracket(self, search: Search, point: Point, falls: Tensor, flat: Tensor) -> Search:
        """Lengthen the step until an interval holds a minimum. ``low`` is the point before."""
        before = search.low
        rises = ~falls | ((search.tried > 0) & (point.value >= before.value))
        ends = ~rises & flat
        encloses = rises | (~flat & (point.slope >= 0))
        best = point.value < before.value
        low = _choose(encloses & ~best, before, point)
        high = _choose(best, before, point)
        longer = _minimum(before, point, point.t + 0.01 * (point.t - before.t), 10 * point.t)
        stage = torch.where(ends, DONE, torch.where(encloses, ZOOMING, BRACKETING))
        return search._replace(trial=longer, low=low, high=high, stage=stage)

    def _with_trial(self, search: Search) -> Search:
        """Choose the next length inside the interval, where there is one."""
        zooming = search.stage == ZOOMING
        left, right = torch.minimum(search.low.t, search.high.t), torch.maximum(search.low.t, search.high.t)
        trial = _minimum(search.low, search.high, left, right)
        margin = 0.1 * (right - left)
        close = torch.minimum(right - trial, trial - left) < margin
        away = close & (search.hesitated | (trial >= right) | (trial <= left))
        inner = torch.where((trial - right).abs() < (trial - left).abs(), right - margin, left + margin)
        trial = torch.where(away, inner, trial)
        tiny = (right - left) * search.size < self._tolerance
        return search._replace(
            trial=torch.where(zooming, trial, search.trial),
            stage=torch.where(zooming & tiny, DONE, search.stage),
            hesitated=torch.where(zooming, close & ~away, search.hesitated),
        )


def _zoom(search: Search, point: Point, falls: Tensor, flat: Tensor) -> Search:
    """Shrink the interval to the side where the minimum is."""
    low, high = search.low, search.high
    worse = ~falls | (point.value >= low.value)
    # One end is the point; the other stays, or is the old best where the slope tells that the minimum is between.
    turns = point.slope * (high.t - low.t) >= 0
    other = _choose(~worse & turns & ~flat, low, high)
    new_low, new_high = _choose(worse, low, point), _choose(worse, point, other)
    swapped = new_high.value < new_low.value  # where neither falls enough
    return search._replace(
        low=_choose(swapped, new_high, new_low),
        high=_choose(swapped, new_low, new_high),
        stage=torch.where(~worse & flat, DONE, search.stage),
    )


def _falls(start: Point, point: Point, c1: float) -> Tensor:
    return torch.isfinite(point.value) & (point.value <= start.value + c1 * point.t * start.slope)


def _minimum(a: Point, b: Point, lowest: Tensor, highest: Tensor) -> Tensor:
    """Return the minimum of the cubic through two points and their slopes, within bounds; their middle where there is
    none."""
    known = torch.isfinite(a.value) & torch.isfinite(b.value) & torch.isfinite(a.slope) & torch.isfinite(b.slope)
    known = known & (a.t != b.t)
    one = torch.ones_like(a.t)
    # The inner `where`s keep the derivatives of what is not chosen finite.
    length = torch.where(known, b.t - a.t, one)
    rise = torch.where(known, b.value - a.value, one)
    first, second = torch.where(known, a.slope, one), torch.where(known, b.slope, one)
    d1 = first + second - 3 * rise / length
    square = d1.square() - first * second
    known = known & (square >= 0)
    d2 = torch.sign(length) * torch.where(square > 0, torch.where(square > 0, square, one).sqrt(), 0.0)
    below = second - first + 2 * d2
    known = known & (below != 0)
    least = b.t - length * (second + d2 - d1) / torch.where(known, below, one)
    least = torch.maximum(torch.minimum(least, highest), lowest)
    return torch.where(known & torch.isfinite(least), least, (lowest + highest) / 2)


def _choose(condition: Tensor, these: Point, those: Point) -> Point:
    return Point(*(torch.where(condition, a, b) for a, b in zip(these, those, strict=True)))


def _choose_search(condition: Tensor, these: Search, those: Search) -> Search:
    return these._replace(
        trial=torch.where(condition, these.trial, those.trial),
        low=_choose(condition, these.low, those.low),
        high=_choose(condition, these.high, those.high),
        stage=torch.where(condition, these.stage, those.stage),
        hesitated=torch.where(condition, these.hesitated, those.hesitated),
    )


def _frozen(done: Tensor, old: Search, new: Search) -> Search:
    return _choose_search(done, old, new)._replace(tried=torch.where(done, old.tried, new.tried))
