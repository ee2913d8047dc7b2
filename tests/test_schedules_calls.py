"""What a schedule is called with and built of: steps, hyperparameters, functions; how it is written and drawn."""

from __future__ import annotations

import builtins
import copy
import json
import math
import pickle
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import purestep.schedules as ps
from _schedules import ALGEBRA, SOME, half_life
from purestep.laws.schedules import check_schedule
from purestep.schedules import Schedule, constant, cosine, from_config, linear, noam, schedule, warmup_cosine

# Steps and numbers


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


# Functions as hyperparameters


def test_a_function_is_written_by_its_name() -> None:
    one = 0.1 * ps.function(half_life)
    assert repr(one) == "0.1 * function(f='_schedules:half_life')"
    assert one.to_config()["right"] == {"schedule": "function", "f": "_schedules:half_life"}
    assert from_config(one.to_config()) == one == 0.1 * ps.function("_schedules:half_life")
    assert one(100).item() == 0.05


def test_a_lambda_works_and_says_where_it_stands() -> None:
    one = ps.function(lambda step: step / 2)
    assert one(3).item() == 1.5
    assert one == one.replace()
    assert one != ps.function(lambda step: step / 2)
    assert repr(one).startswith(
        f"function(f=<test_a_lambda_works_and_says_where_it_stands.<locals>.lambda at {__file__}:"
    )
    with pytest.raises(
        ValueError, match=r"a config can only hold a function that a module has at its top, .*lambda at"
    ):
        one.to_config()


def test_a_function_of_a_module_that_is_not_imported_is_not_looked_for() -> None:
    for name, message in [
        ("half_life", "f must be a function or its name, 'package.module:name', got 'half_life'"),
        ("antigravity:fly", "f must name a function of a module that is imported, got 'antigravity:fly'"),
        ("_schedules:nothing", "f must name a function, got '_schedules:nothing', which is None"),
        ("_schedules:SOME", "f must name a function, got '_schedules:SOME'"),
    ]:
        with pytest.raises(ValueError) as caught:
            ps.function(name)
        assert message in str(caught.value)


@schedule
def mean_of(step: Tensor, *parts: Schedule, weight: float = 1.0) -> Tensor:
    return weight * sum(part(step) for part in parts) / len(parts)


def test_a_formula_may_take_any_number_of_parts() -> None:
    one = mean_of(constant(1.0), linear(0.0, 1.0, 10), weight=0.5)
    assert repr(one) == "mean_of(constant(value=1.0), linear(start=0.0, end=1.0, steps=10), weight=0.5)"
    assert one(10).item() == 0.5
    assert one.replace(parts=(constant(3.0),))(0).item() == 1.5
    check_schedule(one)


def test_a_constructor_shows_its_own_signature_and_formula() -> None:
    assert list(ps.cosine.__signature__.parameters) == ["peak", "total_steps", "floor", "power"]
    assert "floor" in (ps.cosine.__doc__ or "")
    half = ps.cosine.__wrapped__(torch.tensor(5.0, dtype=torch.float64), 1.0, 10)
    assert half.item() == pytest.approx(0.5, rel=1e-15)


# Bad steps and formulas


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

    with pytest.raises(TypeError, match=r"pair must be annotated with .* got tuple\[float, float\]"):

        @schedule
        def of_two(step: Tensor, pair: tuple[float, float]) -> Tensor:
            return step


@pytest.mark.parametrize(
    "formula",
    [
        lambda: torch.ones(()),
        lambda *step: step[0],
        lambda step, **named: step,
        lambda step, peak, *more: step,
        lambda step, *more, **named: step,
        lambda step, peak, /: step,
    ],
)
def test_a_formula_whose_hyperparameters_have_no_names(formula: Any) -> None:
    formula.__name__ = "nameless"
    with pytest.raises(TypeError, match=r"a formula must take the step, and then .* got nameless\("):
        schedule(formula)


@schedule
def of_a_tensor(step: Tensor, tensor: float) -> Tensor:
    return step * tensor


def test_a_hyperparameter_may_be_named_tensor() -> None:
    one = 2 * of_a_tensor(torch.tensor(0.5))
    assert from_config(json.loads(json.dumps(one.to_config()))) == one


# Drawn, and looked up in blocks


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


def test_what_is_asked_of_a_schedule_does_not_change_what_is_refused():
    """A schedule whose steps are asked for one by one begins where it did."""
    inner = mutant_looks_at_its_neighbours()
    for step in (0, 1):
        inner(step)
        with pytest.raises(ValueError, match="inner must begin above 0"):
            ps.warmup(inner, 5, initial=0.1, kind="exponential")


def test_the_default_device_does_not_matter():
    with torch.device("meta"):
        assert linear(start=1.0, end=0.0, steps=10)(5).device.type == "cpu"
