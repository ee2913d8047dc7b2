"""A folder of checkpoints as a list."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from purestep import checkpoint
from purestep._inspect_cli._text import numbers, table, text
from purestep.checkpoint._manifest import DATA_FILE, NAME
from purestep.measure._format import size


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder that is none itself, whole or not, by their names."""
    if _looks_like_one(folder):
        return []
    inner = (each for each in folder.iterdir() if not each.name.startswith(".") and each.is_dir())
    return sorted(filter(_looks_like_one, inner))


def _looks_like_one(folder: Path) -> bool:
    return any(each.name == NAME or DATA_FILE.fullmatch(each.name) for each in folder.iterdir())


def show(console: Console, folder: Path) -> None:
    """Print a line for each checkpoint of a folder; of a damaged one, what is wrong."""
    shown = table(
        "checkpoint", "step", "calls", "saved", "size", "scores", title=f"checkpoints in {folder}", words=(0, 3, 5)
    )
    for path in checkpoints(folder):
        try:
            manifest = checkpoint.read_manifest(path)
        except (ValueError, OSError) as error:
            shown.add_row(text(path.name), "", "", "", "", text(str(error)))
            continue
        counts = f"{manifest.step:,}", f"{manifest.calls:,}"
        shown.add_row(
            text(path.name), *counts, text(manifest.saved), size(manifest.size), text(numbers(manifest.scores or {}))
        )
    console.print(shown)
