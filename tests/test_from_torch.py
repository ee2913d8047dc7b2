"""Torch's schedulers read as schedules."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as ls

import purestep as ps
from _torch_schedulers import (
    FACTORS,
    SINGLE,
    Joined,
    Make,
    assert_follows,
    cosine_lr,
    damped,
    followed,
    lengths,
    make_optimizer,
)
from purestep.schedules import _torch_parts, from_torch

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of", "ignore:The epoch parameter")


@settings(max_examples=60)
@given(st.one_of(SINGLE), st.integers(0, 40))
def test_a_scheduler_read_at_any_step_is_continued(make, first):
    assert_follows(followed(make, first=first))


REFUSED = ("is no product", "was changed", "NotImplementedError in torch", "divides by zero")


def read_or_refused(make, **options):
    try:
        return followed(make, **options)
    except ValueError as error:
        if not any(reason in str(error) for reason in REFUSED):
            raise
        return None


@settings(max_examples=40)
@given(st.one_of(SINGLE), st.integers(0, 40), st.sampled_from([0.5, 3.0]))
def test_a_rate_changed_by_hand_is_followed_as_torch_follows_it(make, first, edit):
    assert_follows(read_or_refused(make, first=first, edit=edit))


@st.composite
def sequences(draw):
    parts = draw(st.lists(st.one_of(SINGLE), min_size=1, max_size=4))
    milestones = sorted(draw(st.lists(lengths(0, 40), min_size=len(parts) - 1, max_size=len(parts) - 1)))
    return Joined(parts, milestones)


@st.composite
def chains(draw):
    parts = draw(st.lists(st.one_of(FACTORS), min_size=1, max_size=3))
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), draw(cosine_lr(st.just(0.0))))
    return Joined(parts, None)


@st.composite
def nested(draw):
    """A chain of chains, a sequence whose first part is a sequence or a chain, a chain of one sequence."""
    inner, others = draw(st.one_of(sequences(), chains())), draw(st.lists(st.one_of(FACTORS), min_size=1, max_size=2))
    milestones = sorted(draw(st.lists(lengths(0, 40), min_size=len(others), max_size=len(others))))
    return Joined([inner, *others], milestones if draw(st.booleans()) else None)


@settings(max_examples=40)
@given(sequences(), st.integers(0, 45))
def test_a_sequence_is_continued(make, first):
    assert_follows(read_or_refused(make, first=first))


@settings(max_examples=40)
@given(chains(), st.integers(0, 45), st.sampled_from([1.0, 1.0, 0.5]))
def test_a_chain_is_continued(make, first, edit):
    assert_follows(read_or_refused(make, first=first, edit=edit))


@settings(max_examples=40)
@given(nested(), st.integers(0, 45))
def test_what_is_nested_is_continued(make, first):
    assert_follows(read_or_refused(make, first=first))


@pytest.mark.parametrize(
    ("make", "jump"),
    [
        # torch's logarithm misses these, and ends the cycle that begins there.
        (Make(ls.CosineAnnealingWarmRestarts, (1, 3)), 121),
        (Make(ls.CosineAnnealingWarmRestarts, (10, 3)), 1210),
        (Make(ls.CosineAnnealingWarmRestarts, (10, 2)), 35),
        (Make(ls.CosineAnnealingWarmRestarts, (4, 1)), 7),
        (Make(ls.CosineAnnealingLR, (10, 0.01)), 13),
        (Make(ls.StepLR, (7,)), 20),
        (Make(ls.LinearLR, (0.5, 1.0, 9)), 4),
        (Make(ls.LambdaLR, (damped,)), 11),
    ],
)
def test_a_scheduler_sent_to_a_step_is_continued(make, jump):
    assert_follows(followed(make, jump=jump, steps=150))


@pytest.mark.parametrize(
    "make",
    [
        Make(ls.StepLR, (5.0,)),
        Make(ls.MultiStepLR, ([5.0, 9],)),
        Make(ls.ConstantLR, (0.5, 5.0)),
        Make(ls.LinearLR, (0.5, 1.0, 5.0)),
        Make(ls.PolynomialLR, (5.0, 2.0)),
        Make(ls.CosineAnnealingLR, (5.0,)),
    ],
    ids=lambda make: make.kind.__name__,
)
def test_a_whole_number_of_steps_may_be_a_float(make):
    assert_follows(followed(make, first=2))


@pytest.mark.parametrize("kind", [ls.CosineAnnealingWarmRestarts, ls.CosineAnnealingLR, ls.StepLR, ls.ExponentialLR])
def test_a_scheduler_resumed_by_last_epoch_is_continued(kind):
    # Whatever torch makes of it: no last_epoch resumes every class on its curve.
    def make(optimizer):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return kind(optimizer, 0.9 if kind is ls.ExponentialLR else 10, last_epoch=25)

    assert_follows(followed(make, steps=80))


def test_a_scheduler_on_its_curve_has_the_plain_form():
    schedules = ps.schedules
    for make, plain in [
        (Make(ls.StepLR, (30,)), schedules.step_decay(0.2, 30)),
        (Make(ls.MultiStepLR, ([2, 5],)), schedules.piecewise_constant((0.2, 0.2 * 0.1, 0.2 * 0.1 * 0.1), (2, 5))),
        (Make(ls.ConstantLR, (0.5, 3)), schedules.piecewise_constant((0.1, 0.2), (3,))),
        (Make(ls.LinearLR, (0.5, 1.0, 20)), schedules.linear(0.1, 0.2, 20)),
        (Make(ls.ExponentialLR, (0.9,)), schedules.exponential(0.2, 0.9)),
        (Make(ls.PolynomialLR, (20, 2.0)), schedules.polynomial(0.2, 20, power=2.0)),
        (Make(ls.CosineAnnealingWarmRestarts, (5, 2)), schedules.warm_restarts(0.2, 5, multiplier=2)),
        (Make(ls.CyclicLR, (0.01, 0.2, 4), {"cycle_momentum": False}), schedules.cyclic(0.01, 0.2, 4, down_steps=4)),
    ]:
        assert followed(make, first=7)[0] == plain


def test_the_drift_of_a_float32_rate_is_not_taken_for_a_change_by_hand():
    optimizer = make_optimizer(torch.tensor(0.25), kind=torch.optim.Adam, foreach=False)
    scheduler = ls.ExponentialLR(optimizer, 0.99)
    for _ in range(100):
        scheduler.step()
    schedule = ps.schedules.exponential(0.25, 0.99)
    assert optimizer.param_groups[0]["lr"].item() != schedule(100).item()
    assert from_torch(scheduler) == schedule


def test_lambda_of_a_schedule_stays_a_schedule():
    shape = ps.schedules.cosine(1.0, 10)
    assert followed(Make(ls.LambdaLR, (shape,)), first=3)[0] == 0.2 * shape


def test_a_schedule_read_from_torch_is_a_schedule():
    schedule, steps, _ = followed(Make(ls.CosineAnnealingLR, (10, 0.01)), first=3)
    config = schedule.to_config()
    assert ps.schedules.from_config(config) == schedule
    torch.testing.assert_close(torch.vmap(schedule)(steps), schedule(steps))
    step = torch.tensor(5.0, dtype=torch.float64)
    assert torch.func.grad(schedule)(step).item() == pytest.approx(-0.095 * math.pi / 10, rel=1e-6)
    far = schedule(torch.tensor([2**53 - 4, 2**53 - 3]))
    assert torch.isfinite(far).all()
    assert far[0] != far[1]


def test_a_function_made_of_arithmetic_compiles():
    schedule, steps, rates = followed(Make(ls.LambdaLR, (damped,)))
    compiled = torch.compile(lambda t: schedule(t), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(steps), rates, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [ls.OneCycleLR, ls.CyclicLR])
@pytest.mark.parametrize("adam", [False, True])
def test_the_momentum_beside_the_rate(kind, adam):
    optimizer = make_optimizer(kind=torch.optim.Adam if adam else torch.optim.SGD)
    arguments = (1.0, 30) if kind is ls.OneCycleLR else (0.1, 1.0, 4, 7, "exp_range", 0.99)
    scheduler = kind(optimizer, *arguments)
    for _ in range(3):
        scheduler.step()
    schedule = from_torch(scheduler, of="momentum")
    group = optimizer.param_groups[0]
    for step in range(3, 31):
        assert schedule(step).item() == pytest.approx(group["betas"][0] if adam else group["momentum"], rel=1e-12)
        if step < 30:
            scheduler.step()


def test_one_cycle_past_its_end():
    # torch raises after the step that goes beyond the end, which shows what the curve would do.
    schedule, steps, rates = followed(Make(ls.OneCycleLR, (1.0, 10)))
    assert len(steps) == 11
    assert rates[10] > rates[9] > 0
    assert schedule(10).item() == pytest.approx(rates[10].item(), rel=1e-12)
    assert schedule(11) == schedule(10**9) == schedule(9)


@pytest.mark.parametrize(
    ("kind", "wrong", "make"),
    [
        # One that holds its floor, one that forgets where a restart stands, one that starts from the base rate.
        (
            ls.CosineAnnealingLR,
            lambda at: ps.schedules.cosine(at.base, at.scheduler.T_max, floor=at.scheduler.eta_min),
            Make(ls.CosineAnnealingLR, (10, 0.01)),
        ),
        (
            ls.CosineAnnealingWarmRestarts,
            lambda at: ps.schedules.warm_restarts(at.base, at.scheduler.T_i, multiplier=at.scheduler.T_mult),
            Make(ls.CosineAnnealingWarmRestarts, (10, 2)),
        ),
        (ls.ExponentialLR, lambda at: ps.schedules.exponential(at.rate, 0.9), Make(ls.ExponentialLR, (0.9,))),
    ],
)
def test_the_comparison_catches_a_mutant(kind, wrong, make, monkeypatch):
    assert_follows(followed(make, first=15))
    monkeypatch.setitem(_torch_parts.READERS, kind, wrong)
    with pytest.raises(AssertionError):
        assert_follows(followed(make, first=15))
