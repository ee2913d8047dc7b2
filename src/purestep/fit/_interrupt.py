"""Signals, heard between two steps and not in one."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from contextlib import suppress
from typing import Any

EXIT_CODE = 75  # sysexits.h: EX_TEMPFAIL, "try again later"

_in_use: weakref.WeakSet[Interrupts] = weakref.WeakSet()


class Stopped(SystemExit):
    """A run was told to stop by SIGTERM or SIGINT, has saved itself, and can be resumed.

    A ``SystemExit``: a program that does not catch it ends with the exit code 75 (``EX_TEMPFAIL`` of ``sysexits.h``).

    Attributes:
        code: 75.
        fit: the :class:`Fit` so far.
        signal: what told it to stop, such as ``signal.SIGTERM``.
    """

    fit: Any = None

    def __init__(self, number: int) -> None:
        super().__init__(EXIT_CODE)
        self.signal = signal.Signals(number)

    def __str__(self) -> str:
        return f"stopped by {self.signal.name}"


class LeftAtOnce(SystemExit):
    """A second signal: the program ends now, as if the signal had ended it, and saves nothing."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)

    def __str__(self) -> str:
        return f"left at once, for a second signal ({self.signal.name})"


class Interrupts:
    """Holds a signal back while a step runs: a donating step that is left halfway leaves half a state.

    ``with Interrupts(...) as interrupts`` replaces Python's own handlers for a while, and only those (a program's own
    handler stays, and so does one that ignores the signal), and only in the main thread.

    With ``saves=False`` it is about Ctrl-C alone: inside ``with interrupts.held`` the first one waits for the end of
    that block, elsewhere it is raised at once, as a ``KeyboardInterrupt``, and so is a second one.

    With ``saves=True`` it is about SIGINT and SIGTERM: the first one is raised as :class:`Stopped`, at once inside
    ``with interrupts.open`` (there the loop waits for others, and nothing is lost), and elsewhere by the next
    ``check()``. A second one is a ``SystemExit`` of 128 and its number, at once.
    """

    def __init__(self, *, saves: bool) -> None:
        self.held, self.open = _Region(self, waits=True), _Region(self, waits=False)
        self.heard: int | None = None
        self._saves = self._waits = saves
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            pythons_own: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
            if self._saves:
                pythons_own[signal.SIGTERM] = signal.SIG_DFL
            _in_use.add(self)
            for number, handler in pythons_own.items():
                if signal.getsignal(number) is handler:
                    self._before[number] = handler
                    signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self.put_back()
        _in_use.discard(self)
        if kind is None and self.heard is not None:  # after the last check: it is not lost
            signal.raise_signal(self.heard)

    def put_back(self) -> None:
        """Put the handlers back that were there before."""
        while self._before:
            signal.signal(*self._before.popitem())

    def check(self) -> None:
        """Raise for a signal that was heard and held back."""
        if self.heard is not None:
            raise self._error()

    def _hear(self, number: int, frame: Any) -> None:
        second, self.heard = self.heard is not None, number
        if second and self._saves:
            raise LeftAtOnce(number)
        if second or not self._waits:
            raise self._error()

    def _error(self) -> BaseException:
        assert self.heard is not None
        if self._saves:
            return Stopped(self.heard)
        self.heard = None  # a KeyboardInterrupt may be caught, and the next Ctrl-C is a first one again
        return KeyboardInterrupt()


class _Region:
    """A block in which a signal waits, or does not. (A class: it is entered at every step.)"""

    def __init__(self, interrupts: Interrupts, *, waits: bool) -> None:
        self._interrupts, self._inside = interrupts, waits

    def __enter__(self) -> None:
        interrupts = self._interrupts
        self._outside = interrupts._waits
        interrupts._waits = self._inside
        if not self._inside:
            interrupts.check()

    def __exit__(self, kind: Any, *rest: Any) -> None:
        interrupts = self._interrupts
        interrupts._waits = self._outside
        if kind is None and not interrupts._waits:
            interrupts.check()


def _put_back_in_child() -> None:
    """A forked process (a worker that reads data) is no run: SIGTERM must end it, not wait for a step."""
    for interrupts in list(_in_use):
        with suppress(ValueError):
            interrupts.put_back()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_put_back_in_child)
