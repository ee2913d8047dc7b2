"""A formula: what all the schedules of one constructor share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from purestep._checks import listed, near_misses
from purestep.schedules._hyperparameters import Hyperparameter
from purestep.schedules._values import written

_BINDING = {"+": 1, "-": 1, "*": 2, "/": 2}  # how tightly a symbol binds; a call binds tightest
_TIGHTEST = 3


@dataclass(frozen=True, eq=False)
class Formula:
    """The maths of a schedule, and how it is built, called and written."""

    name: str
    function: Callable[..., Tensor]
    signature: inspect.Signature  # the constructor's
    hyperparameters: tuple[Hyperparameter, ...]
    several: str | None  # the name of the hyperparameter that is written `*name`
    names: tuple[str, ...]  # of the hyperparameters; a field of its own, as a compiler guards whatever it went through
    check: Callable[..., None] | None
    style: str  # how it is written: "call", "method", or an infix symbol
    constructor: Callable[..., Any]

    def __call__(self, steps: Tensor, values: tuple[Any, ...]) -> Tensor:
        """Return the values at ``steps``, a tensor of float64 (on MPS of float32)."""
        arguments = {name: _cast(value, steps) for name, value in zip(self.names, values, strict=True)}
        several = arguments.pop(self.several) if self.several is not None else ()
        result = self.function(steps, *several, **arguments)
        if not isinstance(result, Tensor) or result.shape != steps.shape or result.dtype != steps.dtype:
            got = f"a tensor of {result.dtype}, {tuple(result.shape)}" if isinstance(result, Tensor) else repr(result)
            raise TypeError(
                f"{self.name} must return a tensor like step: {steps.dtype}, {tuple(steps.shape)}; got {got}"
            )
        return result

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return the checked values of the hyperparameters, in order."""
        if self.several in kwargs and not args:  # as `replace` and configs give it
            args = kwargs[self.several]
            if not isinstance(args, tuple | list):
                raise TypeError(f"{self.several} must be a tuple, got {args!r} of type {type(args).__name__}")
            kwargs = {name: value for name, value in kwargs.items() if name != self.several}
        unknown = next((key for key in kwargs if key not in self.names), None)
        if unknown is not None:
            raise TypeError(f"{self.name} has no hyperparameter {unknown!r}{near_misses(unknown, self.names)}")
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}; its hyperparameters are {listed(self.names)}") from None
        bound.apply_defaults()
        accepted = {h.name: h.accept(bound.arguments[h.name]) for h in self.hyperparameters}
        if self.check is not None:
            self.check(**accepted)
        return tuple(accepted.values())

    def write(self, values: tuple[Any, ...]) -> str:
        """Return the schedule as a Python expression."""
        if self.style in _BINDING:
            left, right = values
            # Python groups to the left, so only an equal on the right needs its parentheses.
            return f"{_operand(left, self.binding)} {self.style} {_operand(right, self.binding + 1)}"
        given = [(h, value) for h, value in zip(self.hyperparameters, values, strict=True) if not h.is_default(value)]
        if self.style == "method":
            (_, receiver), *given = given
            parts = [written(value) if not h.keyword_only else f"{h.name}={written(value)}" for h, value in given]
            return f"{_operand(receiver, _TIGHTEST)}.{self.name}({', '.join(parts)})"
        parts = [
            part
            for h, value in given
            for part in (map(written, value) if h.name == self.several else [f"{h.name}={written(value)}"])
        ]
        return f"{self.name}({', '.join(parts)})"

    @property
    def binding(self) -> int:
        """How tightly the written form binds."""
        return _BINDING.get(self.style, _TIGHTEST)


def _cast(value: Any, steps: Tensor) -> Any:
    """A tensor like the steps, so that nothing is computed in less or elsewhere; all else as it is."""
    if isinstance(value, Tensor):
        return value.to(steps.device, steps.dtype)
    return tuple(_cast(v, steps) for v in value) if isinstance(value, tuple) else value


def _operand(value: Any, binding: int) -> str:
    text = written(value)
    formula = getattr(value, "_formula", None)  # a schedule's
    return f"({text})" if formula is not None and formula.binding < binding else text
