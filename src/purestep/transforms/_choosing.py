"""Choosing parameters: by shell patterns over their dotted names, or by a function."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from purestep import _checks, _tree
from purestep.updates import Tree

Mask = str | Sequence[str] | Callable[[str, Tensor], bool]


def matched(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a shell pattern matches; a name matches itself, whatever is in it."""
    return [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]


def matching(argument: str, pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names that a shell pattern matches, of which there must be one.

    Raises:
        ValueError: it matches none; near misses are named.
    """
    found = matched(pattern, names)
    if not found:
        near = _checks.near_misses(pattern, names)
        raise ValueError(f"{argument}={pattern!r} names no parameter{near}; there are {_checks.listed(names)}")
    return found


def chosen_in(argument: str, mask: Any) -> Callable[[Sequence[str], Sequence[Tensor]], tuple[str, ...]]:
    """Return the function ``(names, parameters) -> names that the mask chooses``, in their order.

    Raises:
        TypeError, ValueError: the mask is none, or, when it is called, chooses nothing.
    """
    if callable(mask):

        def by_function(names: Sequence[str], parameters: Sequence[Tensor]) -> tuple[str, ...]:
            found = tuple(name for name, leaf in zip(names, parameters, strict=True) if mask(name, leaf))
            if not found:
                raise ValueError(f"{argument} must choose at least one of {_checks.listed(names)}, and chose none")
            return found

        return by_function
    patterns = [mask] if isinstance(mask, str) else mask
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(
            f"{argument} must be a shell pattern over names, several, or a function (name, parameter) -> bool, got "
            f"{mask!r}"
        )
    if not patterns:
        raise ValueError(f"{argument} must name at least one parameter, got an empty list")

    def find(names: tuple[str, ...]) -> tuple[str, ...]:
        found = {name for pattern in patterns for name in matching(argument, pattern, names)}
        return tuple(name for name in names if name in found)

    known = Known(find)
    return lambda names, parameters: known(tuple(names))


def chosen_of(choose: Callable[[Sequence[str], Sequence[Tensor]], tuple[str, ...]], tree: Tree) -> tuple[str, ...]:
    """Return what a function of :func:`chosen_in` chooses among the leaves of a tree."""
    leaves = _tree.as_dict(tree)
    return choose(tuple(leaves), list(leaves.values()))


class Known:
    """A pure function of a tuple of names, computed once for each: an optimizer asks at every update, and a compiler
    would trace the matching."""

    def __init__(self, function: Callable[[tuple[str, ...]], Any]) -> None:
        self._function, self._results = function, dict[tuple[str, ...], Any]()

    def __call__(self, names: tuple[str, ...]) -> Any:
        if names not in self._results:
            self._results[names] = self._function(names)
        return self._results[names]
