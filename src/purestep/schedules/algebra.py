"""Schedules of schedules: what the operators and methods of ``Schedule`` build."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from purestep.schedules._decorator import define
from purestep.schedules._hyperparameters import Number, Steps, above, at_least, ordered
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


@define(check=lambda inner, every: above("every", every, 0), style="method")
def repeat(step: Tensor, inner: Schedule, *, every: Steps) -> Tensor:
    """``inner(step mod every)``; the remainder is exact."""
    return inner(torch.remainder(step, every))
