"""Whole curves against torch's schedulers as they are stepped; and each quirk of torch's, beside what is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as lr
from torch.optim.swa_utils import SWALR

import purestep.schedules as ps
from _schedules import BASE, gap, optimizer, torch_rates
from purestep.schedules import Schedule, constant, cosine, linear, noam

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch's on the order of steps and on `epoch`


def one_cycle_of_torch(steps: int, share: float, **options: Any) -> Schedule:
    return ps.one_cycle(BASE, steps - 1, warmup_fraction=(share * steps - 1) / (steps - 1), **options)


TORCH: list[tuple[Schedule, Callable[[torch.optim.Optimizer], Any], int]] = [
    (constant(BASE), lambda o: lr.LambdaLR(o, lambda t: 1.0), 50),
    (ps.piecewise_constant([BASE / 3, BASE], [7]), lambda o: lr.ConstantLR(o, 1 / 3, 7), 50),
    (linear(BASE / 3, BASE, 50), lambda o: lr.LinearLR(o, 1 / 3, 1.0, 50), 400),
    (linear(BASE, BASE / 7, 13), lambda o: lr.LinearLR(o, 1.0, 1 / 7, 13), 400),
    (ps.polynomial(BASE, 90), lambda o: lr.PolynomialLR(o, 90), 200),
    (ps.polynomial(BASE, 90, power=2.5), lambda o: lr.PolynomialLR(o, 90, 2.5), 200),
    (ps.exponential(BASE, 0.99), lambda o: lr.ExponentialLR(o, 0.99), 1000),
    (ps.step_decay(BASE, 30, rate=0.5), lambda o: lr.StepLR(o, 30, 0.5), 400),
    (ps.multi_step(BASE, [30, 80, 81]), lambda o: lr.MultiStepLR(o, [30, 80, 81]), 200),
    (cosine(BASE, 120), lambda o: lr.CosineAnnealingLR(o, 120), 120),
    (cosine(BASE, 300, floor=0.01), lambda o: lr.CosineAnnealingLR(o, 300, 0.01), 300),
    (ps.warm_restarts(BASE, 30, floor=0.01), lambda o: lr.CosineAnnealingWarmRestarts(o, 30, 1, 0.01), 200),
    (ps.warm_restarts(BASE, 7, multiplier=3), lambda o: lr.CosineAnnealingWarmRestarts(o, 7, 3), 1000),
    (one_cycle_of_torch(100, 0.3), lambda o: lr.OneCycleLR(o, BASE, total_steps=100), 99),
    (
        one_cycle_of_torch(100, 0.2, three_phase=True, anneal="linear", start_divisor=10, end_divisor=100),
        lambda o: lr.OneCycleLR(
            o,
            BASE,
            total_steps=100,
            pct_start=0.2,
            three_phase=True,
            anneal_strategy="linear",
            div_factor=10,
            final_div_factor=100,
        ),
        99,
    ),
    (ps.cyclic(0.01, 0.2, 20), lambda o: lr.CyclicLR(o, 0.01, 0.2, 20), 200),
    (
        ps.cyclic(0.01, 0.2, 20, down_steps=7, mode="triangular2"),
        lambda o: lr.CyclicLR(o, 0.01, 0.2, 20, 7, "triangular2"),
        200,
    ),
    (
        ps.cyclic(0.01, 0.2, 20, mode="exp_range", gamma=0.99),
        lambda o: lr.CyclicLR(o, 0.01, 0.2, 20, mode="exp_range", gamma=0.99),
        200,
    ),
    (BASE * ps.function(lambda t: 1 / (1 + t)), lambda o: lr.LambdaLR(o, lambda t: 1 / (1 + t)), 100),
    (
        ps.multiplicative(BASE, [1 - 1 / (t + 2) for t in range(1, 101)]),
        lambda o: lr.MultiplicativeLR(o, lambda t: 1 - 1 / (t + 2)),
        100,
    ),
    (ps.swa_anneal(BASE, 0.05, 0, 10), lambda o: SWALR(o, 0.05, 10, "cos"), 30),
    (ps.swa_anneal(BASE, 0.05, 0, 10, kind="linear"), lambda o: SWALR(o, 0.05, 10, "linear"), 30),
    (ps.swa_anneal(BASE, 0.05, 0, 0), lambda o: SWALR(o, 0.05, 0, "linear"), 30),
    (
        linear(0.01, BASE, 10).then(cosine(BASE, 50), at=10),
        lambda o: lr.SequentialLR(o, [lr.LinearLR(o, 0.1, 1.0, 10), lr.CosineAnnealingLR(o, 50)], [10]),
        60,
    ),
    (
        linear(0.5, 1.0, 10) * ps.exponential(BASE, 0.9),
        lambda o: lr.ChainedScheduler([lr.LinearLR(o, 0.5, 1.0, 10), lr.ExponentialLR(o, 0.9)], o),
        60,
    ),
    (
        0.05 * noam(512, 40, factor=2.0),
        lambda o: lr.LambdaLR(o, lambda t: 512**-0.5 * min((t + 1) ** -0.5, (t + 1) * 40**-1.5)),
        400,
    ),
]


@pytest.mark.parametrize(("one", "make", "steps"), TORCH, ids=[repr(one) for one, _, _ in TORCH])
def test_equal_to_torch(one: Schedule, make: Callable[[torch.optim.Optimizer], Any], steps: int) -> None:
    assert gap(one, torch_rates(make, steps)) < 1e-12


@pytest.mark.parametrize(
    ("one", "make", "steps"),
    [
        (
            ps.one_cycle_momentum(0.85, 0.95, 99, warmup_fraction=29 / 99),
            lambda o: lr.OneCycleLR(o, BASE, total_steps=100),
            99,
        ),
        (
            ps.one_cycle_momentum(0.8, 0.9, 99, warmup_fraction=19 / 99, three_phase=True, anneal="linear"),
            lambda o: lr.OneCycleLR(
                o,
                BASE,
                total_steps=100,
                pct_start=0.2,
                three_phase=True,
                anneal_strategy="linear",
                base_momentum=0.8,
                max_momentum=0.9,
            ),
            99,
        ),
        (ps.cyclic_momentum(0.8, 0.9, 20), lambda o: lr.CyclicLR(o, 0.01, 0.2, 20), 200),
        (
            ps.cyclic_momentum(0.7, 0.95, 20, down_steps=30, mode="triangular2"),
            lambda o: lr.CyclicLR(o, 0.01, 0.2, 20, 30, "triangular2", base_momentum=0.7, max_momentum=0.95),
            200,
        ),
    ],
)
def test_momentum_equal_to_torch(one: Schedule, make: Callable[[torch.optim.Optimizer], Any], steps: int) -> None:
    assert gap(one, torch_rates(make, steps, name="momentum")) < 1e-12


# torch's quirks, and what is right


def test_torch_cosine_rises_again_and_takes_a_fractional_length_until_it_divides_by_zero() -> None:
    rates = torch_rates(lambda o: lr.CosineAnnealingLR(o, T_max=50), 100)
    assert rates[50] < 1e-15 < BASE / 2 < rates[100]
    assert cosine(BASE, 50)(100).item() == 0.0
    with pytest.raises(ZeroDivisionError):
        torch_rates(lambda o: lr.CosineAnnealingLR(o, T_max=0.1 * 3 * 10), 7)
    with pytest.raises(TypeError, match=r"total_steps must be an int, got 3\.0"):
        cosine(BASE, 0.1 * 3 * 10)


def test_torch_scales_the_rest_of_a_cosine_by_a_rate_set_by_hand() -> None:
    sgd = optimizer()
    scheduler = lr.CosineAnnealingLR(sgd, 10)
    for t in range(8):
        if t == 5:
            sgd.param_groups[0]["lr"] = 0.01
        sgd.step()
        scheduler.step()
    right = cosine(BASE, 10)(8).item()
    assert sgd.param_groups[0]["lr"] == pytest.approx(right / 5, rel=1e-12)  # 0.01 in the place of 0.05


def test_torch_drifts_with_a_float32_rate() -> None:
    drifted = torch_rates(lambda o: lr.ExponentialLR(o, 0.9999), 10_000, torch.tensor(BASE))[-1].item()
    right = BASE * 0.9999**10_000
    assert abs(drifted / right - 1) > 1e-4
    one = ps.exponential(torch.tensor(BASE, dtype=torch.float64), 0.9999)
    assert one(10_000).item() == pytest.approx(right, rel=1e-14)
    missed = torch_rates(lambda o: lr.LinearLR(o, 0.01, 1.0, 10_000), 10_000, torch.tensor(BASE))[-1].item()
    assert abs(missed / BASE - 1) > 1e-5
    assert linear(BASE / 100, BASE, 10_000)(10_000).item() == BASE


def test_torch_one_cycle_passes_its_peak_by_rebounds_and_divides_by_zero() -> None:
    rates = torch_rates(lambda o: lr.OneCycleLR(o, BASE, total_steps=11), 10)
    assert rates.max() < 0.98 * BASE
    assert ps.one_cycle(BASE, 10)(torch.arange(11)).max() == BASE
    rates = torch_rates(lambda o: lr.OneCycleLR(o, BASE, total_steps=10), 10)
    assert rates[9] < 1e-6 < 0.004 < rates[10]
    assert ps.one_cycle(BASE, 9)(10) == ps.one_cycle(BASE, 9)(9)
    with pytest.raises(ValueError, match="Tried to step 11 times"):
        torch_rates(lambda o: lr.OneCycleLR(o, BASE, total_steps=10), 11)
    with pytest.raises(ZeroDivisionError):
        torch_rates(lambda o: lr.OneCycleLR(o, BASE, total_steps=10, pct_start=0.1), 9)
    assert ps.one_cycle(BASE, 10, warmup_fraction=0.1)(1).item() == BASE


@pytest.mark.parametrize(("period", "multiplier", "step"), [(1, 3, 121), (10, 3, 1210), (10, 10, 1110)])
def test_torch_misses_a_restart_that_it_is_sent_to(period: int, multiplier: int, step: int) -> None:
    sgd = optimizer()
    scheduler = lr.CosineAnnealingWarmRestarts(sgd, period, multiplier)
    scheduler.step(step)
    assert sgd.param_groups[0]["lr"] < 1e-15
    counted = torch_rates(lambda o: lr.CosineAnnealingWarmRestarts(o, period, multiplier), step)
    one = ps.warm_restarts(BASE, period, multiplier=multiplier)
    assert counted[-1].item() == one(step).item() == BASE
    assert gap(one, counted) < 1e-12


def test_torch_resumes_warm_restarts_on_another_curve() -> None:
    sgd = optimizer(1.0)
    sgd.param_groups[0]["initial_lr"] = 1.0
    lr.CosineAnnealingWarmRestarts(sgd, 10, 2, last_epoch=25)
    assert sgd.param_groups[0]["lr"] == pytest.approx(0.794, abs=1e-3)
    assert ps.warm_restarts(1.0, 10, multiplier=2)(26).item() == pytest.approx(0.0955, abs=1e-4)


def test_torch_sequential_is_no_join() -> None:
    halves = torch_rates(
        lambda o: lr.SequentialLR(o, [lr.ConstantLR(o, 0.1, 100), lr.MultiplicativeLR(o, lambda t: 0.5)], [3]), 5
    )
    # The product goes on from the rate of the part before, where it should begin at its own.
    assert halves.tolist() == pytest.approx([0.01, 0.01, 0.01, 0.005, 0.0025, 0.00125])
    joined = constant(BASE / 10).then(ps.multiplicative(BASE, [0.5] * 9), at=3)
    assert joined(torch.arange(6)).tolist() == [0.01, 0.01, 0.01, BASE, BASE / 2, BASE / 4]

    spoiled = torch_rates(
        lambda o: lr.SequentialLR(o, [lr.LinearLR(o, 0.1, 1.0, 5), lr.OneCycleLR(o, BASE, total_steps=10)], [5]), 5
    )
    assert spoiled[:5].max() < 0.04 * BASE  # the second part made the first one's base rate its own
    assert gap(linear(BASE / 10, BASE, 5), [BASE * (0.1 + 0.9 * t / 5) for t in range(5)]) < 1e-12

    with pytest.raises(NotImplementedError):
        torch_rates(
            lambda o: lr.SequentialLR(
                o,
                [lr.ConstantLR(o), lr.ChainedScheduler([lr.ConstantLR(o), lr.ExponentialLR(o, 0.9)], o)],
                [5],
            ),
            9,
        )


def test_torch_chained_is_no_product() -> None:
    chained = torch_rates(
        lambda o: lr.ChainedScheduler([lr.CosineAnnealingLR(o, 10, eta_min=0.01), lr.ExponentialLR(o, 0.9)], o), 20
    )
    product = cosine(1.0, 10, floor=0.1) * ps.exponential(BASE, 0.9)
    right = [(0.1 + 0.45 * (1 + math.cos(math.pi * min(t, 10) / 10))) * BASE * 0.9**t for t in range(21)]
    assert gap(product, right) < 1e-12
    assert gap(product, chained[:11]) > 0.05
    assert chained.min() < 0 < product(torch.arange(21)).min()


def test_torch_cyclic_overwrites_the_rate_and_overflows() -> None:
    sgd = optimizer(0.5)
    scheduler = lr.CyclicLR(sgd, 0.01, 0.1, 1, mode="triangular2")
    assert sgd.param_groups[0]["lr"] == 0.01
    scheduler.last_epoch = 3000
    with pytest.raises(OverflowError):
        scheduler.get_lr()
    assert ps.cyclic(0.01, 0.1, 1, mode="triangular2")(3001).item() == 0.01


def test_torch_takes_or_refuses_what_has_no_meaning_or_has_one() -> None:
    assert set(torch_rates(lambda o: lr.PolynomialLR(o, 0), 3).tolist()) == {BASE}  # no steps, and never at its end
    with pytest.raises(ValueError, match="total_steps must be at least 1, got 0"):
        ps.polynomial(BASE, 0)
    with pytest.raises(ZeroDivisionError):
        torch_rates(lambda o: lr.ConstantLR(o, 0.0, 3), 5)
    assert ps.piecewise_constant([0.0, BASE], [3])(torch.arange(5)).tolist() == [0.0, 0.0, 0.0, BASE, BASE]
    with pytest.raises(ValueError, match="Starting multiplicative factor expected to be greater than 0"):
        torch_rates(lambda o: lr.LinearLR(o, 0.0, 1.0, 3), 5)
    assert linear(0.0, BASE, 2)(1).item() == BASE / 2


@pytest.mark.parametrize(("last_epoch", "rate"), [(9, BASE / 100), (10, BASE / 10)])
def test_torch_decays_once_more_when_resumed_one_step_early(last_epoch: int, rate: float) -> None:
    sgd = optimizer(BASE / 10)  # as it was saved at step 10
    sgd.param_groups[0]["initial_lr"] = BASE
    lr.StepLR(sgd, 10, last_epoch=last_epoch)
    assert sgd.param_groups[0]["lr"] == pytest.approx(rate)
    assert ps.step_decay(BASE, 10)(10).item() == pytest.approx(BASE / 10)
