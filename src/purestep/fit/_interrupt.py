"""Ctrl-C, heard between two steps and not in one."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupts:
    """Holds an interrupt back while a step runs: a donating step that is left halfway leaves half a state.

    ``with Interrupts() as interrupts`` replaces Python's own handler of SIGINT for a while, and only that one, and only
    in the main thread. Inside ``with interrupts.held`` the first Ctrl-C waits for the end of that block and a second
    one is raised at once; elsewhere each is raised at once, as always.
    """

    def __init__(self) -> None:
        self.held = _Held()
        self._installed = False

    def __enter__(self) -> Interrupts:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self.held.hear)
            self._installed = True
        return self

    def __exit__(self, *error: Any) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class _Held:
    def __init__(self) -> None:
        self._inside = False
        self._heard = False

    def hear(self, signum: int, frame: Any) -> None:
        if self._heard or not self._inside:
            raise KeyboardInterrupt
        self._heard = True

    def __enter__(self) -> None:
        self._inside = True

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self._inside = False
        heard, self._heard = self._heard, False
        if heard and kind is None:
            raise KeyboardInterrupt
