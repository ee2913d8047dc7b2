"""What a run shows of itself: a bar on a terminal, lines elsewhere, or nothing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text


class Display(Protocol):
    """The methods that the loop calls; ``number`` is the step's."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...

    def advance(self, number: int) -> None: ...

    def window(self, number: int, scalars: Mapping[str, float], speed: float) -> None: ...

    def validated(self, number: int, scalars: Mapping[str, float]) -> None: ...


def display(*, shown: bool, first: int, last: int) -> Display:
    """Return the display for steps ``first + 1`` to ``last``."""
    if not shown:
        return Silent()
    console = Console()
    # rich lets environment variables (FORCE_COLOR) call a log file a terminal; a bar there would be noise.
    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return Bar(console, first, last) if terminal or console.is_jupyter else Lines(last)


class Silent:
    """Shows nothing."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...

    def advance(self, number: int) -> None: ...

    def window(self, number: int, scalars: Mapping[str, float], speed: float) -> None: ...

    def validated(self, number: int, scalars: Mapping[str, float]) -> None: ...


class Lines(Silent):
    """One line for each window of steps, and one for each validation."""

    def __init__(self, last: int) -> None:
        self._last = last

    def window(self, number: int, scalars: Mapping[str, float], speed: float) -> None:
        print(f"step {number}/{self._last}  {_listed(scalars)}  {speed:.1f} steps/s", flush=True)

    def validated(self, number: int, scalars: Mapping[str, float]) -> None:
        print(f"step {number}/{self._last}  validation  {_listed(scalars)}", flush=True)


class Bar:
    """A bar, the last window's numbers below it, and a line above it for each validation."""

    def __init__(self, console: Console, first: int, last: int) -> None:
        self._bar = Progress(
            TextColumn("step"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        )
        self._task = self._bar.add_task("fit", total=last, completed=first)
        self._numbers = Text()
        # Each refresh takes some milliseconds from the loop, whose thread shares the interpreter.
        self._live = Live(Group(self._bar, self._numbers), console=console, refresh_per_second=5)
        self._last = last
        self._shown_at = 0.0
        self._number = first

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *error: Any) -> None:
        self._bar.update(self._task, completed=self._number)
        self._live.stop()

    def advance(self, number: int) -> None:
        self._number = number
        now = time.monotonic()
        if now - self._shown_at >= 0.2:
            self._bar.update(self._task, completed=number)
            self._shown_at = now

    def window(self, number: int, scalars: Mapping[str, float], speed: float) -> None:
        self._numbers.plain = f"{_listed(scalars)}  {speed:.1f} steps/s"

    def validated(self, number: int, scalars: Mapping[str, float]) -> None:
        self._live.console.print(
            f"step {number}/{self._last}  validation  {_listed(scalars)}", markup=False, highlight=False
        )


def _listed(scalars: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
