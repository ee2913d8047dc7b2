"""Streams: the batches of a plan, made in the loop, in threads or in processes, with a state that is a place.

    blocks of indices  →  make (in threads or processes)  →  wait in a queue  →  pinned memory  →  the loop

Each batch travels with the place where it ends, so the state of a stream is the place of the last batch that the loop
has seen, whatever the workers have made ready since. torchdata's own states, which follow the graph and the settings of
its threads, are not used: its snapshots are off, and each pass builds a new graph that starts at its place.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torchdata.nodes import BaseNode, ParallelMapper, PinMemory, Prefetcher

from purestep._checks import integer
from purestep.data._making import Made
from purestep.data._plans import Block, Place, Plan, Span
from purestep.data._workers import Pool, Processes, Work

_open: weakref.WeakSet[Generator[Any]] = weakref.WeakSet()


@atexit.register
def _close() -> None:
    """Stop the threads of iterators that are still held: torch aborts a process that ends while they run."""
    for batches in list(_open):
        with suppress(ValueError):  # it is running in some other thread
            batches.close()


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_note_fork)


def _settle_threads() -> None:
    """Make torch's threads ready for those of the workers."""
    global _forked
    # torch reads its thread count at a thread's first use of it. A worker sets its own to one, and this thread would
    # inherit that if it had not read it before.
    threads = torch.get_num_threads()
    if _forked:
        # A forked process has a pool without threads, which torch replaces at the next thread's first use: two at once
        # are its "Invalid thread pool!". Setting the count replaces it here.
        torch.set_num_threads(threads)
        _forked = False


def _let_go(graph: list[BaseNode[Made]]) -> None:
    """Drop a graph that has made all its batches in a thread of its own: torchdata's threads look at their queues every
    0.1 s for whether they are to end, and who drops them waits for that."""
    threading.Thread(target=graph.clear, name="purestep-data-end").start()


class Stream:
    """What :class:`Pipeline` and :class:`Loader` share: iterating, and the state."""

    def __init__(
        self, plan: Plan, make: Callable[[Block], Made], work: Work, epochs: int | None, seed: int | None, dataset: Any
    ) -> None:
        self.epochs = epochs
        self.skipped = 0
        self._plan = plan
        self._make = make
        self._work = work
        self._seed = seed  # where something is a function of it
        self._dataset = dataset
        self._pool: Pool | None = None
        self._place = Place(0, 0)
        self._handed_out: list[Span] = []  # beyond the place, where batches come out of turn
        self._digest = ""
        self._begun = False  # whether this pass has handed out a batch since it started or a state was loaded
        self._live: object = None  # the iterator that may go on

    def __iter__(self) -> Iterator[Any]:
        if self._begun and self.epochs is not None:
            self._go_to(Place(self._pass_end(), 0))
        self._begun = False
        self._live = live = object()
        batches = self._batches(live)
        _open.add(batches)
        return batches

    def __bool__(self) -> bool:
        return True  # a truth value must not ask an endless stream for its length

    def close(self) -> None:
        """End the worker processes, if there are any; the next ``for`` starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last batch that was handed out, as ints, strings and lists of them.

        ``epoch``; ``position``, the examples of it that were handed out (to all ranks); what identifies the order.
        Where it applies: ``seed``, of what is drawn for the examples; ``skipped``, their number; ``handed_out``, the
        batches beyond the place, with ``in_order=False``; ``digest``, of a sampler's indices.
        """
        state: dict[str, Any] = {**self._place._asdict(), **self._plan.identity()}
        if self._seed is not None:
            state["seed"] = self._seed
        if self.skipped:
            state["skipped"] = self.skipped
        if self._handed_out:
            state["handed_out"] = [list(span) for span in self._handed_out]
        if self._digest:
            state["digest"] = self._digest
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the place of a state; the next ``for`` starts there, and one that is under way raises.

        Raises:
            TypeError: ``state`` is not a mapping, or its numbers are not ints.
            ValueError: a key is missing, the state is of another order or seed, or its place is not in the order.
        """
        wanted = ("epoch", "position", *self._plan.identity())
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be the dict that state_dict() returned, got {state!r}")
        if missing := [key for key in wanted if key not in state]:
            raise ValueError(f"state must have the keys {wanted} of state_dict(), got one without {missing}")
        self._plan.check(state)
        if self._seed is not None and state.get("seed") != self._seed:
            raise ValueError(
                f"state must be of seed={self._seed}, which the examples' random numbers are drawn from here, got one "
                f"of seed={state.get('seed')}"
            )
        place = Place(
            integer("state['epoch']", state["epoch"], minimum=0),
            integer("state['position']", state["position"], minimum=0),
        )
        handed_out = [_span(entry) for entry in state.get("handed_out", ())]
        self.skipped = integer("state['skipped']", state.get("skipped", 0), minimum=0)
        self._place, self._handed_out, self._digest = place, handed_out, str(state.get("digest", ""))
        self._begun, self._live = False, None

    def _batches(self, live: object) -> Generator[Any]:
        _settle_threads()
        stop = None if self.epochs is None else self._pass_end()
        blocks = self._plan.blocks(self._place, tuple(self._handed_out), self._digest, stop)
        try:
            yield from self._handing_out(live, self._graph(blocks))
        finally:
            if not self._work.persistent and self._live is live:
                self.close()

    def _handing_out(self, live: object, made_batches: BaseNode[Made]) -> Generator[Any]:
        work, ended, nothing_left = self._work, set(), 0
        while self._live is live:
            made = next(made_batches, None)
            if made is not None and made.exhausted:
                ended.add(made.block.worker)
                if len(ended) < max(work.workers, 1):
                    continue
            if made is None or made.exhausted:
                if self.epochs is not None:
                    self._go_to(Place(self._pass_end(), 0))
                self._begun = False
                graph = [made_batches]
                del made_batches  # so that the list alone holds it
                _let_go(graph)
                return
            if made.error is not None:
                del made_batches  # stops the threads now; the error's traceback would keep them
                raise made.error
            if made.block.discard:
                continue
            self._advance(made)
            if made.batch is None and made.skipped:  # a collate_fn may return None, which is a batch
                nothing_left += 1
                self._check_something_is_left(nothing_left, made.skipped)
                continue
            nothing_left = 0
            yield made.batch if work.device is None else made.batch.to(work.device, non_blocking=work.pinned)
        raise RuntimeError(
            "this iterator is over: its pipeline was iterated again or has loaded a state since; "
            "for two at a time, make two pipelines"
        )

    def _graph(self, blocks: Iterator[Block]) -> BaseNode[Made]:
        work = self._work
        node: BaseNode[Made]
        if work.workers and work.method == "process":
            node = Processes(blocks, self._started(), work)
        else:
            node = ParallelMapper(
                Blocks(blocks), self._make, num_workers=work.workers, in_order=work.in_order, snapshot_frequency=0
            )
            if work.prefetch:
                node = Prefetcher(node, prefetch_factor=work.prefetch, snapshot_frequency=0)
        return PinMemory(node, snapshot_frequency=0) if work.pinned else node

    def _started(self) -> Pool:
        if self._pool is None or not self._pool.close.alive:
            self._pool = Pool(self._make, self._work, seed=self._seed or 0, dataset=self._dataset)
        return self._pool

    def _advance(self, made: Made) -> None:
        block: Block = made.block
        self._begun = True
        self.skipped += len(made.skipped)
        if self._work.in_order:
            self._place, self._digest = Place(block.epoch, block.end), block.digest
            if self._handed_out:
                self._handed_out = [span for span in self._handed_out if span[:2] >= self._place]
        else:
            self._handed_out = sorted([*self._handed_out, (block.epoch, block.start, block.end)])
        self._close_the_gap()

    def _close_the_gap(self) -> None:
        """Move the place over the batches right after it that were handed out before."""
        while self._handed_out:
            epoch, start, end = self._handed_out[0]
            follows = (epoch, start) == self._place
            if not follows and not (epoch == self._place.epoch + 1 and start == 0 and self._plan.ends(self._place)):
                return
            self._place = Place(epoch, end)
            del self._handed_out[0]

    def _check_something_is_left(self, batches: int, skipped: tuple[str, ...]) -> None:
        if batches >= self._plan.batches_per_epoch():
            raise ValueError(
                "source must hold examples that can be decoded, and with on_error='skip' a whole epoch was skipped, "
                f"its last example because {skipped[-1]}"
            )

    def _go_to(self, place: Place) -> None:
        self._place, self._handed_out, self._digest = place, [], ""

    def _pass_end(self) -> int:
        """The epoch at which the pass of the present place ends: a multiple of ``epochs``."""
        assert self.epochs is not None
        return (self._place.epoch // self.epochs + 1) * self.epochs


class Blocks(BaseNode[Block]):
    """The blocks of a plan, for torchdata. They are generated once: a stream that starts elsewhere makes new ones."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        super().__init__()
        self.blocks = blocks

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)

    def next(self) -> Block:
        return next(self.blocks)

    def get_state(self) -> dict[str, Any]:
        return {}


def _span(entry: Sequence[Any]) -> Span:
    if not isinstance(entry, (list, tuple)) or len(entry) != 3:
        raise ValueError(f"state['handed_out'] must be a list of [epoch, start, end], got {entry!r} in it")
    epoch, start, end = (integer("state['handed_out']", number, minimum=0) for number in entry)
    return epoch, start, end
