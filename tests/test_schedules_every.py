"""The laws of schedules over every schedule and over drawn expressions, compiled too."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import purestep.schedules as ps
from _schedules import ALGEBRA, SOME, STEPS
from purestep.laws._drawn_schedules import BASIC, schedules
from purestep.laws.schedules import check_schedule
from purestep.schedules import Schedule, constant, cosine, linear, noam, warmup_cosine
from purestep.schedules._schedule import CONSTRUCTORS

drawn = settings(max_examples=25, deadline=None)


@pytest.mark.parametrize("one", SOME + ALGEBRA, ids=repr)
def test_laws_of_each(one: Schedule) -> None:
    check_schedule(one)


@drawn
@given(schedules())
def test_laws_of_drawn_expressions(one: Schedule) -> None:
    check_schedule(one)


@pytest.mark.parametrize("name", BASIC)
def test_laws_of_every_constructor_with_drawn_hyperparameters(name: str) -> None:
    @settings(max_examples=8, deadline=None)
    @given(BASIC[name])
    def laws_hold(one: Schedule) -> None:
        check_schedule(one)

    laws_hold()


BOUNDED: list[tuple[Schedule, tuple[float, float], list[tuple[int, int, str]]]] = [
    (ps.polynomial(0.1, 20, floor=0.01, power=0.5), (0.01, 0.1), [(0, 30, "falling")]),
    (ps.exponential(0.1, 0.9, floor=0.02), (0.02, 0.1), [(0, 100, "falling")]),
    (ps.step_decay(0.1, 5), (0.0, 0.1), [(0, 100, "falling")]),
    (ps.multi_step(0.1, [3, 50], rate=0.5), (0.025, 0.1), [(0, 100, "falling")]),
    (ps.tanh_decay(0.1, 50, floor=0.01), (0.01, 0.1), [(0, 100, "falling")]),
    (ps.sigmoid_decay(0.1, 50, floor=0.01), (0.01, 0.1), [(0, 100, "falling")]),
    (ps.one_minus_sqrt(0.1, 50, floor=0.01), (0.01, 0.1), [(0, 100, "falling")]),
    (
        ps.warm_restarts(0.1, 10, multiplier=2, floor=0.01, cycles=2),
        (0.01, 0.1),
        [(0, 9, "falling"), (10, 40, "falling")],
    ),
    (ps.one_cycle(0.1, 50), (0.1 / 25 / 1e4, 0.1), [(0, 15, "rising"), (15, 60, "falling")]),
    (ps.one_cycle_momentum(0.85, 0.95, 50), (0.85, 0.95), [(0, 15, "falling"), (15, 60, "rising")]),
    (ps.cyclic(0.01, 0.1, 5, down_steps=8), (0.01, 0.1), [(0, 5, "rising"), (5, 13, "falling"), (13, 18, "rising")]),
    (ps.cyclic_momentum(0.85, 0.95, 5), (0.85, 0.95), [(0, 5, "falling"), (5, 10, "rising")]),
    (ps.inverse_sqrt(0.1, 10), (0.0, 0.1), [(0, 10, "rising"), (10, 10_000, "falling")]),
    (
        ps.wsd(0.1, 10, 20, 30, floor=0.01, decay="one_minus_sqrt"),
        (0.0, 0.1),
        [(0, 30, "rising"), (10, 100, "falling")],
    ),
    (ps.tri_stage(0.1, 10, 20, 30), (0.001, 0.1), [(0, 30, "rising"), (10, 100, "falling")]),
    (ps.swa_anneal(0.1, 0.05, 10, 20), (0.05, 0.1), [(0, 100, "falling")]),
    (
        ps.warmup(cosine(0.1, 50), 10, initial=0.01, kind="exponential"),
        (0.0, 0.1),
        [(0, 10, "rising"), (10, 100, "falling")],
    ),
    (ps.warmup_linear(0.1, 10, 50, floor=0.01), (0.0, 0.1), [(0, 10, "rising"), (10, 100, "falling")]),
    (ps.noise(constant(0.1), 7, scale=0.5), (0.05, 0.15), []),
]


@pytest.mark.parametrize(("one", "bounds", "phases"), BOUNDED, ids=[repr(one) for one, _, _ in BOUNDED])
def test_bounds_and_phases_are_kept(one: Schedule, bounds: tuple[float, float], phases: list) -> None:
    check_schedule(one, steps=range(120), bounds=bounds, monotone=phases)


def test_every_schedule_is_drawn() -> None:
    assert set(BASIC) == {name for name in ps.__all__ if name in CONSTRUCTORS}


def test_every_schedule_is_documented_with_its_curve() -> None:
    docs = Path(__file__).parent.parent / "docs"
    page = (docs / "schedules.md").read_text()
    figures = "".join((docs / name).read_text() for name in re.findall(r"\]\((schedules/\w+\.svg)\)", page))
    assert figures
    for name in BASIC:
        assert f"`{name}(" in page, f"{name} is not in docs/schedules.md"
        assert name in ("join", "maximum", "minimum") or f">{name}<" in figures, f"draw {name}: docs/draw_schedules.py"


EACH = list({one.name: one for one in SOME}.values()) + ALGEBRA[-4:]
WITH_A_COMPILER = [ps.warm_restarts(0.1, 5, multiplier=3), ps.cyclic(0.01, 0.1, 5), ps.wsd(0.1, 5, 15, 80), SOME[-1]]


@pytest.mark.compiler
@pytest.mark.parametrize(("everything", "backend"), [(EACH, "eager"), (WITH_A_COMPILER, "inductor")])
def test_compiled_once_for_all_steps_and_equal_to_eager(everything: list[Schedule], backend: str) -> None:
    compiled = torch.compile(
        lambda step: torch.stack([one(step) for one in everything]), fullgraph=True, backend=backend
    )
    compiled(STEPS[0])
    with torch.compiler.set_stance("fail_on_recompile"):
        found = torch.stack([compiled(step) for step in STEPS], dim=1)
    for one, values in zip(everything, found, strict=True):
        torch.testing.assert_close(values, one(STEPS), rtol=1e-12, atol=1e-13, msg=lambda m, one=one: f"{one}: {m}")


@pytest.mark.compiler
def test_compiled_for_other_hyperparameters_through_the_same_code() -> None:
    def compiled(one: Schedule) -> Callable[[Tensor], Tensor]:
        return torch.compile(lambda step: one(step), fullgraph=True)

    # From the second on, the compiler takes numbers that differ as variables, and must not keep an earlier one.
    for n in (1, 2, 3):
        joined = linear(0.1 * n, 0.2, 4 + n).then(cosine(0.3 * n, 9 + n, floor=0.01 * n, power=n / 2), at=5 + n)
        one = (joined + noam(n, 2 + n)).shift(n).clamp(min=0.05 * n, max=0.2 * n).repeat(every=18 + n) * (n / 7)
        found = torch.stack([compiled(one)(torch.tensor(t)) for t in (0, 6, 7, 20, 40)])
        torch.testing.assert_close(found, one(torch.tensor([0, 6, 7, 20, 40])), rtol=1e-12, atol=0)


@pytest.mark.compiler
def test_compiled_with_an_int_and_built_and_differentiated_inside() -> None:
    def step_of_training(peak: Tensor, count: int) -> tuple[Tensor, Tensor]:
        grad, value = torch.func.grad_and_value(lambda p: warmup_cosine(p, 3, 10)(count))(peak)
        return grad, value

    compiled = torch.compile(step_of_training, fullgraph=True, dynamic=True)
    for count in (2, 5, 11):
        peak = torch.tensor(0.1, dtype=torch.float64)
        torch.testing.assert_close(compiled(peak, count), step_of_training(peak, count), rtol=1e-12, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.cuda
def test_values_stay_on_the_device_of_the_step() -> None:
    for one in SOME + ALGEBRA:
        values = one(STEPS.cuda())
        assert values.is_cuda
        torch.testing.assert_close(values.cpu(), one(STEPS), rtol=1e-12, atol=1e-13)
