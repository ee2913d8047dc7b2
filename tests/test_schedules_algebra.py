"""The laws of the algebra: joins, shifts, repetition, products, bounds, and where a schedule jumps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import purestep.schedules as ps
from purestep.laws._drawn_schedules import BASIC, schedules
from purestep.schedules import Schedule, constant, cosine, is_continuous, join, linear, maximum, minimum, schedule

drawn = settings(max_examples=25, deadline=None)
small = schedules(max_leaves=2)


def assert_joined(joined: Schedule, first: Schedule, second: Schedule, at: int) -> None:
    """The law of a join: ``first`` before ``at``, ``second`` on its own steps from there, bit for bit."""
    for t in range(2 * at + 5):
        right = first(t) if t < at else second(t - at)
        assert torch.equal(joined(t), right), f"{joined!r} at step {t}: {joined(t).item()!r}, not {right.item()!r}"


@schedule
def mutant_late_join(step: Tensor, first: Schedule, second: Schedule, at: int) -> Tensor:
    return torch.where(step <= at, first(step), second(torch.clamp(step - at, min=0)))


def test_an_off_by_one_join_is_caught() -> None:
    first, second = linear(0.0, 0.5, 5), cosine(1.0, 10)
    assert_joined(first.then(second, at=5), first, second, 5)
    with pytest.raises(AssertionError, match="at step 5"):
        assert_joined(mutant_late_join(first, second, 5), first, second, 5)


@drawn
@given(small, small, st.integers(0, 30))
def test_joins_are_true_joins(first: Schedule, second: Schedule, at: int) -> None:
    assert_joined(first.then(second, at=at), first, second, at)


@drawn
@given(small, small, st.integers(1, 30), st.integers(0, 30))
def test_algebra_identities(a: Schedule, b: Schedule, n: int, m: int) -> None:
    assert_same(
        (a * b, b * a),
        (a + b, b + a),
        (a - b, a + -b),
        (a * 1, a),
        (a + 0, a),
        (a / 1, a),
        (-1 * -a, a),
        (a.shift(0), a),
        (a.shift(n).shift(m), a.shift(n + m)),
        (a.shift(-n).shift(-m), a.shift(-n - m)),
        (a.shift(n).shift(-n), a),
        (a.then(b, at=0), b),
        (a.then(a.shift(-n), at=n), a),
        (a.then(b, at=n).then(a, at=n + m), a.then(b.then(a, at=m), at=n)),
        (a.then(b, at=n).shift(-n), b),
        ((a * b).shift(m), a.shift(m) * b.shift(m)),
        ((a * b).then(a, at=n), a.then(a, at=n) * b.then(constant(1.0), at=n)),
        (a.repeat(every=n).repeat(every=n), a.repeat(every=n)),
        (a.repeat(every=n).shift(-n), a.repeat(every=n)),
    )
    steps = torch.arange(80)
    assert torch.equal((a * b)(steps), a(steps) * b(steps))
    assert torch.equal((a - b)(steps), a(steps) - b(steps))
    assert torch.equal(a.clamp(min=0.1, max=0.3)(steps), a(steps).clamp(0.1, 0.3))


def assert_same(*pairs: tuple[Schedule, Schedule], rtol: float = 1e-15) -> None:
    steps = torch.arange(80)
    for left, right in pairs:
        torch.testing.assert_close(
            left(steps), right(steps), rtol=rtol, atol=0, msg=lambda m, pair=(left, right): f"{pair}: {m}"
        )


@drawn
@given(small, small, small, st.integers(1, 20), st.integers(1, 20))
def test_laws_of_three(a: Schedule, b: Schedule, c: Schedule, n: int, m: int) -> None:
    assert_same(
        (join([a], at=[]), a),
        (join([a, b], at=[n]), a.then(b, at=n)),
        (join([a, b, c], at=[n, n + m]), a.then(b, at=n).then(c, at=n + m)),
        (join([a, b, c], at=[n, n + m]), a.then(b.then(c, at=m), at=n)),
        (join([a, b], at=[n]) * c, join([a * c, b * c.shift(-n)], at=[n])),
        (maximum(a, b), maximum(b, a)),
        (maximum(a, b, c), maximum(a, maximum(b, c))),
        (minimum(a, b, c), minimum(minimum(a, b), c)),
        (maximum(a, a), a),
        (maximum(a, minimum(a, b)), a),
        (minimum(a, maximum(b, c)), maximum(minimum(a, b), minimum(a, c))),
        (-maximum(a, b), minimum(-a, -b)),
        (maximum(a, b).shift(n), maximum(a.shift(n), b.shift(n))),
        (minimum(a, b).then(c, at=n), minimum(a.then(c, at=n), b.then(c, at=n))),
        (maximum(a, 0.1), a.clamp(min=0.1)),
        (minimum(a, 0.1), a.clamp(max=0.1)),
    )
    # Rounding differs, relative to the parts that are added.
    steps = torch.arange(80)
    for left, right in [((a + b) * c, a * c + b * c), ((a - b) * c, a * c - b * c), ((a + b) + c, a + (b + c))]:
        size = sum(part(steps).abs() for part in (a, b, c)) * (1 + c(steps).abs())
        assert bool(((left(steps) - right(steps)).abs() <= 1e-14 * size).all())


@drawn
@given(small, st.integers(1, 20), st.integers(0, 10**9), st.floats(0.1, 1.0))
def test_repeats(a: Schedule, every: int, far: int, decay: float) -> None:
    one = a.repeat(every=every, decay=decay)
    for t in (0, every - 1, every, 3 * every + 1, far):
        times = t // every
        right = a(t % every).item() * decay**times
        assert one(t).item() == pytest.approx(right, rel=1e-10 if times > 1000 else 1e-13, abs=1e-300)
    assert_same((a.repeat(every=every, decay=1.0), a.repeat(every=every)))


@schedule
def mutant_repeat_decays_late(step: Tensor, inner: Schedule, every: int, decay: float) -> Tensor:
    return inner(torch.remainder(step, every)) * decay ** torch.floor((step - 1) / every)


@schedule
def mutant_join_of_global_steps(step: Tensor, parts: tuple[Schedule, ...], at: tuple[int, ...]) -> Tensor:
    values = [part(step) for part in parts]
    value = values[0]
    for start, following in zip(at, values[1:], strict=True):
        value = torch.where(step < start, value, following)
    return value


@schedule
def mutant_maximum_of_first(step: Tensor, *parts: Schedule) -> Tensor:
    return parts[0](step)


def test_the_laws_of_the_algebra_catch_mutants() -> None:
    a, b, c = linear(0.0, 1.0, 10), cosine(0.6, 20), linear(1.0, 0.0, 7)
    assert_same((join([a, b, c], at=[5, 9]), a.then(b, at=5).then(c, at=9)), (maximum(a, b), maximum(b, a)))
    for left, right in [
        (mutant_join_of_global_steps([a, b, c], [5, 9]), a.then(b, at=5).then(c, at=9)),
        (mutant_maximum_of_first(a, b), mutant_maximum_of_first(b, a)),
        (mutant_repeat_decays_late(b, 5, 0.5), b.repeat(every=5, decay=0.5)),
    ]:
        with pytest.raises(AssertionError):
            assert_same((left, right))


# Where a schedule jumps


@pytest.mark.parametrize(
    ("one", "continuous"),
    [
        (cosine(0.1, 20), True),
        (linear(0.0, 0.1, 5).then(cosine(0.1, 20), at=5), True),
        (linear(0.0, 0.1, 5).then(cosine(0.1001, 20), at=5), False),
        (ps.warmup(cosine(0.1, 20), 7), True),
        (ps.warmup(cosine(0.1, 20), 7, kind="constant"), False),
        (ps.warmup(cosine(0.1, 20), 7, initial=1e-3, kind="exponential"), True),
        (ps.wsd(0.1, 3, 4, 20, decay="one_minus_sqrt"), True),  # though its slope is infinite at step 7
        (ps.tri_stage(0.1, 3, 4, 20), True),
        (ps.one_cycle(0.1, 40, three_phase=True), True),
        (ps.cyclic(0.01, 0.1, 5, mode="triangular2"), True),
        (ps.piecewise_interpolate([0.1, 0.2, 0.0], [5, 9]), True),
        (ps.piecewise_constant([0.1, 0.2, 0.0], [5, 9]), False),
        (ps.warm_restarts(0.1, 10), False),
        (ps.warm_restarts(0.1, 60), True),
        (ps.step_decay(0.1, 10), False),
        (ps.exponential(0.1, 0.9), True),
        (ps.exponential(0.1, 0.9, every=5, staircase=True), False),
        (ps.inverse_sqrt(0.1, 10), True),
        (ps.inverse_sqrt(0.1, 10, timescale=50), True),
        (ps.swa_anneal(cosine(0.1, 30), 0.05, 20, 10), True),
        (ps.swa_anneal(cosine(0.1, 30), 0.05, 20, 0), False),
        (ps.noise(constant(0.1), 1), False),
        (constant(0.0), True),
    ],
    ids=repr,
)
def test_is_continuous(one: Schedule, continuous: bool) -> None:
    assert is_continuous(one, steps=50) is continuous
    if not continuous:
        jumps = [t for t in range(1, 51) if not is_continuous(one + 0.0, at=[t])]
        assert jumps
        assert all(is_continuous(one, at=[t]) for t in range(1, 51) if t not in jumps)


def test_is_continuous_looks_where_it_is_told() -> None:
    one = ps.step_decay(0.1, 10)
    assert is_continuous(one, steps=9)
    assert is_continuous(one, at=[9, 11])
    assert is_continuous(one, at=[])
    assert not is_continuous(one, at=[10])
    assert is_continuous(one, at=[10], tolerance=1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: is_continuous(cosine(1, 2)), ValueError, "steps or at must be given, and not both, got None and None"),
        (lambda: is_continuous(cosine(1, 2), steps=1, at=[1]), ValueError, "and not both, got 1 and [1]"),
        (lambda: is_continuous(cosine(1, 2), steps=0), ValueError, "steps must be an int of at least 1, got 0"),
        (lambda: is_continuous(cosine(1, 2), at=[0]), ValueError, "at must be an int of at least 1, got 0"),
        (lambda: is_continuous(cosine(1, 2), at=[1.5]), TypeError, "at must be an int of at least 1, got 1.5"),
        (
            lambda: is_continuous(cosine(1, 2), at=0),
            TypeError,
            "at must be a list or tuple of steps, got 0 of type int",
        ),
        (
            lambda: is_continuous(cosine(1, 2), steps=1, tolerance=0),
            ValueError,
            "tolerance must be a finite number above 0, got 0",
        ),
        (
            lambda: is_continuous(0.1, steps=1),
            TypeError,
            "schedule must be a schedule, got 0.1 of type float",
        ),
    ],
)
def test_bad_input_to_is_continuous(call: Callable[[], bool], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


# Convenient forms of it


@drawn
@given(BASIC["warmup_cosine"])
def test_warmup_cosine_is_a_join(one: Schedule) -> None:
    peak, warmup, total, initial, floor, power = one.hyperparameters.values()
    parts = cosine(peak, total - warmup, floor=floor, power=power)
    if warmup > 0:
        parts = linear(initial, peak, warmup).then(parts, at=warmup)
    steps = torch.arange(min(total, 1000) + 10)
    torch.testing.assert_close(one(steps), parts(steps), rtol=1e-12, atol=1e-15)


def test_convenient_forms_are_what_they_say() -> None:
    fall = ps.exponential(0.1, 0.9, every=2, floor=0.03)
    assert_same(
        (ps.warmup_linear(0.1, 5, 20, initial=0.01, floor=0.02), ps.warmup(linear(0.1, 0.02, 15), 5, initial=0.01)),
        (ps.warmup_exponential(0.1, 5, 0.9, every=2, floor=0.03), ps.warmup(fall, 5)),
        (ps.warmup_constant(0.1, 5), linear(0.0, 0.1, 5)),
        (ps.warmup_constant(0.1, 0), constant(0.1)),
        (ps.resnet_warmup(0.1, 5), ps.warmup(constant(0.1), 5, initial=0.01, kind="constant")),
        (ps.wsd(0.1, 0, 0, 20, floor=0.01, decay="cosine"), cosine(0.1, 20, floor=0.01)),
        (ps.wsd(0.1, 0, 0, 20, floor=0.01, decay="one_minus_sqrt"), ps.one_minus_sqrt(0.1, 20, floor=0.01)),
        (ps.wsd(0.1, 5, 10, 20), join([linear(0.0, 0.1, 5), constant(0.1), linear(0.1, 0.0, 20)], at=[5, 15])),
        (ps.polynomial(0.1, 20, floor=0.01), linear(0.1, 0.01, 20)),
        (ps.step_decay(0.1, 20), ps.multi_step(0.1, [20, 40, 60])),
        (ps.step_decay(0.1, 20), ps.exponential(0.1, 0.1, every=20, staircase=True)),
        (ps.multi_step(1.0, [5, 9], rate=0.5), ps.piecewise_constant([1.0, 0.5, 0.25], [5, 9])),
        (ps.multiplicative(0.1, [0.5] * 80), ps.exponential(0.1, 0.5)),
        (ps.warm_restarts(0.1, 20, floor=0.01), cosine(0.1, 20, floor=0.01).repeat(every=20)),
        (ps.warm_restarts(0.1, 20, decay=0.5), cosine(0.1, 20).repeat(every=20, decay=0.5)),
        (
            ps.warm_restarts(0.1, 20, multiplier=2, cycles=2),
            join([cosine(0.1, 20), cosine(0.1, 40), constant(0.0)], at=[20, 60]),
        ),
        (
            ps.one_cycle(0.1, 40, anneal="linear"),
            ps.piecewise_interpolate([0.1 / 25, 0.1, 0.1 / 25e4], [12, 40]),
        ),
        (ps.cyclic(0.1, 1.0, 5, down_steps=8), (linear(0.1, 1, 5).then(linear(1, 0.1, 8), at=5)).repeat(every=13)),
        (
            ps.tri_stage(0.1, 5, 10, 20, initial=0.0),
            join([linear(0.0, 0.1, 5), constant(0.1), ps.exponential(0.1, 0.01, every=20, floor=0.001)], at=[5, 15]),
        ),
        (ps.inverse_sqrt(0.1, 5), ps.warmup(0.1 * 5**0.5 * ps.noam(1, 0).shift(-4), 5)),
        (ps.tanh_decay(0.1, 20, lower=-5.0, upper=5.0), 0.05 - 0.05 * ps.function(tanh_of_twenty)),
        rtol=1e-12,
    )
    # The stretch of a steep sigmoid hardly shows.
    steps = torch.arange(40)
    plain = ps.tanh_decay(0.1, 20, lower=-15.0, upper=15.0)
    torch.testing.assert_close(ps.sigmoid_decay(0.1, 20, steepness=60.0)(steps), plain(steps), rtol=0, atol=1e-13)


def tanh_of_twenty(step: Tensor) -> Tensor:
    return torch.tanh(-5 + 10 * torch.clamp(step / 20, max=1.0))


def test_momentum_mirrors_the_rate() -> None:
    steps = torch.arange(100)
    for options in ({}, {"mode": "triangular2", "down_steps": 9}, {"mode": "exp_range", "gamma": 0.97}):
        rate, momentum = ps.cyclic(0.0, 1.0, 7, **options), ps.cyclic_momentum(0.0, 1.0, 7, **options)
        torch.testing.assert_close(momentum(steps), 1 - rate(steps), rtol=0, atol=1e-15)
    for anneal in ("linear", "cosine"):
        high = ps.one_cycle_momentum(0.0, 1.0, 60, anneal=anneal)
        rise = ps.one_cycle(1.0, 60, anneal=anneal, start_divisor=1e15, end_divisor=1)
        torch.testing.assert_close(high(steps), 1 - rise(steps), rtol=0, atol=1e-14)
