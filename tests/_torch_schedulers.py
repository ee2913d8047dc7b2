"""Torch's schedulers as Hypothesis draws them, stepped and compared with the schedules that are read from them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import strategies as st
from torch.optim import lr_scheduler as ls
from torch.optim.swa_utils import SWALR

from purestep.schedules import from_torch


def make_optimizer(*rates: float, kind=torch.optim.SGD, **options):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (0.1,)]
    return kind(groups, lr=0.1, **options)


def lengths(low=1, high=12):
    return st.integers(low, high)


def factors(low=0.05, high=1.0):
    return st.floats(low, high)


def damped(t):
    return 1 / (1 + 0.1 * t)


def waved(t):
    return 1 + 0.5 * math.sin(t)


gammas = st.one_of(factors(), st.floats(1.0, 1.2))


@dataclass(frozen=True)
class Make:
    """What makes a scheduler of an optimizer, and says so when a test fails."""

    kind: type
    arguments: tuple
    options: dict = field(default_factory=dict)

    def __call__(self, optimizer):
        return self.kind(optimizer, *self.arguments, **self.options)


@dataclass(frozen=True)
class Joined:
    parts: list
    milestones: list | None  # none for a chain

    def __call__(self, optimizer):
        parts = [part(optimizer) for part in self.parts]
        return (
            ls.ChainedScheduler(parts)
            if self.milestones is None
            else ls.SequentialLR(optimizer, parts, self.milestones)
        )


def made(kind, *arguments, **options):
    return st.builds(lambda a, o: Make(kind, a, o), st.tuples(*arguments), st.fixed_dictionaries(options))


def cosine_lr(floors):
    return made(ls.CosineAnnealingLR, lengths(), floors)


anneals = st.sampled_from(["cos", "linear"])


FUNCTIONS = st.sampled_from([damped, waved])


FACTORS = [
    made(ls.StepLR, lengths(), gamma=gammas),
    made(ls.MultiStepLR, st.lists(lengths(0, 30), max_size=4), gamma=gammas),
    made(ls.ConstantLR, factors(), lengths(0)),
    made(ls.LinearLR, factors(), st.just(0.0) | factors(), lengths(0)),
    made(ls.ExponentialLR, gammas),
    made(ls.PolynomialLR, lengths(0), st.one_of(st.just(0.0), factors(0.3, 3))),
    made(ls.MultiplicativeLR, FUNCTIONS),
]


CYCLIC = made(
    ls.CyclicLR,
    factors(0.0),
    factors(),
    lengths(),
    st.none() | lengths(),
    mode=st.sampled_from(["triangular", "triangular2", "exp_range"]),
    gamma=gammas,
    scale_fn=st.sampled_from([None, None, damped]),
    scale_mode=st.sampled_from(["cycle", "iterations"]),
    cycle_momentum=st.just(False),
)


ONE_CYCLE = made(
    ls.OneCycleLR,
    factors(),
    lengths(2, 40),
    pct_start=st.one_of(st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.floats(0.0, 1.0)),
    anneal_strategy=anneals,
    three_phase=st.booleans(),
    div_factor=st.floats(1.0, 30.0),
    final_div_factor=st.sampled_from([1.0, 1e2, 1e4]),
    cycle_momentum=st.just(False),
)


RESTARTS = made(ls.CosineAnnealingWarmRestarts, lengths(), lengths(1, 3), st.floats(0.0, 0.2))


SETTERS = [made(ls.LambdaLR, FUNCTIONS), RESTARTS, CYCLIC]


SWA = made(SWALR, factors(), lengths(0), anneals)


SINGLE = [*FACTORS, cosine_lr(st.floats(0.0, 0.2)), SWA, *SETTERS, ONE_CYCLE]


def followed(make, rate=0.1, *, first=0, steps=40, edit=1.0, jump=None):
    """Advance a new scheduler to step ``first``, read it, and return its schedule, the steps from there on, and torch's
    rates at them. What torch itself refuses is no example."""
    optimizer = make_optimizer(rate, 2 * rate)
    try:
        scheduler = make(optimizer)
        for _ in range(first):
            scheduler.step()
        if jump is not None:
            scheduler.step(jump)
    except (ZeroDivisionError, ValueError, NotImplementedError):
        return None
    for group in optimizer.param_groups:
        group["lr"] *= edit
    before = copy.deepcopy((optimizer.state_dict(), [g["lr"] for g in optimizer.param_groups]))
    schedule = from_torch(scheduler, group=1)
    assert (optimizer.state_dict(), [g["lr"] for g in optimizer.param_groups]) == before
    clock = epoch_of(scheduler)
    rates = [optimizer.param_groups[1]["lr"]]
    for _ in range(steps):
        try:
            scheduler.step()
        except (ZeroDivisionError, ValueError):
            break
        rates.append(optimizer.param_groups[1]["lr"])
    return schedule, torch.arange(clock, clock + len(rates)), torch.tensor(rates, dtype=torch.float64)


def epoch_of(scheduler):
    while isinstance(scheduler, ls.ChainedScheduler):
        scheduler = scheduler._schedulers[0]
    return scheduler.last_epoch


def assert_follows(case, base=0.2):
    if case is None:
        return
    schedule, steps, rates = case
    # Relative, and beside a rate that cancels to almost nothing, as a cosine's near its end, to the base rate.
    torch.testing.assert_close(schedule(steps), rates, rtol=1e-12, atol=1e-13 * base)
    assert schedule(int(steps[-1])).item() == pytest.approx(rates[-1].item(), rel=1e-12, abs=1e-13 * base)
