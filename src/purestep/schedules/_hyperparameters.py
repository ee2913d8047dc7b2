"""What a hyperparameter may be: read from its annotation, and checked when a schedule is built.

Only Python numbers have their values checked. A tensor may be traced, batched or on a device, and passes as it is.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from purestep._checks import integer, number

Number: TypeAlias = float | Tensor
Steps: TypeAlias = int | Tensor


@dataclass(frozen=True)
class Hyperparameter:
    """One parameter of a formula: its name, its default, and what its annotation lets it be.

    ``float`` takes finite numbers and ``int`` ints, both also 0-d tensors; ``Schedule`` takes schedules;
    ``tuple[X, ...]`` a tuple or list of any length; ``Literal``, ``bool`` and ``None`` take those values. A parameter
    without an annotation is a ``float``.
    """

    name: str
    default: Any
    keyword_only: bool
    number: type | None  # float or int
    schedule: type | None  # the class of schedules
    element: Hyperparameter | None  # of a tuple
    options: tuple[Any, ...]  # None, True, False, and the values of a Literal

    @staticmethod
    def read(parameter: inspect.Parameter, schedule: type) -> Hyperparameter:
        """Read one parameter, whose annotation is resolved; ``schedule`` is the class of schedules."""
        if parameter.name == "schedule":
            raise ValueError("a hyperparameter must have another name than 'schedule', the key of a config's own name")
        members = _members(parameter.annotation)
        element = None
        options: list[Any] = []
        for member in members:
            origin = typing.get_origin(member)
            if origin in (tuple, list, Sequence):
                element = Hyperparameter.read(parameter.replace(annotation=typing.get_args(member)[0]), schedule)
            elif origin is typing.Literal:
                options += typing.get_args(member)
            elif member is bool or member is types.NoneType:
                options += (True, False) if member is bool else (None,)
            elif member not in (float, int, Tensor, schedule):
                raise TypeError(
                    f"{parameter.name} must be annotated with float, int, Tensor, Schedule, bool, None, a Literal, "
                    f"a tuple of these, or a union of these; got {member!r}"
                )
        return Hyperparameter(
            name=parameter.name,
            default=parameter.default,
            keyword_only=parameter.kind is inspect.Parameter.KEYWORD_ONLY,
            number=float if float in members else int if int in members else None,
            schedule=schedule if schedule in members else None,
            element=element,
            options=tuple(options),
        )

    def accept(self, value: Any) -> Any:
        """Return ``value`` as it will be kept, or raise ``TypeError`` or ``ValueError`` naming it."""
        if self.is_option(value) or (self.schedule is not None and isinstance(value, self.schedule)):
            return value
        if self.number is not None:
            if isinstance(value, Tensor):
                return _accept_tensor(self.name, value)
            if type(value) not in (int, float) and hasattr(value, "__array__") and getattr(value, "ndim", None) == 0:
                value = value.item()  # a NumPy scalar, whose repr could not be evaluated back
            if isinstance(value, int | float) and not isinstance(value, bool):
                return number(self.name, value) if self.number is float else integer(self.name, value)
        if self.element is not None and isinstance(value, tuple | list):
            return tuple(self.element.accept(v) for v in value)
        raise TypeError(f"{self.name} must be {self._right()}, got {value!r} of type {type(value).__name__}")

    def is_option(self, value: Any) -> bool:
        """Whether ``value`` is one of the fixed choices, which are no leaves of the pytree."""
        return any(value is o or (type(value) is type(o) and value == o) for o in self.options)

    def is_default(self, value: Any) -> bool:
        """Whether ``value`` need not be written, as it is what the constructor takes without it."""
        return type(value) is type(self.default) and not isinstance(value, Tensor) and bool(value == self.default)

    def _right(self) -> str:
        parts = ["a schedule"] if self.schedule is not None else []
        if self.number is not None:
            parts.append(f"{'a finite number' if self.number is float else 'an int'} or a 0-d tensor")
        if self.element is not None:
            parts.append(f"a tuple whose elements are each {self.element._right()}")
        if self.options:
            parts.append(("one of " if len(self.options) > 1 else "") + ", ".join(map(repr, self.options)))
        return " or ".join(parts)


def at_least(name: str, value: Number, minimum: float) -> None:
    """Raise unless the number ``value`` is at least ``minimum``."""
    if not isinstance(value, Tensor) and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")


def above(name: str, value: Number, bound: float) -> None:
    """Raise unless the number ``value`` is above ``bound``."""
    if not isinstance(value, Tensor) and value <= bound:
        raise ValueError(f"{name} must be above {bound}, got {value!r}")


def ordered(name: str, value: Number, larger_name: str, larger: Number, *, strictly: bool = False) -> None:
    """Raise unless the number ``value`` is at most, or ``strictly`` below, the number ``larger``."""
    if isinstance(value, Tensor) or isinstance(larger, Tensor):
        return
    if value > larger or (strictly and value == larger):
        right = "below" if strictly else "at most"
        raise ValueError(f"{name} must be {right} {larger_name} ({larger!r}), got {value!r}")


def _members(hint: Any) -> tuple[Any, ...]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return tuple(inner for member in typing.get_args(hint) for inner in _members(member))
    return (hint,)


def _accept_tensor(name: str, value: Tensor) -> Tensor:
    if value.ndim > 0:
        raise ValueError(
            f"{name} must be a 0-d tensor, got one of shape {tuple(value.shape)}; for many values at once, vmap"
        )
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be a tensor of real numbers, got one of {value.dtype}")
    return value
