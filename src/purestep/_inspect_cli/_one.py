"""One checkpoint: its manifest, its optimizer and the rates, and its tensors in numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from math import prod
from pathlib import Path

from rich.console import Console
from rich.tree import Tree

from purestep import checkpoint
from purestep._inspect_cli._rates import rates
from purestep._inspect_cli._reading import Read, bytes_of, opened
from purestep._inspect_cli._statistics import Statistics, statistics
from purestep._inspect_cli._text import as_json, grown, number, numbers, pairs, table, text
from purestep.checkpoint import Manifest
from purestep.measure._format import size

_TREES = ("params", "buffers", "opt_state", "aux", "metrics")
_INJECTED = re.compile(r"opt_state/(?:.*/)?hyperparams/(?P<name>.+)")


def show(console: Console, path: Path, *, every: bool) -> None:
    """Print everything about a checkpoint; ``every``: a line for each tensor too."""
    manifest = checkpoint.verify(path)
    _show_manifest(console, path, manifest)
    with opened(path, manifest) as read:
        found = {name: statistics(read(name)) for name in manifest.tensors}
        _show_optimizer(console, manifest, read)
    _show_trees(console, manifest, found)
    if every:
        _show_tensors(console, manifest, found)


def _show_manifest(console: Console, path: Path, manifest: Manifest) -> None:
    rows = pairs(str(path))
    versions = f"purestep {manifest.purestep}, torch {manifest.torch}, Python {manifest.python}"
    rows.add_row("written by", text(versions))
    rows.add_row("saved", text(manifest.saved))
    rows.add_row("step", f"{manifest.step:,}")
    rows.add_row("calls", f"{manifest.calls:,}")
    if manifest.git is not None:
        state = ", with changes" if manifest.git.get("dirty") else ""
        rows.add_row("git", text(f"{manifest.git.get('revision')}{state}"))
    for name, about in manifest.files.items():
        rows.add_row("file", text(f"{name}, {about.bytes:,} bytes ({size(about.bytes)}), SHA-256 {about.sha256}"))
    if manifest.scores:
        rows.add_row("scores", text(numbers(manifest.scores)))
    for name, value in (("data", manifest.data), ("extra", manifest.extra)):
        if value is not None:
            rows.add_row(name, text(as_json(value)))
    console.print(rows)


def _show_optimizer(console: Console, manifest: Manifest, read: Read) -> None:
    tree = Tree("optimizer")
    if manifest.optimizer is None:
        tree.add("not recorded")
    else:
        grown(tree, "", manifest.optimizer)
    console.print()
    console.print(tree)
    shown = table("rate", "by", "value", title=f"\nrates at step {manifest.step:,}", words=(0, 1, 2))
    for place, by, value in rates(manifest.optimizer, manifest.step):
        shown.add_row(text(place), text(by), text(value))
    for name, about in manifest.tensors.items():
        if (match := _INJECTED.fullmatch(name)) and about.shape == ():
            shown.add_row(text(match["name"]), text(f"the state, {name}"), f"{read(name).item():.10g}")
    if shown.row_count:
        console.print(shown)


def _show_trees(console: Console, manifest: Manifest, found: dict[str, Statistics | None]) -> None:
    trees: dict[str, list[str]] = {}
    for name in manifest.tensors:
        trees.setdefault(name.partition("/")[0], []).append(name)
    shown = table("tree", "tensors", "entries", "size", "dtypes", "norm", "not finite", words=(0, 4))
    for tree in sorted(trees, key=lambda tree: _TREES.index(tree) if tree in _TREES else len(_TREES)):
        names = trees[tree]
        dtypes = dict.fromkeys(manifest.tensors[name].dtype for name in names)
        shown.add_row(
            text(tree),
            f"{len(names):,}",
            f"{sum(prod(manifest.tensors[name].shape) for name in names):,}",
            size(sum(bytes_of(manifest, name) for name in names)),
            ", ".join(dtypes),
            number(_norm(found[name] for name in names)),
            f"{sum(each.nonfinite for name in names if (each := found[name]) is not None):,}",
        )
    console.print(shown)


def _show_tensors(console: Console, manifest: Manifest, found: dict[str, Statistics | None]) -> None:
    shown = table("tensor", "shape", "dtype", "norm", "least", "largest", "not finite", words=(0, 1, 2))
    for name, about in manifest.tensors.items():
        row = (text(name), str(about.shape), about.dtype)
        if (each := found[name]) is None:
            shown.add_row(*row)
        else:
            numbers_of = (number(each.norm), number(each.least), number(each.largest))
            shown.add_row(*row, *numbers_of, f"{each.nonfinite:,}")
    console.print(shown)


def _norm(found: Iterable[Statistics | None]) -> float:
    return math.hypot(*(each.norm for each in found if each is not None))
