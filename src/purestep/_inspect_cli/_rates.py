"""The rates of an optimizer's configuration at a step. A schedule that calls other people's functions is not asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from purestep._inspect_cli._text import inner, is_call, said
from purestep.schedules import Schedule, parse


def rates(config: Any, step: int) -> Iterator[tuple[str, str, str]]:
    """Yield ``(place, what is there, its value at the step)`` for each schedule of a configuration, and for each rate
    that is none."""
    for place, value in _leaves(config, ""):
        if isinstance(value, dict) and value.keys() == {"schedule"} and isinstance(value["schedule"], str):
            yield place, value["schedule"], _value(value["schedule"], step)
        elif place.endswith(".rate") and not place.endswith(".hyperparams.rate"):  # the state has that one
            constant = isinstance(value, int | float) or (
                isinstance(value, dict) and value.keys() == {"tensor", "dtype"}
            )
            yield place, said(value), said(value) if constant else ""


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if is_call(value):
        place = f"{place}.{value['name']}".removeprefix(".")
    within = inner(value)
    if within is None:
        yield place, value
        return
    for name, each in within.items():
        yield from _leaves(each, f"{place}{name}")


def _value(written: str, step: int) -> str:
    try:
        schedule = parse(written)
    except ValueError as error:
        return f"cannot be read here: {str(error).splitlines()[0]}"
    if _calls_functions(schedule):
        return "not computed: it calls a function"  # of any name that the file says
    try:
        return f"{schedule(step).item():.10g}"
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        return f"cannot be computed: {str(error).splitlines()[0]}"


def _calls_functions(value: Any) -> bool:
    if isinstance(value, Schedule):
        return any(map(_calls_functions, value.hyperparameters.values()))
    return any(map(_calls_functions, value)) if isinstance(value, tuple) else callable(value)
