"""What asynchronous saving is made of: a copy of the tensors on the host, and one write at a time in a thread."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # its own hook at the end of threads must be there before ours  # noqa: F401
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress

import torch
from torch import Tensor

_writers: weakref.WeakSet[Writer] = weakref.WeakSet()


class HostCopy:
    """Copies of tensors in memory that is kept for the next ones: fresh memory takes twice as long.

    From CUDA they go through page-locked memory behind what is queued already, so the host does not wait for them; what
    is queued later, such as a donating step, writes over the originals only when they have been copied.
    """

    def __init__(self) -> None:
        self._room: dict[str, Tensor] = {}
        self._events: list[torch.cuda.Event] = []

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Start copying tensors. The copies before must not be needed any more."""
        before = self._room
        self._room = {name: _room_for(tensor, before.get(name)) for name, tensor in tensors.items()}
        with torch.no_grad():
            torch._foreach_copy_(list(self._room.values()), list(tensors.values()), non_blocking=True)
        self._events = []
        for device in {tensor.device for tensor in tensors.values()}:
            if device.type == "cuda":
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(device))
                self._events.append(event)
            elif device.type != "cpu":
                torch.accelerator.synchronize(device)

    def ready(self) -> dict[str, Tensor]:
        """Wait until the copies are there, and return them."""
        for event in self._events:
            event.synchronize()
        return self._room


class Writer:
    """One job at a time in a thread of its own, whose failure is told at the next call.

    The thread is a daemon, so that a second signal need not wait for it; a program that ends otherwise does.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._ended.set()
        self._failed: BaseException | None = None
        self.exit_code: int | None = None  # with which the program ends if the job has not ended by then
        self.at_end: Callable[[], object] | None = None  # called once the job has ended
        _writers.add(self)

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return not self._ended.is_set()

    def start(self, job: Callable[[], object]) -> None:
        """Start a job, after the end of the one before, whose failure is raised."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), daemon=True, name="purestep-checkpoint")
        self._ended.clear()
        try:
            self._thread.start()
        except BaseException:
            self._ended.set()
            raise

    def check(self) -> None:
        """Raise the failure of a job that has ended, if it was not raised before."""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def wait(self) -> None:
        """Wait for the end of the job that is under way, and raise its failure."""
        self._ended.wait()  # a join that a signal interrupts takes the thread for one that has ended
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            # Its frames hold the whole state, and this thread's would be kept with it.
            self._failed = error.with_traceback(None)
        finally:
            self._ended.set()
            if self.at_end is not None:
                self.at_end()


def _end() -> None:
    """Let jobs end before the interpreter does: a thread in the middle of one would abort the process."""
    for writer in list(_writers):
        if writer.busy and writer.exit_code is not None:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(writer.exit_code)
        try:
            writer.wait()
        except Exception as error:
            traceback.print_exception(error)


# While threads can still be started, as a write does; the interpreter's other hooks come after that.
getattr(threading, "_register_atexit", atexit.register)(_end)


def _room_for(tensor: Tensor, before: Tensor | None) -> Tensor:
    pinned = tensor.device.type == "cuda"
    if before is not None and (before.shape, before.dtype) == (tensor.shape, tensor.dtype):
        return before
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
