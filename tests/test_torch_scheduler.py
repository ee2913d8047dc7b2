"""Schedules as torch's schedulers, and what is refused on the way there and back."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as ls

import purestep as ps
from _torch_schedulers import damped, make_optimizer
from purestep.integrations.torch_scheduler import to_torch
from purestep.schedules import from_torch

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of", "ignore:The epoch parameter")


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
            lambda o: from_torch(ls.LinearLR(o, 0.5, 1.0, 2.5)),
            ValueError,
            "LinearLR's total_iters must be a whole number of steps, got 2.5",
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
