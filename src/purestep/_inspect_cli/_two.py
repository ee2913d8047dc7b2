"""Two checkpoints: what is only in one, what has another form, and how far the others are apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from purestep import checkpoint
from purestep._inspect_cli._reading import opened
from purestep._inspect_cli._statistics import Difference, difference
from purestep._inspect_cli._text import inner, is_call, number, said, table, text
from purestep.checkpoint import Manifest
from purestep.measure._format import count

# Those of the tensors are compared as such; the others are of no interest where the tensors are.
_FIELDS = ("purestep", "torch", "python", "saved", "step", "calls", "optimizer", "data", "extra", "git", "scores")


def show(console: Console, first: Path, second: Path, *, every: bool) -> None:
    """Print how a second checkpoint differs from a first; ``every``: tensors that are the same too."""
    one, two = checkpoint.verify(first), checkpoint.verify(second)
    console.print(text(f"first:  {first}\nsecond: {second}"))
    _show_manifests(console, one, two)
    _show_forms(console, one, two)
    both = [name for name, form in one.tensors.items() if two.tensors.get(name) == form]
    with opened(first, one) as read, opened(second, two) as read_other:
        found = {name: difference(read(name), read_other(name)) for name in both}
    _show_values(console, found, every=every)


def _show_manifests(console: Console, one: Manifest, two: Manifest) -> None:
    said_by = [dict(_flat({name: getattr(manifest, name) for name in _FIELDS}, "")) for manifest in (one, two)]
    shown = table("said", "first", "second", words=(0, 1, 2))
    for name in {**said_by[0], **said_by[1]}:
        values = [values.get(name, "-") for values in said_by]
        if values[0] != values[1]:
            shown.add_row(text(name), *map(text, values))
    if shown.row_count:
        console.print(shown)


def _flat(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield the leaves of JSON, by their places, in one line each; ``None`` is not there."""
    if is_call(value):
        yield place, value["name"]
        within = inner(value)
    elif isinstance(value, dict) and not place.startswith("optimizer"):
        within = {f".{name}": each for name, each in value.items()}
    else:
        within = inner(value) if not isinstance(value, list) or any(map(is_call, value)) else None
    if within is None:
        if value is not None:
            yield place, said(value)
        return
    for name, each in within.items():
        yield from _flat(each, f"{place}{name}".removeprefix("."))


def _show_forms(console: Console, one: Manifest, two: Manifest) -> None:
    shown = table("tensor", "first", "second", words=(0, 1, 2))
    for name in {**one.tensors, **two.tensors}:
        forms = one.tensors.get(name), two.tensors.get(name)
        if forms[0] != forms[1]:
            shown.add_row(text(name), *("not there" if form is None else str(form) for form in forms))
    if shown.row_count:
        console.print(shown)


def _show_values(console: Console, found: dict[str, Difference | None], *, every: bool) -> None:
    def distance(name: str) -> tuple[bool, float, float, bool]:
        each = found[name]
        return (True, 0.0, 0.0, True) if each is None else (False, each.relative, each.largest, not each.bits)

    same = [name for name, each in found.items() if each is not None and each.bits]
    shown = table("tensor", "bits", "largest difference", "relative difference", words=(0, 1))
    for name in sorted(found, key=distance, reverse=True):
        each = found[name]
        if each is None:
            shown.add_row(text(name), "differ", "", "")
        elif not each.bits or every:
            shown.add_row(text(name), "same" if each.bits else "differ", number(each.largest), number(each.relative))
    if shown.row_count:
        console.print(shown)
    if len(same) == len(found):
        console.print(f"\n{count(len(same), 'tensor')} in both, the same to the bit")
    else:
        console.print(f"{len(same):,} of {count(len(found), 'tensor')} in both are the same to the bit")
