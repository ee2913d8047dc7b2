"""What a manifest says as text for a terminal: nothing in it moves the cursor, and nothing is cut off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text
from rich.tree import Tree


def text(said: str) -> Text:
    """Return text whose control characters are written out: a file must not command a terminal."""
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in said), overflow="fold")


def table(*columns: str, title: str = "", words: tuple[int, ...] = (0,)) -> Table:
    """Return an empty table; the columns ``words`` are set to the left and folded where too long, the others to the
    right."""
    made = Table(title=text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(columns):
        if position in words:
            made.add_column(column, overflow="fold")
        else:
            made.add_column(column, justify="right", no_wrap=True)
    return made


def pairs(title: str) -> Table:
    """Return an empty table of names and what they are."""
    made = Table(title=text(title), title_justify="left", box=None, show_header=False, pad_edge=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    return made


def number(value: float | None) -> str:
    """Four digits, and nothing of what is not there."""
    return "" if value is None else f"{value:.4g}"


def numbers(values: Mapping[str, Any]) -> str:
    """``val/loss=0.123, ...``, exactly."""
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def as_json(value: Any, *, longest: int = 4_000) -> str:
    """Return JSON, cut where it is very long."""
    whole = json.dumps(value, ensure_ascii=False)
    return whole if len(whole) <= longest else f"{whole[:longest]}... ({len(whole):,} characters)"


def is_call(value: Any) -> bool:
    """Whether JSON is the config of an update: ``{"name": ..., "arguments": {...}}``."""
    return isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("arguments"), dict)


def inner(value: Any) -> dict[str, Any] | None:
    """Return what is inside a value of a config by its place, ``"[0]"`` or ``".head"``; ``None`` where it is a leaf."""
    if is_call(value):
        return {f".{name}": each for name, each in value["arguments"].items()}
    if isinstance(value, list):
        return {f"[{position}]": each for position, each in enumerate(value)}
    if isinstance(value, dict) and value.keys() == {"dict"} and isinstance(value["dict"], dict):
        return {f".{name}": each for name, each in value["dict"].items()}
    if isinstance(value, dict) and value.keys() == {"partial", "given", "named"} and isinstance(value["named"], dict):
        return {"": value["partial"], **{f".{name}": each for name, each in value["named"].items()}}
    return None


def grown(tree: Tree, label: str, value: Any) -> Tree:
    """Add a value of a config to a tree: an update is a branch with its arguments."""
    if is_call(value):
        branch = tree.add(text(f"{label}{value['name']}"))
        for name, each in value["arguments"].items():
            grown(branch, f"{name} = ", each)
        return branch
    within = inner(value)
    if within and any(map(_has_call, within.values())):
        branch = tree.add(text(label.removesuffix(" = ")))
        for place, each in within.items():
            grown(branch, f"{place.strip('.[]')}: ", each)
        return branch
    return tree.add(text(f"{label}{said(value)}"))


def said(value: Any) -> str:
    """Return a value of a config in one line, as a ``repr`` would have it."""
    if isinstance(value, dict):
        for mark in ("schedule", "written", "function", "number"):
            if value.keys() == {mark}:
                return str(value[mark]).rpartition(":")[2] if mark == "function" else str(value[mark])
        if value.keys() == {"tensor", "dtype"}:
            return f"tensor {said(value['tensor'])} ({value['dtype']})"
        if value.keys() == {"shape", "dtype"}:
            return f"tensor of shape {as_json(value['shape'])} ({value['dtype']})"
        if value.keys() == {"dtype"}:
            return f"torch.{value['dtype']}"
        if value.keys() == {"dict"} and isinstance(value["dict"], dict):
            return f"{{{', '.join(f'{name!r}: {said(each)}' for name, each in value['dict'].items())}}}"
        if value.keys() == {"partial", "given", "named"} and isinstance(value["named"], dict):
            parts = [value["partial"], *(value["given"] if isinstance(value["given"], list) else ())]
            named = [f"{name}={said(each)}" for name, each in value["named"].items()]
            return f"partial({', '.join([*map(said, parts), *named])})"
    if isinstance(value, list):
        return f"[{', '.join(map(said, value))}]"
    return repr(value) if value is None or isinstance(value, bool | int | float | str) else as_json(value)


def _has_call(value: Any) -> bool:
    return is_call(value) or any(map(_has_call, (inner(value) or {}).values()))
