"""Checks of arguments: each message names the argument, the value it had, and what would be right."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


def integer(name: str, value: Any, *, minimum: int | None = None) -> int:
    """Return ``value`` if it is an ``int`` (not a bool) of at least ``minimum``; raise otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int{_at_least(minimum)}, got {value!r} of type {type(value).__name__}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be an int{_at_least(minimum)}, got {value}")
    return value


def number(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Return ``value`` if it is a finite real Python number within the bounds; raise otherwise."""
    right = "a finite number" + _bounds(minimum, maximum, above, below)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {right}, got {value!r} of type {type(value).__name__}")
    inside = (
        math.isfinite(value)
        and (minimum is None or value >= minimum)
        and (maximum is None or value <= maximum)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if not inside:
        raise ValueError(f"{name} must be {right}, got {value!r}")
    return value


def near_misses(wanted: str, known: Iterable[str]) -> str:
    """Return `` (did you mean ...?)`` for the closest of ``known``, or an empty string."""
    close = difflib.get_close_matches(wanted, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(c) for c in close)}?)" if close else ""


def listed(names: Iterable[str], limit: int = 6) -> str:
    """Return the names quoted and joined, cut after ``limit`` with a count of the rest."""
    quoted = [repr(n) for n in names]
    rest = len(quoted) - limit
    return ", ".join(quoted[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _at_least(minimum: int | None) -> str:
    return "" if minimum is None else f" of at least {minimum}"


def _bounds(minimum: float | None, maximum: float | None, above: float | None, below: float | None) -> str:
    parts = [
        f"{word} {bound:g}"
        for word, bound in (("at least", minimum), ("above", above), ("at most", maximum), ("below", below))
        if bound is not None
    ]
    return f" {' and '.join(parts)}" if parts else ""
