"""What ``purestep schedule`` shows: a table of values, a plot in the terminal, a picture, and a file of values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from purestep.schedules import Schedule

_ROWS, _WIDEST = 13, 100  # of the plot, in characters
_LABEL = 11
_LOOKED_AT = 64  # steps in each column of dots, whose least and largest value are drawn
_BLOCK = 2**16  # steps computed at once for a file
# The bit of each dot of a braille character, by its column and row: they are added to U+2800.
_BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def show(schedule: Schedule, steps: int, *, at: Sequence[int] | None, png: Path | None, csv: Path | None) -> None:
    """Write the files asked for; print the schedule, its values at some steps, and a plot of steps 0 to ``steps``.

    Args:
        schedule: what to show.
        steps: the last step that is drawn and written.
        at: the steps of the table, by default five from 0 to ``steps``.
        png: gets the picture of :meth:`Schedule.plot`.
        csv: gets a line ``step,value`` for each step from 0 to ``steps``; the values can be read back exactly.

    Raises:
        ValueError: a value that is not finite, or a file that cannot be written.
    """
    console = Console()
    plot = list(_plot(schedule, steps, width=min(console.width, _WIDEST), ascii_only=console.options.ascii_only))
    asked = sorted({steps * quarter // 4 for quarter in range(5)}) if at is None else at
    values = _values(schedule, torch.tensor(asked)).tolist()
    table = Table("step", "value", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    for step, value in zip(asked, values, strict=True):
        table.add_row(f"{step:,}", f"{value:.10g}")
    if csv is not None:
        with _writing("--csv", csv):
            _write_csv(schedule, steps, csv)
    if png is not None:
        with _writing("--png", png):
            _write_png(schedule, steps, png)
    print(repr(schedule))
    console.print(table, highlight=False)
    print("\n".join(plot))


def _values(schedule: Schedule, steps: Tensor) -> Tensor:
    try:
        values = schedule(steps).detach()
    except TypeError as error:  # of a function that was named, and is no formula
        raise ValueError(str(error)) from error
    if not bool(values.isfinite().all()):
        first = int((~values.isfinite()).nonzero()[0])
        raise ValueError(f"a schedule must have finite values, got {values[first]} at step {steps[first]}")
    return values


def _plot(schedule: Schedule, steps: int, *, width: int, ascii_only: bool) -> Iterator[str]:
    """Yield the lines of a plot. A character has 2 by 4 dots, those of braille; in ASCII it is one."""
    across, down = (1, 1) if ascii_only else (2, 4)
    cells = max(width - _LABEL - 2, 10)
    columns = cells * across
    looked_at = torch.linspace(0, steps, columns * _LOOKED_AT, dtype=torch.float64).round().long()
    values = _values(schedule, looked_at)
    low, high = values.min().item(), values.max().item()
    grid = [[0] * cells for _ in range(_ROWS)]
    for x, (bottom, top) in enumerate(_spans(values.reshape(columns, _LOOKED_AT), low, high, _ROWS * down)):
        for y in range(bottom, top + 1):
            grid[_ROWS - 1 - y // down][x // across] |= _BRAILLE[x % across][down - 1 - y % down]
    labels = {0: high, _ROWS // 2: (high + low) / 2, _ROWS - 1: low} if high > low else {_ROWS // 2: low}
    side, corner, line = ("|", "+", "-") if ascii_only else ("│", "└", "─")
    for n, row in enumerate(grid):
        label = f"{labels[n]:.4g}" if n in labels else ""
        drawn = "".join(("*" if bits else " ") if ascii_only else chr(0x2800 + bits) for bits in row)
        yield f"{label:>{_LABEL}} {side}{drawn}"
    yield f"{'':{_LABEL}} {corner}{line * cells}"
    middle = f"{steps // 2:,}".center(cells - 2 * len(f"{steps:,}"))
    yield f"{'':{_LABEL}}  {'0':<{len(f'{steps:,}')}}{middle}{steps:,}"


def _spans(values: Tensor, low: float, high: float, dots: int) -> list[tuple[int, int]]:
    """The lowest and highest dot of each row of ``values``, reaching to the end of the row before."""
    before = torch.cat([values[:1, :1], values[:-1, -1:]])
    joined = torch.cat([before, values], dim=1)
    part = (joined - low) / (high - low) if high > low else torch.full_like(joined, 0.5)
    heights = (part * (dots - 1)).round().long()
    return list(zip(heights.amin(1).tolist(), heights.amax(1).tolist(), strict=True))


def _write_csv(schedule: Schedule, steps: int, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("step,value\n")
        for first in range(0, steps + 1, _BLOCK):
            block = torch.arange(first, min(first + _BLOCK, steps + 1))
            values = _values(schedule, block).tolist()
            file.writelines(f"{step},{value!r}\n" for step, value in zip(block.tolist(), values, strict=True))


def _write_png(schedule: Schedule, steps: int, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("--png needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = schedule.plot(steps, ax=figure.subplots())
    axes.set_title(repr(schedule), fontsize="small", wrap=True)
    figure.savefig(path, format="png", dpi=150)


@contextmanager
def _writing(option: str, path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ValueError(f"{option} must be a file that can be written, got {str(path)!r}: {error.strerror}") from error
