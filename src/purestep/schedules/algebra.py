"""Schedules of schedules: what the operators and methods of ``Schedule`` build."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from purestep.schedules._curves import like, periods
from purestep.schedules._decorator import define
from purestep.schedules._hyperparameters import (
    Number,
    Steps,
    above,
    at_least,
    fraction,
    increasing,
    one_more,
    ordered,
)
from purestep.schedules._schedule import Schedule

Operand: TypeAlias = Schedule | float | Tensor


def _at(operand: Operand, step: Tensor) -> Any:
    return operand(step) if isinstance(operand, Schedule) else operand


def _check_operands(left: Operand, right: Operand) -> None:
    if not isinstance(left, Schedule) and not isinstance(right, Schedule):
        raise TypeError(f"left or right must be a schedule, got {left!r} and {right!r}")


def _check_divisor(left: Schedule, right: Number) -> None:
    if not isinstance(right, Tensor) and right == 0:
        raise ValueError(f"right must be a number other than 0 to divide a schedule by, got {right!r}")


def _check_clamp(inner: Schedule, min: Number | None, max: Number | None) -> None:
    if min is None and max is None:
        raise ValueError("min or max must be a number, got None for both")
    if min is not None and max is not None:
        ordered("min", min, "max", max)


def _check_repeat(inner: Schedule, every: Steps, decay: Number) -> None:
    above("every", every, 0)
    fraction("decay", decay, maximum=1)


def _check_join(schedules: Sequence[Schedule], at: Sequence[Steps]) -> None:
    one_more("schedules", schedules, "at", at)
    if at:
        increasing("at", at, minimum=0)


def _check_several(schedules: tuple[Operand, ...]) -> None:
    if not any(isinstance(operand, Schedule) for operand in schedules):
        raise TypeError(f"schedules must hold at least one schedule, got {schedules!r}")


@define(check=_check_operands, style="+")
def add(step: Tensor, left: Operand, right: Operand) -> Tensor:
    """``left(step) + right(step)``."""
    return _at(left, step) + _at(right, step)


@define(check=_check_operands, style="-")
def subtract(step: Tensor, left: Operand, right: Operand) -> Tensor:
    """``left(step) - right(step)``."""
    return _at(left, step) - _at(right, step)


@define(check=_check_operands, style="*")
def multiply(step: Tensor, left: Operand, right: Operand) -> Tensor:
    """``left(step) * right(step)``."""
    return _at(left, step) * _at(right, step)


@define(check=_check_divisor, style="/")
def divide(step: Tensor, left: Schedule, right: Number) -> Tensor:
    """``left(step) / right``; not by a schedule, which may pass through 0."""
    return left(step) / right


@define(check=lambda first, second, at: at_least("at", at, 0), style="method")
def then(step: Tensor, first: Schedule, second: Schedule, *, at: Steps) -> Tensor:
    """``first(step)`` before step ``at``, and ``second(step - at)`` from there."""
    return torch.where(step < at, first(step), second(torch.clamp(step - at, min=0.0)))


@define(style="method")
def shift(step: Tensor, inner: Schedule, by: Steps) -> Tensor:
    """``inner(max(step - by, 0))``."""
    return inner(torch.clamp(step - by, min=0.0))


@define(check=_check_clamp, style="method")
def clamp(step: Tensor, inner: Schedule, *, min: Number | None = None, max: Number | None = None) -> Tensor:
    """``inner(step)`` held between ``min`` and ``max``; on a bound itself, the derivative is ``inner``'s."""
    value = inner(step)
    # One at a time, as a number and a tensor may not be mixed; and not by `torch.where`, which under `torch.compile`
    # keeps the number of another schedule that was compiled through the same code.
    value = value if min is None else torch.clamp(value, min=min)
    return value if max is None else torch.clamp(value, max=max)


@define(check=_check_repeat, style="method")
def repeat(step: Tensor, inner: Schedule, *, every: Steps, decay: Number = 1.0) -> Tensor:
    """``inner(step mod every)``, times ``decay`` for each time that it was over; the remainder is exact."""
    value = inner(torch.remainder(step, every))
    return value * decay ** periods(step, every) if isinstance(decay, Tensor) or decay != 1 else value


@define(check=_check_join)
def join(step: Tensor, schedules: Sequence[Schedule], *, at: Sequence[Steps]) -> Tensor:
    r"""One schedule after the other: each begins, on its own step 0, at the step of ``at`` where the one before ends.

    .. math:: s(t) = s_i(t - a_i), \qquad a_i \le t < a_{i+1},\ a_0 = 0

    It is ``schedules[0].then(schedules[1], at=at[0]).then(schedules[2], at=at[1])``, and so on. There is one schedule
    more than steps in ``at``, which increase.

    Equivalents: ``optax.join_schedules(schedules, boundaries)``. Of torch's ``SequentialLR`` it is what is meant: that
    one has its parts write into one optimizer, where what a part does depends on those before it.
    """
    value = schedules[0](step)
    for start, following in zip(at, schedules[1:], strict=True):
        value = torch.where(step < start, value, following(torch.clamp(step - start, min=0.0)))
    return value


@define(check=_check_several)
def maximum(step: Tensor, *schedules: Operand) -> Tensor:
    r"""The largest of the values: ``maximum(a, b, ...)``, of schedules and numbers.

    .. math:: s(t) = \max_i s_i(t)

    Where two are equal, the derivative is half of each one's.
    """
    return functools.reduce(torch.maximum, [like(step, _at(operand, step)) for operand in schedules])


@define(check=_check_several)
def minimum(step: Tensor, *schedules: Operand) -> Tensor:
    r"""The smallest of the values: ``minimum(a, b, ...)``, of schedules and numbers.

    .. math:: s(t) = \min_i s_i(t)

    Where two are equal, the derivative is half of each one's.
    """
    return functools.reduce(torch.minimum, [like(step, _at(operand, step)) for operand in schedules])
