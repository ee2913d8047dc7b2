"""What a hyperparameter may be: read from its annotation, and checked when a schedule is built.

Only Python numbers have their values checked. A tensor may be traced, batched or on a device, and passes as it is.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from purestep._checks import integer, number
from purestep.schedules._functions import function_named

Number: TypeAlias = float | Tensor
Steps: TypeAlias = int | Tensor


@dataclass(frozen=True)
class Hyperparameter:
    """One parameter of a formula: its name, its default, and what its annotation lets it be.

    ``float`` takes finite numbers and ``int`` ints, both also 0-d tensors; ``Schedule`` takes schedules;
    ``tuple[X, ...]`` a tuple or list of any length, as does a parameter ``*xs: X``; ``Literal``, ``bool`` and ``None``
    take those values; ``Callable`` takes a function, or its name. A parameter without an annotation is a ``float``.
    """

    name: str
    default: Any
    keyword_only: bool
    number: type | None  # float or int
    schedule: type | None  # the class of schedules
    element: Hyperparameter | None  # of a tuple
    function: bool
    options: tuple[Any, ...]  # None, True, False, and the values of a Literal

    @staticmethod
    def read(parameter: inspect.Parameter, schedule: type) -> Hyperparameter:
        """Read one parameter, whose annotation is resolved; ``schedule`` is the class of schedules."""
        if parameter.name == "schedule":
            raise ValueError("a hyperparameter must have another name than 'schedule', the key of a config's own name")
        members = _members(parameter.annotation)
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            members = (tuple[parameter.annotation, ...],)  # type: ignore[name-defined]
        element = None
        function = False
        options: list[Any] = []
        for member in members:
            origin, inner = typing.get_origin(member), typing.get_args(member)
            if inner and (origin in (list, Sequence) or (origin is tuple and inner[1:] == (...,))):
                single = parameter.replace(annotation=inner[0], kind=parameter.POSITIONAL_OR_KEYWORD)
                element = Hyperparameter.read(single, schedule)
            elif member is Callable or origin is Callable:
                function = True
            elif origin is typing.Literal:
                options += inner
            elif member is bool or member is types.NoneType:
                options += (True, False) if member is bool else (None,)
            elif member not in (float, int, Tensor, schedule):
                raise TypeError(
                    f"{parameter.name} must be annotated with float, int, Tensor, Schedule, bool, None, a Literal, "
                    f"a tuple[..., ...] of these, a Callable, or a union of these; got {member!r}"
                )
        return Hyperparameter(
            name=parameter.name,
            default=parameter.default,
            keyword_only=parameter.kind is inspect.Parameter.KEYWORD_ONLY,
            number=float if float in members else int if int in members else None,
            schedule=schedule if schedule in members else None,
            element=element,
            function=function,
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
        if self.function and isinstance(value, str):
            return function_named(self.name, value)
        if self.is_fixed(value):
            return value
        raise TypeError(f"{self.name} must be {self._right()}, got {value!r} of type {type(value).__name__}")

    def is_fixed(self, value: Any) -> bool:
        """Whether ``value`` is no leaf of the pytree: a fixed choice, or a function."""
        return self.is_option(value) or (self.function and callable(value) and not hasattr(value, "to_config"))

    def is_option(self, value: Any) -> bool:
        """Whether ``value`` is one of the fixed choices."""
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
        if self.function:
            parts.append("a function")
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


def fraction(name: str, value: Number, *, maximum: float | None = None, below: float | None = None) -> None:
    """Raise unless the number ``value`` is above 0, and at most ``maximum`` or below ``below``."""
    if isinstance(value, Tensor):
        return
    if value <= 0 or (maximum is not None and value > maximum) or (below is not None and value >= below):
        right = f"at most {maximum}" if below is None else f"below {below}"
        raise ValueError(f"{name} must be above 0 and {right}, got {value!r}")


def increasing(name: str, values: Sequence[Number], *, minimum: int = 1) -> None:
    """Raise unless the numbers among ``values`` increase from ``minimum`` on; there must be one at least."""
    if not values:
        raise ValueError(f"{name} must hold at least one step, got ()")
    before: Number = minimum - 1
    for n, value in enumerate(values):
        if isinstance(value, Tensor) or isinstance(before, Tensor):
            before = value
            continue
        if value <= before:
            right = f"at least {minimum}" if n == 0 else f"above the one before it ({before})"
            raise ValueError(f"{name}[{n}] must be {right}, got {value!r}")
        before = value


def one_more(name: str, values: Sequence[Any], than: str, fewer: Sequence[Any]) -> None:
    """Raise unless there is one more of ``values`` than of ``fewer``."""
    if len(values) != len(fewer) + 1:
        raise ValueError(f"{name} must hold one more than {than} ({len(fewer)}), got {len(values)}")


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
