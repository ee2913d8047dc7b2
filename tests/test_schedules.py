"""The laws of schedules over every schedule and over drawn expressions; torch's own as reference; bad input."""

from __future__ import annotations

import builtins
import copy
import json
import math
import pickle
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

import purestep.schedules as ps
from purestep.laws import LawViolation
from purestep.laws.schedules import BASIC, check_schedule, schedules
from purestep.schedules import Schedule, constant, cosine, from_config, linear, noam, schedule, warmup_cosine
from purestep.schedules._schedule import CONSTRUCTORS

BASE = 0.1
SOME = [
    constant(0.3),
    constant(torch.tensor(0.3)),
    linear(0.1, 0.7, 13),
    linear(-1, 1, 2**53),
    cosine(0.1, 20),
    cosine(0.1, 20, floor=0.03, power=0.25),
    warmup_cosine(peak=3e-3, warmup_steps=100, total_steps=2_000),
    warmup_cosine(0.1, 0, 10, floor=0.01, power=2),
    warmup_cosine(0.1, 7, 8, initial=0.05),
    noam(512, 4000),
    noam(512, 0, factor=2.0),
]
ALGEBRA = [
    0.5 * linear(0.0, 1.0, 10) * cosine(1.0, 20) + 1e-3,
    (1 - cosine(1.0, 20, floor=0.5)) / 3,
    linear(0.0, 1.0, 5).then(cosine(1.0, 20), at=5).then(noam(8, 0), at=40),
    cosine(0.1, 20).repeat(every=20).clamp(min=0.01, max=0.05),
    noam(64, 10).shift(5).shift(-2),
    -(constant(1.0) - linear(0.0, 1.0, 4)).clamp(max=torch.tensor(0.5, dtype=torch.float64)),
]
STEPS = torch.tensor([0, 1, 5, 19, 20, 21, 100, 3999, 2**53 - 1, 2**62])

drawn = settings(max_examples=25, deadline=None)


# Laws


@pytest.mark.parametrize("one", SOME + ALGEBRA, ids=repr)
def test_laws_of_each(one: Schedule) -> None:
    check_schedule(one)


@drawn
@given(schedules())
def test_laws_of_drawn_expressions(one: Schedule) -> None:
    check_schedule(one)


def test_every_schedule_is_drawn() -> None:
    assert set(BASIC) == {name for name in ps.__all__ if name in CONSTRUCTORS}


@pytest.mark.compiler
def test_compiled_once_for_all_steps_and_equal_to_eager() -> None:
    everything = SOME + ALGEBRA
    compiled = torch.compile(lambda step: torch.stack([one(step) for one in everything]), fullgraph=True)
    compiled(STEPS[0])
    with torch.compiler.set_stance("fail_on_recompile"):
        found = torch.stack([compiled(step) for step in STEPS], dim=1)
    for one, values in zip(everything, found, strict=True):
        torch.testing.assert_close(
            values, one(STEPS), rtol=1e-12, atol=1e-12 * 0.1, msg=lambda m, one=one: f"{one}: {m}"
        )


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


# The laws catch what they should


@schedule
def mutant_float32(step: Tensor, peak: float, length: int) -> Tensor:
    return (peak / (1 + step.float() / length)).double()


@schedule
def mutant_default_dtype(step: Tensor, peak: float) -> Tensor:
    return step * 0 + torch.tensor(peak)


@schedule
def mutant_reads_values(step: Tensor, peak: float) -> Tensor:
    return step * 0 + (peak if step.sum() < 10 else 0.5 * peak)


@schedule
def mutant_single_where(step: Tensor, peak: float, warmup_steps: int) -> Tensor:
    return torch.where(step < warmup_steps, peak * step / warmup_steps, peak * step**-0.5)


@schedule
def mutant_unbounded(step: Tensor, rate: float) -> Tensor:
    return torch.exp(rate * step)


@schedule
def mutant_detached(step: Tensor, peak: float) -> Tensor:
    return step * 0 + torch.as_tensor(peak, dtype=step.dtype).detach()


@schedule
def mutant_writes(step: Tensor, peak: float) -> Tensor:
    return step.add_(1) * 0 + peak


CALLS = iter(range(10**9))


@schedule
def mutant_impure(step: Tensor, peak: float) -> Tensor:
    return step * 0 + peak * next(CALLS)


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        (mutant_float32(0.1, 100), "differentiable"),
        (mutant_default_dtype(0.1), "pure"),
        (mutant_reads_values(0.1), "vectorised"),
        (mutant_single_where(0.1, 0), "total"),
        (mutant_single_where(0.1, 4), "differentiable"),
        (mutant_unbounded(0.1), "total"),
        (mutant_detached(0.1), "differentiable"),
        (mutant_impure(0.1), "pure"),
        (mutant_writes(0.1), "pure"),
    ],
    ids=repr,
)
def test_laws_catch(mutant: Schedule, law: str) -> None:
    with pytest.raises(LawViolation, match=f"breaks the law '{law}'"):
        check_schedule(mutant)


def test_laws_catch_a_bound_that_is_passed() -> None:
    check_schedule(linear(1.0, 0.1, 9), bounds=(0.1, 1.0))
    with pytest.raises(LawViolation, match=r"at step 9 it is 0.1, not between 0.2 and 1.0"):
        check_schedule(linear(1.0, 0.1, 9), bounds=(0.2, 1.0))


# Endpoints, and the numbers


def test_endpoints_are_exact() -> None:
    for peak, floor in ((0.1, 0.03), (3e-3, 1e-5), (1 / 3, 1 / 7)):
        one = warmup_cosine(peak, 10, 50, initial=floor / 3, floor=floor)
        assert [one(t).item() for t in (0, 10, 50, 51, 2**62)] == [floor / 3, peak, floor, floor, floor]
        assert [linear(peak, floor, 7)(t).item() for t in (0, 7, 8)] == [peak, floor, floor]
        assert [cosine(peak, 7, floor=floor)(t).item() for t in (0, 7, 8)] == [peak, floor, floor]


def test_a_step_is_not_lost_below_2_to_the_53() -> None:
    assert linear(0, 2**53, 2**53)(2**53 - 1).item() == 2**53 - 1
    assert linear(0, 10, 10).repeat(every=10)(2**53 - 1).item() == (2**53 - 1) % 10


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float64])
def test_steps_of_every_dtype_and_shape(dtype: torch.dtype) -> None:
    steps = torch.arange(12).to(dtype)
    values = torch.stack([cosine(1.0, 10)(t) for t in range(12)])
    torch.testing.assert_close(cosine(1.0, 10)(steps.reshape(3, 4)), values.reshape(3, 4), rtol=1e-12, atol=1e-16)
    assert cosine(1.0, 10)(steps[:0]).shape == (0,)


def test_numpy_steps_and_hyperparameters() -> None:
    one = linear(np.float64(0.0), np.float32(0.5), np.int64(10))
    assert one == linear(0.0, 0.5, 10)
    assert repr(one) == "linear(start=0.0, end=0.5, steps=10)"
    assert one(np.int64(5)).item() == 0.25
    torch.testing.assert_close(one(np.arange(20)), one(torch.arange(20)))
    assert np.float64(2) * one == 2.0 * one


def test_a_float32_hyperparameter_is_computed_with_in_float64() -> None:
    peak = torch.tensor(0.1)
    assert cosine(peak, 10, floor=0.01)(3).item() == cosine(peak.item(), 10, floor=0.01)(3).item()


# Hyperparameters as leaves


def test_gradients_and_vmap_over_hyperparameters() -> None:
    numbers = warmup_cosine(peak=0.5, warmup_steps=10, total_steps=50)
    tensors = pytree.tree_map(lambda number: torch.tensor(number, dtype=torch.float64), numbers)
    assert torch.func.grad(lambda one: one(5))(tensors).hyperparameters["peak"].item() == 0.5
    assert torch.func.grad(lambda peak: warmup_cosine(peak, 10, 50)(10))(torch.tensor(0.5)).item() == 1.0

    peaks = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    values = torch.vmap(lambda peak: numbers.replace(peak=peak)(torch.arange(60)))(peaks)
    for peak, row in zip(peaks, values, strict=True):
        torch.testing.assert_close(row, numbers.replace(peak=peak.item())(torch.arange(60)), rtol=1e-12, atol=1e-16)


def test_a_batch_of_schedules_is_one_schedule_under_vmap() -> None:
    each = [noam(d, w) for d, w in ((8, 0), (16, 5), (32, 100))]
    batch = pytree.tree_map(lambda *numbers: torch.tensor(numbers, dtype=torch.float64), *each)
    assert copy.deepcopy(batch) == pickle.loads(pickle.dumps(batch)) == batch
    values = torch.vmap(lambda one: one(7))(batch)
    torch.testing.assert_close(values, torch.stack([one(7) for one in each]), rtol=1e-12, atol=0)


def test_derivative_by_a_float_step() -> None:
    step = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(linear(0.0, 1.0, 10)(step), step)
    assert slope.item() == pytest.approx(0.1, rel=1e-15)
    (slope,) = torch.autograd.grad(constant(1.0)(step), step)
    assert slope.item() == 0.0


# Written, compared, kept


@pytest.mark.parametrize("one", SOME + ALGEBRA, ids=repr)
def test_copies_are_equal(one: Schedule) -> None:
    copies = [copy.deepcopy(one), pickle.loads(pickle.dumps(one)), one.replace()]
    copies += [eval(repr(one), {"torch": torch, **vars(ps)}), from_config(json.loads(json.dumps(one.to_config())))]
    assert all(other == one and hash(other) == hash(one) for other in copies)


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (cosine(0.1, 10), "cosine(peak=0.1, total_steps=10)"),
        (cosine(0.1, 10, floor=0.01), "cosine(peak=0.1, total_steps=10, floor=0.01)"),
        (2 * (constant(1) + 3) * constant(2), "2 * (constant(value=1) + 3) * constant(value=2)"),
        (constant(1) - (constant(2) - constant(3)), "constant(value=1) - (constant(value=2) - constant(value=3))"),
        (-constant(1) / 2, "-1.0 * constant(value=1) / 2"),
        (
            (constant(1) + 1).then(constant(2), at=3).shift(-1).clamp(min=0.5).repeat(every=4),
            "(constant(value=1) + 1).then(constant(value=2), at=3).shift(-1).clamp(min=0.5).repeat(every=4)",
        ),
        (constant(torch.tensor(0.5)), "constant(value=torch.tensor(0.5, dtype=torch.float32))"),
    ],
)
def test_repr(one: Schedule, text: str) -> None:
    assert repr(one) == text


def test_config_is_plain_and_nested() -> None:
    assert (0.5 * cosine(0.1, 10)).to_config() == {
        "schedule": "multiply",
        "left": 0.5,
        "right": {"schedule": "cosine", "peak": 0.1, "total_steps": 10, "floor": 0.0, "power": 1.0},
    }


def test_equality_tells_schedules_apart() -> None:
    different = [*SOME, *ALGEBRA, cosine(0.1, 21), constant(0.5), constant(torch.tensor(0.5)), "cosine"]
    for i, left in enumerate(different):
        assert all((left == right) is (i == j) for j, right in enumerate(different))
    assert len(set(SOME + ALGEBRA)) == len(SOME + ALGEBRA)


def test_a_schedule_never_changes() -> None:
    for name in ("_values", "peak"):
        with pytest.raises(AttributeError, match="cannot assign"):
            setattr(cosine(0.1, 10), name, 1.0)


@schedule
def three_kinds(
    step: Tensor,
    rates: tuple[float, ...],
    inner: Schedule,
    *,
    mode: Literal["up", "down"] = "up",
    twice: bool = False,
    extra: float | None = None,
) -> Tensor:
    """Use what a formula may take: a tuple, a schedule, and options."""
    value = inner(step) * sum(rates) * (1 if mode == "up" else -1) * (2 if twice else 1)
    return value if extra is None else value + extra


def test_a_formula_may_take_tuples_schedules_and_options() -> None:
    one = three_kinds([1.0, 2.0], linear(0.0, 1.0, 10), mode="down", twice=True)
    assert one(5).item() == -3.0
    assert repr(one).startswith("three_kinds(rates=(1.0, 2.0), inner=linear(")
    assert len(pytree.tree_leaves(one)) == 5
    for other in (one, one.replace(mode="up"), one.replace(extra=0.5)):
        check_schedule(other)
    with pytest.raises(TypeError, match=r"mode must be one of 'up', 'down', got 'sideways'"):
        one.replace(mode="sideways")
    with pytest.raises(TypeError, match=r"rates must be a tuple whose elements are each a finite number"):
        one.replace(rates=0.1)


def test_a_constructor_shows_its_own_signature_and_formula() -> None:
    assert list(ps.cosine.__signature__.parameters) == ["peak", "total_steps", "floor", "power"]
    assert "floor" in (ps.cosine.__doc__ or "")
    half = ps.cosine.__wrapped__(torch.tensor(5.0, dtype=torch.float64), 1.0, 10)
    assert half.item() == pytest.approx(0.5, rel=1e-15)


# Algebra


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
@given(schedules(max_leaves=2), schedules(max_leaves=2), st.integers(0, 30))
def test_joins_are_true_joins(first: Schedule, second: Schedule, at: int) -> None:
    assert_joined(first.then(second, at=at), first, second, at)


@drawn
@given(schedules(max_leaves=2), schedules(max_leaves=2), st.integers(1, 30), st.integers(0, 30))
def test_algebra_identities(a: Schedule, b: Schedule, n: int, m: int) -> None:
    steps = torch.arange(80)
    same: list[tuple[Schedule, Schedule]] = [
        (a * b, b * a),
        (a + b, b + a),
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
    ]
    for left, right in same:
        torch.testing.assert_close(
            left(steps), right(steps), rtol=1e-15, atol=0, msg=lambda m, pair=(left, right): f"{pair}: {m}"
        )
    assert torch.equal((a * b)(steps), a(steps) * b(steps))
    assert torch.equal((a - b)(steps), a(steps) - b(steps))
    assert torch.equal(a.clamp(min=0.1, max=0.3)(steps), a(steps).clamp(0.1, 0.3))


@drawn
@given(BASIC["warmup_cosine"])
def test_warmup_cosine_is_a_join(one: Schedule) -> None:
    peak, warmup, total, initial, floor, power = one.hyperparameters.values()
    parts = cosine(peak, total - warmup, floor=floor, power=power)
    if warmup > 0:
        parts = linear(initial, peak, warmup).then(parts, at=warmup)
    steps = torch.arange(min(total, 1000) + 10)
    torch.testing.assert_close(one(steps), parts(steps), rtol=1e-12, atol=1e-15)


# Parity with torch


def torch_rates(make: Callable[[torch.optim.Optimizer], Any], steps: int, base: float = BASE) -> Tensor:
    """The rates that a torch scheduler gives to its optimizer at steps 0 to ``steps``."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)


def transformers_cosine(warmup: int, total: int) -> Callable[[int], float]:
    """The factor of transformers' ``get_cosine_schedule_with_warmup``, from its documentation's formula."""

    def factor(t: int) -> float:
        if t < warmup:
            return t / max(1, warmup)
        return 0.5 * (1 + math.cos(math.pi * (t - warmup) / max(1, total - warmup)))

    return factor


lr = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("one", "make", "base"),
    [
        (
            linear(BASE / 3, BASE, 50),
            lambda o: lr.LinearLR(o, start_factor=1 / 3, end_factor=1.0, total_iters=50),
            BASE,
        ),
        (
            linear(BASE, BASE / 7, 13),
            lambda o: lr.LinearLR(o, start_factor=1.0, end_factor=1 / 7, total_iters=13),
            BASE,
        ),
        (constant(BASE), lambda o: lr.LambdaLR(o, lambda t: 1.0), BASE),
        (cosine(BASE, 120), lambda o: lr.CosineAnnealingLR(o, T_max=120), BASE),
        (cosine(BASE, 300, floor=0.01), lambda o: lr.CosineAnnealingLR(o, T_max=300, eta_min=0.01), BASE),
        (warmup_cosine(BASE, 20, 120), lambda o: lr.LambdaLR(o, transformers_cosine(20, 120)), BASE),
        (warmup_cosine(BASE, 0, 120), lambda o: lr.LambdaLR(o, transformers_cosine(0, 120)), BASE),
        (
            noam(512, 40, factor=2.0),
            lambda o: lr.LambdaLR(o, lambda t: 512**-0.5 * min((t + 1) ** -0.5, (t + 1) * 40**-1.5)),
            2.0,
        ),
    ],
    ids=lambda value: repr(value) if isinstance(value, Schedule) else "",
)
def test_equal_to_torch(one: Schedule, make: Callable[[torch.optim.Optimizer], Any], base: float) -> None:
    steps = one.hyperparameters.get("total_steps", 400)
    found, right = one(torch.arange(steps + 1)), torch_rates(make, steps, base)
    assert ((found - right).abs().max() / right.abs().max()).item() < 1e-12


def test_torch_cosine_rises_again_where_ours_holds() -> None:
    rates = torch_rates(lambda o: lr.CosineAnnealingLR(o, T_max=50), 100)
    assert rates[50] < 1e-15 < BASE / 2 < rates[100]
    assert cosine(BASE, 50)(100).item() == 0.0


# Bad input


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (-1, ValueError, "step must be an int of at least 0, got -1"),
        (True, TypeError, "step must be an int of at least 0, got True of type bool"),
        (1.5, TypeError, "step must be an int of at least 0, got 1.5 of type float"),
        (2j, TypeError, "step must be an int of at least 0, got 2j of type complex"),
        ("3", TypeError, "step must be an int of at least 0, got '3' of type str"),
        ([1, 2], TypeError, "step must be an int of at least 0, got [1, 2] of type list"),
        (torch.tensor([4, -2]), ValueError, "step must be at least 0 everywhere, got -2"),
        (torch.tensor(-0.5).double(), ValueError, "step must be at least 0 everywhere, got -0.5"),
        (torch.tensor(math.nan).double(), ValueError, "step must be at least 0 everywhere, got nan"),
        (
            torch.tensor(1.0),
            TypeError,
            "step must be a tensor of an integer dtype or of torch.float64, got one of torch.fl",
        ),
        (
            torch.tensor(True),
            TypeError,
            "step must be a tensor of an integer dtype or of torch.float64, got one of torch.b",
        ),
        (
            torch.tensor(1j),
            TypeError,
            "step must be a tensor of an integer dtype or of torch.float64, got one of torch.c",
        ),
        (np.arange(3.0, dtype=np.float32), TypeError, "(which loses integers past 2**24)"),
    ],
    ids=repr,
)
def test_bad_steps(step: Any, error: type[Exception], message: str) -> None:
    for one in (cosine(0.1, 10), cosine(0.1, 10).then(constant(0.0), at=3)):
        with pytest.raises(error) as caught:
            one(step)
        assert message in str(caught.value)


C = constant(1.0)
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: constant(math.nan), ValueError, "value must be a finite number, got nan"),
    (lambda: constant(math.inf), ValueError, "value must be a finite number, got inf"),
    (lambda: constant("0.1"), TypeError, "value must be a finite number or a 0-d tensor, got '0.1' of type str"),
    (lambda: constant(True), TypeError, "value must be a finite number or a 0-d tensor, got True of type bool"),
    (lambda: constant(1j), TypeError, "value must be a finite number or a 0-d tensor, got 1j of type complex"),
    (lambda: constant(C), TypeError, "value must be a finite number or a 0-d tensor, got constant(value=1.0)"),
    (lambda: constant(torch.ones(3)), ValueError, "value must be a 0-d tensor, got one of shape (3,)"),
    (
        lambda: constant(torch.tensor(1j)),
        TypeError,
        "value must be a tensor of real numbers, got one of torch.complex64",
    ),
    (lambda: constant(), TypeError, "constant: missing a required argument: 'value'"),
    (lambda: cosine(0.1, 10, flor=0.0), TypeError, "cosine has no hyperparameter 'flor' (did you mean 'floor'?)"),
    (lambda: cosine(0.1, 10, 0.0), TypeError, "cosine: too many positional arguments; its hyperparameters are 'peak'"),
    (lambda: linear(0.0, 1.0, 0), ValueError, "steps must be at least 1, got 0"),
    (lambda: linear(0.0, 1.0, -5), ValueError, "steps must be at least 1, got -5"),
    (lambda: linear(0.0, 1.0, 2.5), TypeError, "steps must be an int, got 2.5 of type float"),
    (lambda: cosine(0.1, 0), ValueError, "total_steps must be at least 1, got 0"),
    (lambda: cosine(0.1, 10, floor=0.2), ValueError, "floor must be at most peak (0.1), got 0.2"),
    (lambda: cosine(-0.1, 10), ValueError, "floor must be at most peak (-0.1), got 0.0"),
    (lambda: cosine(0.1, 10, power=0), ValueError, "power must be above 0, got 0"),
    (lambda: warmup_cosine(0.1, -1, 10), ValueError, "warmup_steps must be at least 0, got -1"),
    (lambda: warmup_cosine(0.1, 10, 10), ValueError, "warmup_steps must be below total_steps (10), got 10"),
    (lambda: warmup_cosine(0.1, 20, 10), ValueError, "warmup_steps must be below total_steps (10), got 20"),
    (lambda: warmup_cosine(0.1, 1, 10, initial=0.2), ValueError, "initial must be at most peak (0.1), got 0.2"),
    (lambda: warmup_cosine(0.1, 1, 10, floor=0.2), ValueError, "floor must be at most peak (0.1), got 0.2"),
    (lambda: warmup_cosine(0.1, 1, 10).replace(peak=math.nan), ValueError, "peak must be a finite number, got nan"),
    (lambda: noam(0, 10), ValueError, "d_model must be at least 1, got 0"),
    (lambda: noam(8, -1), ValueError, "warmup_steps must be at least 0, got -1"),
    (lambda: noam(8, 1, factor=-1.0), ValueError, "factor must be at least 0, got -1.0"),
    (lambda: C * "a", TypeError, "right must be a schedule or a finite number or a 0-d tensor, got 'a' of type str"),
    (lambda: C + math.nan, ValueError, "right must be a finite number, got nan"),
    (lambda: C / 0, ValueError, "right must be a number other than 0 to divide a schedule by, got 0"),
    (lambda: C / C, TypeError, "right must be a finite number or a 0-d tensor, got constant(value=1.0)"),
    (lambda: 1 / C, TypeError, "unsupported operand"),
    (lambda: C.then(0.1, at=3), TypeError, "second must be a schedule, got 0.1 of type float"),
    (lambda: C.then(C, at=-1), ValueError, "at must be at least 0, got -1"),
    (lambda: C.then(C, at=1.5), TypeError, "at must be an int, got 1.5 of type float"),
    (lambda: C.shift(0.5), TypeError, "by must be an int, got 0.5 of type float"),
    (lambda: C.repeat(every=0), ValueError, "every must be above 0, got 0"),
    (lambda: C.clamp(), ValueError, "min or max must be a number, got None for both"),
    (lambda: C.clamp(min=2, max=1), ValueError, "min must be at most max (1), got 2"),
    (lambda: C.plot(0), ValueError, "steps must be an int of at least 1, got 0"),
    (lambda: from_config([1]), TypeError, "config must be a dict, as to_config returns, got [1] of type list"),
    (
        lambda: from_config({"peak": 1}),
        ValueError,
        "config must name its constructor under 'schedule', got the keys 'peak'",
    ),
    (lambda: from_config({"schedule": "cosin"}), ValueError, "got 'cosin' (did you mean 'cosine'"),
    (
        lambda: from_config({"schedule": "multiply", "left": 1, "right": 2}),
        TypeError,
        "left or right must be a schedule",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_hyperparameters(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_bad_formulas() -> None:
    @schedule
    def returns_a_number(step: Tensor, peak: float) -> Any:
        return peak

    with pytest.raises(TypeError, match=r"returns_a_number must return a tensor like step: .* got 0.1"):
        returns_a_number(0.1)(3)
    with pytest.raises(ValueError, match=r"must have another name than 'schedule'"):
        schedule(lambda step, schedule: step)

    with pytest.raises(ValueError, match=r"must be a function with a name, .* got <lambda>"):
        schedule(lambda step: step)

    def cosine(step: Tensor) -> Tensor:
        return step

    with pytest.raises(ValueError, match=r"a name of its own, got 'cosine', which purestep.schedules.basic.cosine has"):
        schedule(cosine)
    with pytest.raises(TypeError, match=r"name must be annotated with float, int, .* got <class 'str'>"):

        @schedule
        def named(step: Tensor, name: str) -> Tensor:
            return step


# Drawn and documented


def test_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = cosine(1.0, 10).plot(20)
    assert linear(0.0, 1.0, 5).plot(10, ax=axes) is axes
    steps, values = axes.lines[0].get_data()
    assert list(steps) == list(range(21))
    torch.testing.assert_close(torch.tensor(values), cosine(1.0, 10)(torch.arange(21)))
    matplotlib.pyplot.close(axes.figure)

    real = builtins.__import__

    def without_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        cosine(1.0, 10).plot(20)


TABLE = torch.arange(100, dtype=torch.float64)


@schedule
def table_of_hundred(step: Tensor) -> Tensor:
    return TABLE[step.long()]


@schedule
def mutant_looks_at_its_neighbours(step: Tensor) -> Tensor:
    return step - step.min()


def test_a_step_alone_asks_for_no_other():
    """Steps are looked up in blocks, and a table may end within one."""
    assert [table_of_hundred()(step).item() for step in (0, 63, 64, 99)] == [0.0, 63.0, 64.0, 99.0]


def test_a_formula_that_looks_at_its_neighbours_is_asked_step_by_step():
    schedule = mutant_looks_at_its_neighbours()
    assert [schedule(step).item() for step in (0, 1, 2, 70)] == [0.0, 0.0, 0.0, 0.0]


def test_the_default_device_does_not_matter():
    with torch.device("meta"):
        assert linear(start=1.0, end=0.0, steps=10)(5).device.type == "cpu"
