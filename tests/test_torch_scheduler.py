"""Torch's schedulers read as schedules, and schedules as torch's schedulers."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as ls
from torch.optim.swa_utils import SWALR

import purestep as ps
from purestep.integrations.torch_scheduler import to_torch
from purestep.schedules import _torch_parts, from_torch

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of", "ignore:The epoch parameter")


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


# Schedules as torch's schedulers.

rates = st.sampled_from(
    [
        ps.schedules.warmup_cosine(peak=0.3, warmup_steps=4, total_steps=30),
        ps.schedules.linear(0.1, 0.5, 20).then(ps.schedules.exponential(0.5, 0.9), at=20),
        0.5 * ps.schedules.noam(64, 10),
        ps.schedules.cosine(0.2, 9).repeat(every=9),
    ]
)


@given(rates, st.integers(0, 40), st.integers(0, 20))
def test_to_torch_and_back_resumed_at_any_step(schedule, first, more):
    optimizer = make_optimizer(0.7, 0.8)
    scheduler = to_torch(schedule, optimizer)
    assert isinstance(scheduler, ls.LRScheduler)
    for step in range(first):
        assert scheduler.get_last_lr() == [schedule(step).item()] * 2
        optimizer.step()
        scheduler.step()
    assert from_torch(scheduler) == schedule
    assert scheduler.state_dict() == {"last_epoch": first}
    other = make_optimizer(0.7, 0.8)
    resumed = to_torch(schedule, other)
    resumed.load_state_dict(pickle.loads(pickle.dumps(scheduler.state_dict())))
    for step in range(first, first + more):
        for held in (optimizer, other):
            assert [group["lr"] for group in held.param_groups] == [schedule(step).item()] * 2
        scheduler.step()
        resumed.step()
    assert resumed.state_dict() == to_torch(schedule, make_optimizer(), last_epoch=first + more - 1).state_dict()


def test_a_schedule_for_each_group_and_for_other_hyperparameters():
    schedules = ps.schedules
    optimizer = make_optimizer(0.1, 0.1, kind=torch.optim.AdamW)
    each = [schedules.linear(0.1, 0.2, 10), schedules.constant(0.3)]
    beta, decay = schedules.linear(0.9, 0.8, 10), [schedules.constant(0.0), schedules.linear(0.0, 1.0, 10)]
    scheduler = to_torch(each, optimizer, also={"betas[0]": beta, "weight_decay": decay}, last_epoch=3)
    scheduler.step()
    first, second = optimizer.param_groups
    assert (first["lr"], second["lr"]) == (each[0](5).item(), 0.3)
    assert first["betas"] == second["betas"] == (beta(5).item(), 0.999)
    assert (first["weight_decay"], second["weight_decay"]) == (0.0, 0.5)
    assert [from_torch(scheduler, group=i) for i in (0, 1)] == each


def test_a_rate_that_is_a_tensor_is_written_in_place():
    optimizer = make_optimizer(torch.tensor(0.1), kind=torch.optim.Adam, capturable=False, foreach=False)
    held = optimizer.param_groups[0]["lr"]
    scheduler = to_torch(ps.schedules.linear(0.0, 1.0, 10), optimizer)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == pytest.approx(0.1)
    scheduler.load_state_dict({"last_epoch": 7})
    assert held.item() == pytest.approx(0.7)


def test_one_schedule_serves_groups_that_are_added():
    optimizer = make_optimizer(0.1)
    scheduler = to_torch(ps.schedules.linear(0.0, 1.0, 10), optimizer)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 9.0})
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


def test_it_stands_in_torch_s_own_sequence():
    optimizer = make_optimizer(0.1)
    warm_up, rate = ls.LinearLR(optimizer, 0.5, 1.0, 4), ps.schedules.cosine(0.1, 10)
    optimizer.param_groups[0]["lr"] = 0.05
    scheduler = ls.SequentialLR(optimizer, [warm_up, to_torch(rate, optimizer)], [4])
    schedule = from_torch(scheduler)
    scheduler.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    for step in range(20):
        expected = (ps.schedules.linear(0.05, 0.1, 4) if step < 4 else rate)(step if step < 4 else step - 4)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected.item(), rel=1e-12)
        assert schedule(step).item() == pytest.approx(expected.item(), rel=1e-12)
        scheduler.step()


def test_it_warns_of_the_wrong_order_as_torch_does(recwarn):
    optimizer = make_optimizer(0.1)
    to_torch(ps.schedules.constant(0.1), optimizer).step()
    assert any("`lr_scheduler.step()` before `optimizer.step()`" in str(w.message) for w in recwarn)


SCHEDULE = ps.schedules.constant(0.1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda o: to_torch(0.1, o),
            TypeError,
            r"schedule must be a Schedule \(constant\(x\) for a number\) or a list",
        ),
        (lambda o: to_torch([SCHEDULE, 0.1], o), TypeError, r"schedule\[1\] must be a Schedule .* got 0.1"),
        (
            lambda o: to_torch([SCHEDULE], o),
            ValueError,
            "schedule must have a schedule for each of the optimizer's 2 groups",
        ),
        (lambda o: to_torch(SCHEDULE, None), TypeError, "optimizer must be a torch.optim.Optimizer, got NoneType"),
        (
            lambda o: to_torch(SCHEDULE, o, last_epoch=-2),
            ValueError,
            "last_epoch must be an int of at least -1, got -2",
        ),
        (
            lambda o: to_torch(SCHEDULE, o, last_epoch=True),
            TypeError,
            "last_epoch must be an int of at least -1, got True",
        ),
        (
            lambda o: to_torch(SCHEDULE, o, also=[]),
            TypeError,
            r"also must be a dict of schedules by hyperparameter, got \[\]",
        ),
        (lambda o: to_torch(SCHEDULE, o, also={"lr": SCHEDULE}), ValueError, "also must not name 'lr'"),
        (
            lambda o: to_torch(SCHEDULE, o, also={"momentun": SCHEDULE}),
            ValueError,
            r"also must name hyperparameters of the optimizer's groups, got 'momentun' \(did you mean 'momentum'",
        ),
        (
            lambda o: to_torch(SCHEDULE, o, also={"nesterov": SCHEDULE}),
            ValueError,
            "also must name numbers, got 'nesterov'",
        ),
        (lambda o: to_torch(SCHEDULE, o, also={"momentum": 0.9}), TypeError, r"also\['momentum'\] must be a Schedule"),
        (
            lambda o: to_torch(SCHEDULE, make_optimizer(kind=torch.optim.Adam), also={"betas": SCHEDULE}),
            ValueError,
            r"also must name one entry of 'betas', 'betas\[0\]', 'betas\[1\]', got 'betas'",
        ),
        (
            lambda o: to_torch(SCHEDULE, o).load_state_dict(ls.StepLR(o, 3).state_dict()),
            ValueError,
            r"state_dict must be \{'last_epoch': step\}",
        ),
        (
            lambda o: to_torch(SCHEDULE, o).load_state_dict({"last_epoch": 0.5}),
            TypeError,
            r"state_dict\['last_epoch'\] must",
        ),
        (lambda o: from_torch(SCHEDULE), TypeError, "scheduler must be one of torch.optim.lr_scheduler, got Schedule"),
        (lambda o: from_torch(ls.StepLR(o, 3), group=2), ValueError, "group must be below 2"),
        (lambda o: from_torch(ls.StepLR(o, 3), group=-1), ValueError, "group must be an int of at least 0, got -1"),
        (
            lambda o: from_torch(ls.StepLR(o, 3), of="beta"),
            ValueError,
            "of must be one of 'rate', 'momentum', got 'beta'",
        ),
        (
            lambda o: from_torch(ls.StepLR(o, 3), of="momentum"),
            ValueError,
            "of='momentum' needs a OneCycleLR or a CyclicLR",
        ),
        (lambda o: from_torch(type("Mine", (ls.StepLR,), {})(o, 3)), TypeError, "of a class of torch's own, got Mine"),
        (
            lambda o: from_torch(ls.ReduceLROnPlateau(o, "max", 0.5, min_lr=1e-3)),
            ValueError,
            r"plateau\(mode='max', factor=0.5, floor=0.001, base=0.1\), and the rate is its .times\(schedule\)",
        ),
        (
            lambda o: from_torch(ls.CosineAnnealingLR(o, 0.1 * 3 * 10)),
            ValueError,
            "T_max must be a whole number of steps",
        ),
        (
            lambda o: from_torch(ls.ConstantLR(o, 0.0, 3)),
            ValueError,
            "ConstantLR with factor=0 divides by zero at its step 3",
        ),
        (lambda o: from_torch(ls.PolynomialLR(o, 3, -1.0)), ValueError, "PolynomialLR with power=-1.0 divides by zero"),
        (
            lambda o: from_torch(ls.ChainedScheduler([ls.StepLR(o, 3), ls.LambdaLR(o, damped)])),
            ValueError,
            "a ChainedScheduler with a LambdaLR is no product",
        ),
        (
            lambda o: from_torch(ls.ChainedScheduler([ls.StepLR(o, 3), ls.CosineAnnealingLR(o, 9, 0.01)])),
            ValueError,
            "with a CosineAnnealingLR and eta_min=0.01 is no product",
        ),
        (
            lambda o: from_torch(ls.ChainedScheduler([ls.PolynomialLR(o, 3), ls.CosineAnnealingLR(o, 9)])),
            ValueError,
            "with a CosineAnnealingLR and another that ends in 0 is no product",
        ),
        (
            lambda o: from_torch(ls.SequentialLR(o, [ls.StepLR(o, 3), ls.ChainedScheduler([ls.StepLR(o, 3)])], [5])),
            ValueError,
            "a ChainedScheduler as a later part of a SequentialLR raises NotImplementedError in torch at",
        ),
        (
            lambda o: from_torch(ls.SequentialLR(o, [ls.StepLR(o, 3) for _ in "abc"], [5, 2])),
            ValueError,
            r"SequentialLR's milestones must be ints in order, got \[5, 2\]",
        ),
        (
            lambda o: from_torch(ls.SequentialLR(o, [ls.StepLR(o, 3), ls.LinearLR(o, 0.5, 1.0, 0)], [5])),
            ValueError,
            "a LinearLR of no steps divides by zero in torch at the SequentialLR's milestone 5",
        ),
        (
            lambda o: from_torch(ls.SequentialLR(o, [ls.StepLR(o, 3), ls.StepLR(o, 4)], [5])._schedulers[1]),
            ValueError,
            "scheduler must have begun, got a StepLR at step -1, which waits in a SequentialLR",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(make_optimizer(0.1, 0.1, momentum=0.9))
