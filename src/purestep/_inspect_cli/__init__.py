"""What ``purestep inspect`` shows: what a checkpoint says of itself, its tensors in numbers, and two compared."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from rich.console import Console

from purestep import checkpoint
from purestep._inspect_cli import _folder, _one, _two
from purestep.checkpoint import CheckpointError

_WIDE = 200  # characters


def show(path: Path, *, other: Path | None = None, tensors: bool = False) -> None:
    """Print what is in a checkpoint, or how it differs from another one.

    Every byte is read and compared with the manifest, the tensors one by one. Nothing that a checkpoint says is run.

    Args:
        path, other: each a checkpoint, or a folder of some, which are listed, and of which the newest whole one is
            meant.
        tensors: a line for each tensor.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged, or no checkpoint.
        TypeError, ValueError: a path that names nothing.
    """
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # a file has no width, and who searches it wants whole names
        console = Console(highlight=False, markup=False, width=max(console.width, _WIDE))
    try:
        found = _chosen(console, path)
        if other is None:
            _one.show(console, found, every=tensors)
        else:
            _two.show(console, found, _chosen(console, other), every=tensors)
    except RecursionError:
        raise CheckpointError("the manifest is nested too deeply to be shown") from None


def _chosen(console: Console, path: Path) -> Path:
    """Return the checkpoint that is meant; list those of a folder."""
    if not path.exists():
        raise FileNotFoundError(f"nothing is at {os.fspath(path)!r}")
    if not path.is_dir() or not _folder.checkpoints(path):
        checkpoint.read_manifest(path)  # says what is wrong where it is none
        return path
    _folder.show(console, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the list says which are damaged, and why
        newest = checkpoint.latest(path)
    if newest is None:
        raise CheckpointError(f"there is no whole checkpoint in {os.fspath(path)!r}")
    return newest
