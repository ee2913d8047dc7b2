"""Worker processes: each has a pipe of its own, over which blocks go and batches come back, in order.

torchdata's own processes hang when one of them dies, and cannot be told which of them makes what. Tensors come back
through shared memory, as torch.multiprocessing passes them.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

import torch
import torch.multiprocessing  # it registers how tensors are pickled
import torch.utils.data._utils.worker as torch_worker
from torchdata.nodes import BaseNode

from purestep.data._globals import number_of, seed_globals
from purestep.data._making import Made
from purestep.data._plans import Block

_ASKS_WHETHER_THE_PARENT_LIVES = 2.0  # seconds


class WorkerDiedError(RuntimeError):
    """A worker process ended without handing over its batch."""


class Work(NamedTuple):
    """Where and when batches are made.

    Attributes:
        workers: 0: in the loop's own thread, or in one thread ahead of it.
        method: what the workers are.
        prefetch: batches that wait for the loop; for processes, batches under way in each.
        timeout: seconds to wait for a process; 0: for ever.
        persistent: whether processes outlive a pass.
        context: how processes are started; None: as Python does.
        begin: called with its number in each process as it starts.
    """

    workers: int = 0
    method: Literal["thread", "process"] = "thread"
    prefetch: int = 2
    pinned: bool = False
    device: torch.device | None = None
    in_order: bool = True
    timeout: float = 0
    persistent: bool = True
    context: str | None = None
    begin: Callable[[int], Any] | None = None


class Pool:
    """Processes that each hold a copy of ``make`` and call it on the blocks they get."""

    def __init__(self, make: Callable[[Block], Made], work: Work, *, seed: int = 0, dataset: Any = None) -> None:
        chosen = multiprocessing.get_context(work.context)
        self.connections: list[Connection] = []
        self.processes: list[Any] = []
        self.tickets = itertools.count()
        for number in range(work.workers):
            ours, theirs = chosen.Pipe()
            # A forked process inherits the ends of those before it, which would keep their pipes open.
            inherited = [*self.connections, ours] if chosen.get_start_method() == "fork" else []
            settings = (theirs, inherited, make, number, work, seed, dataset)
            process = chosen.Process(target=_work, args=settings, daemon=True, name=f"purestep-data-{number}")  # type: ignore[attr-defined]
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)
        self.close = weakref.finalize(self, _end, self.connections, self.processes)

    def send(self, worker: int, block: Block) -> int:
        ticket = next(self.tickets)
        try:
            self.connections[worker].send_bytes(pickle.dumps((ticket, _written(block))))
        except OSError:
            raise self._died(worker, block) from None
        return ticket

    def receive(self, worker: int, ticket: int, block: Block, timeout: float) -> Made:
        """Return what the worker made for a ticket; what it made for earlier ones, that nobody waits for, is left."""
        while True:
            connection, process = self.connections[worker], self.processes[worker]
            if not connection.poll(0):
                ready = wait([connection, process.sentinel], timeout or None)
                if not ready:
                    raise self.late(worker, block, timeout)
            try:
                if not connection.poll(0):
                    raise EOFError
                message = connection.recv_bytes()
            except (EOFError, OSError):  # the latter where it ended amid a message
                raise self._died(worker, block) from None
            try:
                got, made = pickle.loads(message)
            except (EOFError, ConnectionResetError, FileNotFoundError, ConnectionRefusedError):
                raise self._died(worker, block) from None  # with the memory that the message speaks of
            if got == ticket:
                return made

    def ready(self, workers: Iterable[int], timeout: float) -> list[int]:
        """Wait until one of the workers has something to say, and return which have: none, if it took too long."""
        waiting: dict[Any, int] = {self.connections[number]: number for number in workers}
        waiting |= {self.processes[number].sentinel: number for number in workers}
        return sorted({waiting[found] for found in wait(list(waiting), timeout or None)})

    def late(self, worker: int, block: Block, timeout: float) -> RuntimeError:
        return RuntimeError(
            f"timeout={timeout:g} seconds went by while worker {worker} (pid {self.processes[worker].pid}) made "
            f"{_named(block)}: raise timeout, or look at what that batch reads"
        )

    def _died(self, worker: int, block: Block) -> WorkerDiedError:
        process = self.processes[worker]
        process.join(1.0)
        code = process.exitcode
        how = "is gone" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            with suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
        hint = ", which the system does to a process that uses too much memory" if code == -signal.SIGKILL else ""
        self.close()
        who = f"worker {worker} (pid {process.pid})"
        return WorkerDiedError(f"{who} {how}{hint}, before it handed over {_named(block)}")


class Processes(BaseNode[Made]):
    """The batches of ``blocks``, made by a pool."""

    def __init__(self, blocks: Iterator[Block], pool: Pool, work: Work) -> None:
        super().__init__()
        self.blocks = blocks
        self.pool = pool
        self.work = work
        self._under_way: list[deque[tuple[int, Block]]] = [deque() for _ in pool.processes]
        self._asked: deque[int] = deque()  # the workers, in the order of their blocks

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)

    def get_state(self) -> dict[str, Any]:
        return {}

    def next(self) -> Made:
        self._fill()
        if not self._asked:
            raise StopIteration
        worker = self._asked[0] if self.work.in_order else self._first_ready()
        self._asked.remove(worker)
        ticket, block = self._under_way[worker].popleft()
        made = self.pool.receive(worker, ticket, block, self.work.timeout)
        return made._replace(block=block.place_only())

    def _fill(self) -> None:
        count = len(self._under_way)
        while len(self._asked) < max(self.work.prefetch, 1) * count:
            block = next(self.blocks, None)
            if block is None:
                return
            worker = min(range(count), key=lambda number: len(self._under_way[number]))
            worker = worker if block.worker is None else block.worker
            self._under_way[worker].append((self.pool.send(worker, block), block))
            self._asked.append(worker)

    def _first_ready(self) -> int:
        first = {number: blocks[0] for number, blocks in enumerate(self._under_way) if blocks}
        found = self.pool.ready(first, self.work.timeout)
        oldest = min(found or first, key=lambda number: first[number][0])
        if not found:
            raise self.pool.late(oldest, first[oldest][1], self.work.timeout)
        return oldest


def _work(
    connection: Connection,
    inherited: list[Connection],
    make: Callable[[Block], Made],
    number: int,
    work: Work,
    seed: int,
    dataset: Any,
) -> None:
    """Make batches until the parent says that it is enough, or is gone."""
    for other in inherited:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer
    messages: SimpleQueue[bytes | None] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, messages, os.getppid()), daemon=True).start()
    torch.set_num_threads(1)
    seed_globals(number_of(seed, number))
    torch_worker._worker_info = torch_worker.WorkerInfo(
        id=number, num_workers=work.workers, seed=seed + number, dataset=dataset
    )
    failed: Exception | None = None
    try:
        if work.begin is not None:
            work.begin(number)
    except Exception as error:
        error.add_note(f"in worker_init_fn, in worker {number}")
        failed = error
    with suppress(BrokenPipeError, ConnectionResetError):
        while (message := messages.get()) is not None:
            ticket, written = pickle.loads(message)
            block = _read(written)
            made = make(block) if failed is None else Made(None, failed, block)
            connection.send_bytes(_packed(ticket, made, number))


def _receive(connection: Connection, messages: SimpleQueue[bytes | None], parent: int) -> None:
    """Put what the parent sends into a queue, and None once it is gone.

    In a thread, since a worker that reads only when it has sent its batch waits for ever for a parent that reads only
    when it has sent its blocks: either may be more than the pipe holds.
    """
    with suppress(EOFError, OSError):
        while True:
            if connection.poll(_ASKS_WHETHER_THE_PARENT_LIVES):
                messages.put(connection.recv_bytes())
            elif os.getppid() != parent:
                break
    messages.put(None)


def _written(block: Block) -> Block:
    """Return the block with arrays for tensors, which go through the pipe itself, being small, not by shared memory."""
    return Block._make(part.numpy() if isinstance(part, torch.Tensor) else part for part in block)


def _read(block: Block) -> Block:
    return Block._make(torch.from_numpy(part) if type(part).__module__ == "numpy" else part for part in block)


def _packed(ticket: int, made: Made, number: int) -> bytes:
    if made.error is not None:
        trail = "".join(traceback.format_exception(made.error)).rstrip()
        made.error.add_note(f"raised in worker {number}:\n{trail}")
        made = made._replace(error=_travelling(made.error))
    made = made._replace(block=None)
    try:
        return bytes(ForkingPickler.dumps((ticket, made)))
    except Exception as error:
        refusal = TypeError(f"a batch must be of what can be passed between processes, and it is not: {error}")
        return bytes(ForkingPickler.dumps((ticket, made._replace(batch=None, error=refusal))))


def _travelling(error: Exception) -> Exception:
    """Return the error, or one that says the same where it cannot be passed between processes."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        stand_in = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", []):
            stand_in.add_note(note)
        return stand_in


def _named(block: Block) -> str:
    return f"the batch of positions {block.start} to {block.end - 1} of epoch {block.epoch}"


def _end(connections: list[Connection], processes: list[Any]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(5.0)
        if process.exitcode is None:
            process.kill()
    for connection in connections:
        connection.close()
