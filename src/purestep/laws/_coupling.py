"""Whether what one example adds to a loss depends on the others: a second difference that is not zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from purestep.laws._compare import LawViolation
from purestep.laws._probe import Probe, Term, spread

COUPLED = "law 2 (examples are not coupled)"
_PLACES = 4


class _Change(NamedTuple):
    """By how much a term's total or weight changes where some examples are replaced: with the others as they are, and
    with some of those replaced too."""

    name: str
    before: float
    after: float


def coupled(probe: Probe) -> dict[int, LawViolation]:
    """Return what there is to say of each term where what an example adds depends on another: looked for by halves of
    the batch, then by pairs."""
    half, n = probe.length // 2, probe.length
    left, right = range(half), range(half, n)
    into = {**{a: half + a for a in left}, **{b: (b - half) % half for b in right}}
    found = {}
    for term, halves in enumerate(_changes(probe, left, right, into)):
        if not halves:
            continue
        told = "the first half", "the second half", halves
        for i, j in ((i, j) for i in spread(left, _PLACES) for j in spread(right, _PLACES)):
            pair = _changes(probe, [i], [j], {i: j, j: i})[term]
            if pair:
                told = f"example {i}", f"example {j}", pair
                break
        found[term] = _message(probe, term, *told)
    return found


def _changes(probe: Probe, left: Sequence[int], right: Sequence[int], into: dict[int, int]) -> list[list[_Change]]:
    """Return, for each term, the changes by replacing ``left`` that depend on whether ``right`` is replaced."""
    sides = [probe.terms(_replaced(probe.length, part, into)) for part in ((), left, right, (*left, *right))]
    found: list[list[_Change]] = []
    for terms in zip(*sides, strict=True):
        found.append([])
        for name, none, one, other, both in zip(Term._fields, *terms, strict=True):
            before, after = one - none, both - other
            if not probe.near(abs(before - after), max(map(abs, (none, one, other, both)))):
                found[-1].append(_Change(name, before, after))
    return found


def _replaced(length: int, which: Sequence[int], into: dict[int, int]) -> list[int]:
    chosen = set(which)
    return [into[i] if i in chosen else i for i in range(length)]


def _message(probe: Probe, term: int, one: str, other: str, changes: list[_Change]) -> LawViolation:
    what = " and ".join(f"its {name} by {before:.6g}, and by {after:.6g}" for name, before, after in changes)
    return LawViolation(
        f"{COUPLED}: term {term}: another example in the place of {one} changes {what} where {other} is replaced too, "
        f"so what it adds depends on {other}: {_advice(probe.model)}",
        by=f"{abs(changes[0].before - changes[0].after):.2g} in its {changes[0].name}",
        on=f"term {term}, {one} and {other}",
    )


def _advice(model: nn.Module) -> str:
    norms = [
        f"{name!r}"
        for name, part in model.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (part.training or not model.training)
    ]
    if norms:
        return (
            f"batch statistics couple examples ({', '.join(norms[:4])} in training mode): freeze a BatchNorm with its "
            "own eval(), the model itself in training mode, or accept the statistics of micro-batches "
            "(docs/accumulation.md)"
        )
    return (
        "a contrastive loss or a load balance takes two passes (docs/accumulation.md), and weights are given to "
        "ps.mean as they are, not divided by their sum"
    )
