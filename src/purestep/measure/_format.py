"""Numbers with their units, and tables as text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

_DECIMAL = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2.0**40, "Ti"), (2.0**30, "Gi"), (2.0**20, "Mi"), (2.0**10, "Ki"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def seconds(value: float) -> str:
    """Four digits and the unit: ``12.34 µs``."""
    scale, unit = next(((s, u) for s, u in _SECONDS if abs(value) >= s), _SECONDS[-1])
    return f"{_digits(value / scale)} {unit}"


def rate(value: float, unit: str) -> str:
    """Four digits with a decimal prefix: ``1.234 TFLOP/s``."""
    scale, prefix = next(((s, p) for s, p in _DECIMAL if abs(value) >= s), (1.0, ""))
    return f"{_digits(value / scale)} {prefix}{unit}"


def size(value: float) -> str:
    """Four digits with a binary prefix: ``1.500 MiB``."""
    scale, prefix = next(((s, p) for s, p in _BINARY if abs(value) >= s), (1.0, ""))
    return f"{_digits(value / scale) if prefix else f'{value:.0f}'} {prefix}B"


def percent(fraction: float) -> str:
    """Two digits at least, never a power of ten: ``4.9 %``, ``130 %``."""
    share = 100 * fraction
    return f"{share:,.0f} %" if share >= 10 else f"{share:.2g} %"


def count(value: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, notes: str = "", words: tuple[int, ...] = (0,)
) -> str:
    """Return a table as plain text; the columns ``words`` are set to the left, and the others to the right."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(columns):
        made.add_column(column, justify="left" if position in words else "right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=160, color_system=None, markup=False, highlight=False).print(made)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([line for line in lines if line] + ([notes] if notes else []))


def _digits(value: float) -> str:
    whole = len(str(int(abs(value))))
    return f"{value:,.{max(0, 4 - whole)}f}"
