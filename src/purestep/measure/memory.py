"""The memory that a function needs at its peak."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from purestep import _checks
from purestep.measure import _format
from purestep.measure._arguments import device_of, name_of, named_tensors, naming
from purestep.measure._machine import check_device, cuda_in_use

_M_MMAP_THRESHOLD = -3  # of <malloc.h>
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class MemoryUse:
    """The peak while a function ran, in bytes.

    Attributes:
        peak: the most there was: of memory that torch had allocated on a CUDA device, of resident memory on the CPU
            (there the interpreter and torch are in it).
        before: how much there was just before the call, its arguments among it.
    """

    peak: int
    before: int

    @property
    def added(self) -> int:
        """What the call needed beyond its arguments: results and intermediates, in bytes."""
        return self.peak - self.before

    def __repr__(self) -> str:
        return f"MemoryUse(peak {_format.size(self.peak)}, {_format.size(self.added)} of it added by the call)"


def memory(
    fn: Callable[..., Any],
    *args: Any,
    device: torch.device | str | None = None,
    warmup: int = 1,
    start: Literal["spawn", "fork"] = "spawn",
    timeout: float = 600.0,
) -> MemoryUse:
    """Return the memory of a call at its peak.

    On CUDA: what torch's allocator has handed out, in this process. On the CPU: resident memory in a process of its
    own, where nobody else allocates, and where no memory that an earlier call left behind is taken again unseen. This
    process is started afresh (``"spawn"``), and gets the function and its arguments by pickle; threads are as here.
    ``"fork"`` takes any function, a closure or one of a notebook as well, and is rougher: the process has this one's
    heap, whose holes are used again uncounted or keep what would have been given back. Torch is held to one thread
    there, since a forked process has lost the threads of the pool.

    Args:
        fn, args: the function, and what it is called with.
        device: by default where the arguments are; to be said where CUDA is in use and no argument is a tensor.
        warmup: calls beforehand, which load libraries and compile; 0 for a function that takes its arguments over.
        start: how the process is started on the CPU.
        timeout: seconds until the process is ended and ``TimeoutError`` raised.

    Raises:
        TypeError, ValueError: an option out of range, a device that is not here, or a function that cannot be pickled.
        RuntimeError: the system has no ``/proc`` to read the peak from, or the process ended without an answer.
        Exception: what the function raises, with a note.
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function, got {fn!r} of type {type(fn).__name__}")
    _checks.integer("warmup", warmup, minimum=0)
    _checks.number("timeout", timeout, above=0)
    if start not in ("spawn", "fork"):
        raise ValueError(f"start must be 'spawn' or 'fork', got {start!r}")
    found = device if device is not None else device_of(named_tensors(args, "args"))
    if found is None and cuda_in_use():
        raise ValueError(
            f"device must be said where fn takes no tensor and this process uses CUDA, got None with {name_of(fn)}: "
            "device='cuda' or device='cpu'"
        )
    where = check_device("device", "cpu" if found is None else found)
    if where.type == "cuda":
        with naming(name_of(fn)):
            return _on_cuda(fn, args, where, warmup)
    return _in_a_process(fn, args, warmup, start, timeout)


def _on_cuda(fn: Callable[..., Any], args: tuple[Any, ...], device: torch.device, warmup: int) -> MemoryUse:
    for _ in range(warmup):
        fn(*args)
    with peak_of(device) as use:
        fn(*args)
    return use()


@contextlib.contextmanager
def peak_of(device: torch.device) -> Iterator[Callable[[], MemoryUse]]:
    """Watch the peak in this process; the function given is called once the block is left.

    Raises:
        RuntimeError: on the CPU, where the system cannot say (it needs Linux's ``/proc``).
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before, read = torch.cuda.memory_allocated(device), _cuda_peak
    else:
        # Freed memory goes back to the system first: otherwise a call takes it up again and nothing is seen to grow.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        try:
            _RESET.write_text("5")
            before, read = _resident("VmRSS"), _cpu_peak
        except OSError as error:
            raise RuntimeError(f"peak memory on the CPU is read from /proc, as on Linux: {error}") from error
    use: list[MemoryUse] = []
    yield lambda: use[0]
    use.append(MemoryUse(max(read(device), before), before))


def _cuda_peak(device: torch.device) -> int:
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def _cpu_peak(device: torch.device) -> int:
    return _resident("VmHWM")


def _resident(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _in_a_process(fn: Callable[..., Any], args: tuple[Any, ...], warmup: int, start: str, timeout: float) -> MemoryUse:
    if start == "spawn":
        content: Any = _pickled(fn, args)
    else:
        content = fn, args
    threads = torch.get_num_threads() if start == "spawn" else 1
    context = multiprocessing.get_context(start)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(theirs, content, warmup, threads), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout):
            raise TimeoutError(f"{name_of(fn)} took longer than timeout={timeout:g} seconds in its process")
        answer = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"the process that ran {name_of(fn)} ended without an answer (exit code {process.exitcode}; -9 is out of "
            "memory): where a script measures, what it does must stand under `if __name__ == '__main__':`"
        ) from None
    finally:
        if process.is_alive() and not ours.closed:
            process.join(timeout=0.5)
        process.kill()
        process.join()
        ours.close()
    if isinstance(answer, BaseException):
        with naming(f"{name_of(fn)}, in a process of its own,"):
            raise answer
    return answer


def _pickled(fn: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((fn, args))
    except Exception as error:
        raise ValueError(
            f"fn and args must be picklable to be sent to a process of their own, got {name_of(fn)}: {error}. Define "
            "the function at the top of a module, or give start='fork'"
        ) from error


def _unpickled(content: bytes) -> Any:
    try:
        return pickle.loads(content)
    except (AttributeError, ImportError) as error:  # of a notebook, or of a program read from standard input
        raise ValueError(
            f"fn and args must be of modules that a new process can import, got {type(error).__name__}: {error}. "
            "Define the function in a file, or give start='fork'"
        ) from error


def _measure(answer: Connection, content: Any, warmup: int, threads: int) -> None:
    """In the process: call, and send a :class:`MemoryUse` or what was raised."""
    torch.set_num_threads(threads)
    # glibc otherwise learns from the first large block that is freed to keep such blocks: what the warm-up gave back
    # would stay, and pieces of it be counted.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 128 * 1024)
    try:
        fn, args = _unpickled(content) if isinstance(content, bytes) else content
        for _ in range(warmup):
            fn(*args)
        with peak_of(torch.device("cpu")) as use:
            result = fn(*args)
        del result
        answer.send(use())
    except BaseException as error:
        try:
            pickle.loads(pickle.dumps(error))
            answer.send(error)
        except Exception:  # an exception of the user's that does not survive pickle
            answer.send(RuntimeError(f"{type(error).__name__}: {error}"))
    sys.stdout.flush()
