"""The decorator: a schedule written once, as plain maths."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, overload

from torch import Tensor

from purestep.schedules._formula import Formula
from purestep.schedules._hyperparameters import Hyperparameter
from purestep.schedules._schedule import CONSTRUCTORS, Schedule

P = ParamSpec("P")


@overload
def schedule(function: Callable[Concatenate[Tensor, P], Tensor], /) -> Callable[P, Schedule]: ...


@overload
def schedule(
    *, check: Callable[..., None] | None = None
) -> Callable[[Callable[Concatenate[Tensor, P], Tensor]], Callable[P, Schedule]]: ...


def schedule(function: Any = None, /, *, check: Callable[..., None] | None = None) -> Any:
    """Make the constructor of a schedule from its formula.

    The formula is a function of the step, a float64 tensor of any shape whose values are at least 0, and of the
    hyperparameters; it returns a tensor like the step. The constructor takes the hyperparameters alone::

        @schedule
        def inverse_time(step, peak, half_life):
            return peak / (1 + step / half_life)

        rate = inverse_time(peak=0.1, half_life=500)
        rate(500)  # tensor(0.0500, dtype=torch.float64)

    A hyperparameter reaches the formula as it was given, a Python number or a 0-d tensor (in float64). Its annotation
    says what it may be: ``float`` (or none), ``int``, ``bool``, ``None``, a ``Literal``, a ``Schedule`` (the formula
    calls it on steps), a ``tuple[..., ...]`` of these, a ``Callable``, or a union. Numbers are checked to be finite.
    The first may be written ``*name: ...``, and is then a tuple.

    The formula must be pure and elementwise: made of torch functions of its arguments, without ``.item()`` and
    without an ``if`` on a value of a tensor. Then the schedule is safe under ``vmap``, ``grad`` and ``compile``;
    ``purestep.laws.check_schedule`` finds out.

    Args:
        function: the formula. Its name is the constructor's, and must be that of no other schedule.
        check: called with the hyperparameters by name when a schedule is built; raises where they make no sense. It
            should let tensors pass, whose values may not be known yet.

    Raises:
        TypeError: the formula takes no step, or a hyperparameter that cannot be given by name; one is annotated with
            something that none can be.
        ValueError: the name is another schedule's already.
    """
    decorate = define(check=check)
    return decorate if function is None else decorate(function)


def define(
    *, check: Callable[..., None] | None = None, style: str = "call"
) -> Callable[[Callable[Concatenate[Tensor, P], Tensor]], Callable[P, Schedule]]:
    """Do what ``schedule`` says; ``style`` is for the algebra, whose schedules are written by symbols and methods."""

    def decorate(function: Callable[Concatenate[Tensor, P], Tensor]) -> Callable[P, Schedule]:
        parameters = _parameters(function)
        hints = typing.get_type_hints(function)
        parameters = [p.replace(annotation=hints.get(p.name, float)) for p in parameters]
        hyperparameters = tuple(Hyperparameter.read(p, Schedule) for p in parameters)
        signature = inspect.Signature(parameters, return_annotation=Schedule)

        @functools.wraps(function)
        def constructor(*args: P.args, **kwargs: P.kwargs) -> Schedule:
            return Schedule(formula, formula.bind(args, kwargs))

        constructor.__signature__ = signature  # type: ignore[attr-defined]
        formula = Formula(
            name=function.__name__,
            function=function,
            signature=signature,
            hyperparameters=hyperparameters,
            several=next((p.name for p in parameters[:1] if p.kind is p.VAR_POSITIONAL), None),
            names=tuple(h.name for h in hyperparameters),
            check=check,
            style=style,
            constructor=constructor,
        )
        constructor.formula = formula  # type: ignore[attr-defined]
        _register(constructor)
        return constructor

    return decorate


def _parameters(function: Callable[..., Tensor]) -> list[inspect.Parameter]:
    """The parameters after the step."""
    given = inspect.signature(function)
    step, *rest = given.parameters.values() or (None,)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    one_step = step is not None and step.kind in (named[0], step.POSITIONAL_ONLY)
    several = rest[0].kind is inspect.Parameter.VAR_POSITIONAL if rest else False
    if not one_step or any(p.kind not in named for p in rest[several:]):
        raise TypeError(
            "a formula must take the step, and then hyperparameters that can be given by name, of which the first may "
            f"be *name; got {getattr(function, '__name__', function)}{given}"
        )
    return rest


def _register(constructor: Callable[..., Schedule]) -> None:
    name = constructor.__name__
    if not name.isidentifier():
        raise ValueError(f"a formula must be a function with a name, which reprs and configs write, got {name}")
    known = CONSTRUCTORS.get(name)
    home = (constructor.__module__, constructor.__qualname__)
    # The same name from the same place is a module reloaded, or a notebook's cell run again.
    if known is not None and (known.__module__, known.__qualname__) != home:
        raise ValueError(
            f"a schedule must have a name of its own, got {name!r}, which {known.__module__}.{known.__qualname__} has"
        )
    CONSTRUCTORS[name] = constructor
