"""Pipelines: a source read in an order, as a stream of TensorDict batches, carried out by torchdata.nodes.

    blocks of indices  →  fetch and transform (in threads)  →  wait in a queue  →  pinned memory  →  the loop

Each batch travels with the place where it ends, so the state of a pipeline is the place of the last batch that the loop
has seen, whatever the threads have made ready since. torchdata's own states, which follow the graph and the settings of
its threads, are not used: its snapshots are off, and each pass builds a new graph that starts at its place.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import torch
from tensordict import TensorDictBase, is_tensor_collection
from torch import Tensor
from torchdata.nodes import BaseNode, ParallelMapper, PinMemory, Prefetcher

from purestep._checks import integer
from purestep.data.orders import IndexOrder
from purestep.data.sources import Source

Transform = Callable[[TensorDictBase], TensorDictBase]

# An order is asked for many batches at a time, for up to some thousands of positions its cost is by the call. The first
# request is for one batch and each next one is four times as long, so that the first batch does not wait for others.
_POSITIONS_AT_ONCE = 2**14

_open: weakref.WeakSet[Generator[TensorDictBase]] = weakref.WeakSet()


@atexit.register
def _close() -> None:
    """Stop the threads of iterators that are still held: torch aborts a process that ends while they run."""
    for batches in list(_open):
        with suppress(ValueError):  # it is running in some other thread
            batches.close()


def pipeline(
    source: Source,
    order: IndexOrder,
    *,
    batch_size: int,
    transform: Transform | None = None,
    workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool | Literal["auto"] = "auto",
    device: torch.device | str | None = None,
    drop_last: bool = False,
    epochs: int | None = None,
) -> Pipeline:
    """Return an iterable of TensorDict batches: ``source`` read in ``order``.

    The batches depend on ``source``, ``order``, ``batch_size``, ``transform`` and ``drop_last`` alone; the other
    arguments say where and when they are made.

    Args:
        source: anything with ``len(source)`` and ``source.fetch(indices) -> TensorDict``; see :class:`Source`.
        order: which example stands where, such as ``shuffled(len(source), seed=0)``.
        batch_size: examples in a batch. A batch never spans two epochs, so the last one of an epoch may be smaller.
        transform: a function of a whole batch, run where the batch is fetched. It returns a TensorDict of as many
            examples and may return other keys.
        workers: threads that fetch and transform, a batch each. The order of the batches does not depend on them.
        prefetch: finished batches that may wait for the loop, beyond the ``2 * workers`` that the workers hold. With
            ``workers=0`` one thread makes them. With both 0 all happens in the loop's own thread; so it does with
            ``workers=0`` for a source in memory, as passing a batch between threads takes longer than selecting it.
        pin_memory: whether batches pass through page-locked memory; ``"auto"``: when they go from the CPU to CUDA.
        device: where the batches go; None leaves them where the source puts them.
        drop_last: leave out an epoch's last batch when it is smaller than ``batch_size``.
        epochs: the epochs of one pass, or None for a stream without end, which a training loop stops by its steps.

    Raises:
        TypeError: an argument is of the wrong type (a source without ``fetch``, a ``workers`` that is no int).
        ValueError: a number is out of range, the order is empty or goes beyond the source, or ``drop_last`` would
            leave nothing of an epoch.
    """
    if not isinstance(source, Source):
        raise TypeError(
            f"source must have len(source) and source.fetch(indices), got {type(source).__name__}; "
            "for tensors in memory, from_tensors(...) makes one"
        )
    if not isinstance(order, IndexOrder):
        raise TypeError(f"order must be an IndexOrder such as shuffled(len(source), seed=0), got {order!r}")
    integer("batch_size", batch_size, minimum=1)
    integer("workers", workers, minimum=0)
    integer("prefetch", prefetch, minimum=0)
    if epochs is not None:
        integer("epochs", epochs, minimum=1)
    if transform is not None and not callable(transform):
        raise TypeError(f"transform must be a function of a batch or None, got {transform!r}")
    if len(order) == 0:
        raise ValueError(f"order must hold at least one position, got {order!r}")
    if order.bound > len(source):
        raise ValueError(
            f"order must keep within the source's {len(source)} examples, got {order!r}, "
            f"whose indices reach {order.bound - 1}"
        )
    if drop_last and batch_size > len(order):
        raise ValueError(
            f"batch_size must be at most {len(order)}, the length of the order, with drop_last=True "
            f"(no batch would be left), got {batch_size}"
        )
    target = None if device is None else torch.device(device)
    pinned = _pinned(pin_memory, target, source)
    return Pipeline(source, order, batch_size, transform, workers, prefetch, pinned, target, drop_last, epochs)


class Pipeline:
    """What :func:`pipeline` returns: an iterable of TensorDicts of ``batch_size=[n]`` that knows where it is.

    **Iterating.** With ``epochs=None`` the pipeline is one endless stream: each ``for`` goes on after the last batch
    that was handed out, also after a ``break``. With ``epochs=k`` each ``for`` is one whole pass over k epochs, as
    with a DataLoader: the first pass reads epochs 0 to k - 1, the next one epochs k to 2k - 1 (a shuffled order is
    shuffled anew), and a pass that was left by ``break`` is not taken up again. Right after ``load_state_dict`` the
    first ``for`` is the rest of the pass that was saved. One iterator is live at a time: an older one raises.

    **State.** The state is the place after the last batch that was handed out, and the order's fingerprint. A program
    that loads it sees the batches, and the ends of its ``for`` loops, that the saving program would have seen,
    whatever ``workers``, ``prefetch``, ``batch_size`` or device it has; with another ``batch_size`` the same examples
    in the same order, cut into other batches.

    **Errors** that a fetch or a transform raises come out of the ``for`` unchanged, and the state still stands
    before the batch that failed: no batch is lost by them.
    """

    def __init__(
        self,
        source: Source,
        order: IndexOrder,
        batch_size: int,
        transform: Transform | None,
        workers: int,
        prefetch: int,
        pinned: bool,
        device: torch.device | None,
        drop_last: bool,
        epochs: int | None,
    ) -> None:
        self.source = source
        self.order = order
        self.batch_size = batch_size
        self.transform = transform
        self.workers = workers
        self.prefetch = prefetch
        self.pinned = pinned
        self.device = device
        self.drop_last = drop_last
        self.epochs = epochs
        self._place = _Place(0, 0)
        self._begun = False  # whether this pass has handed out a batch since it started or a state was loaded
        self._live: object = None  # the iterator that may go on

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches of one whole epoch."""
        whole, rest = divmod(len(self.order), self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def __len__(self) -> int:
        """Return the number of batches of one whole pass; an endless pipeline raises TypeError."""
        if self.epochs is None:
            raise TypeError("a pipeline with epochs=None has no end; batches_per_epoch is the length of an epoch")
        return self.epochs * self.batches_per_epoch

    def __bool__(self) -> bool:
        return True  # a truth value must not ask an endless pipeline for its length

    def __repr__(self) -> str:
        return f"pipeline({type(self.source).__name__}, {self.order!r}, batch_size={self.batch_size}, at {self._place})"

    def __iter__(self) -> Iterator[TensorDictBase]:
        if self._begun and self.epochs is not None:
            self._place = _Place(self._pass_end(), 0)
        self._begun = False
        self._live = live = object()
        batches = self._batches(live)
        _open.add(batches)
        return batches

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last batch that was handed out, as ints and strings.

        ``epoch``; ``position``, the examples of it that were handed out; the ``order`` and its ``fingerprint``.
        """
        place = self._place._asdict()
        return {**place, "order": repr(self.order), "fingerprint": self.order.fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the place of a state; the next ``for`` starts there, and one that is under way raises.

        Raises:
            TypeError: ``state`` is not a mapping, or its numbers are not ints.
            ValueError: a key is missing, the state is of another order, or its place is not in the order.
        """
        wanted = ("epoch", "position", "order", "fingerprint")
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be the dict that state_dict() returned, got {state!r}")
        if missing := [key for key in wanted if key not in state]:
            raise ValueError(f"state must have the keys {wanted} of state_dict(), got one without {missing}")
        if state["fingerprint"] != self.order.fingerprint():
            raise ValueError(
                f"state must be of this pipeline's order {self.order!r} (fingerprint {self.order.fingerprint()}), "
                f"got one of {state['order']} (fingerprint {state['fingerprint']})"
            )
        epoch = integer("state['epoch']", state["epoch"], minimum=0)
        position = integer("state['position']", state["position"], minimum=0)
        if position > len(self.order):
            raise ValueError(f"state['position'] must be at most {len(self.order)}, got {position}")
        self._place, self._begun, self._live = _Place(epoch, position), False, None

    def _batches(self, live: object) -> Generator[TensorDictBase]:
        # torch reads its thread count at a thread's first use of it. A worker sets its own to one, and this thread
        # would inherit that if it had not read it before.
        torch.get_num_threads()
        stop = None if self.epochs is None else self._pass_end()
        made_batches = self._graph(stop)
        while self._live is live:
            try:
                made = next(made_batches)
            except StopIteration:
                self._place, self._begun = _Place(self._pass_end(), 0), False
                return
            if made.error is not None:
                del made_batches  # stops the threads now; the error's traceback would keep them
                raise made.error
            batch = made.batch if self.device is None else made.batch.to(self.device, non_blocking=self.pinned)
            self._place, self._begun = made.end, True
            yield batch
        raise RuntimeError(
            "this iterator is over: its pipeline was iterated again or has loaded a state since; "
            "for two at a time, make two pipelines"
        )

    def _graph(self, stop: int | None) -> BaseNode[_Made]:
        blocks = _Blocks(self.order, self.batch_size, self.drop_last, self._place, stop)
        make = _Make(self.source, self.transform)
        # In order, since a place says that everything before it was handed out.
        node: BaseNode[_Made] = ParallelMapper(
            blocks, make, num_workers=self.workers, in_order=True, method="thread", snapshot_frequency=0
        )
        if self.prefetch and (self.workers or not getattr(self.source, "in_memory", False)):
            node = Prefetcher(node, prefetch_factor=self.prefetch, snapshot_frequency=0)
        return PinMemory(node, snapshot_frequency=0) if self.pinned else node

    def _pass_end(self) -> int:
        """The epoch at which the pass of the present place ends: a multiple of ``epochs``."""
        assert self.epochs is not None
        return (self._place.epoch // self.epochs + 1) * self.epochs


class _Place(NamedTuple):
    """Before the example at ``position`` of ``epoch``; at the length of the order, the end of the epoch.

    The end of one epoch and the start of the next are two places, so that a state saved within the loop after the last
    batch, and one saved after the loop, each go on as they would have.
    """

    epoch: int
    position: int


class _Block(NamedTuple):
    """What travels to the workers: the indices of one batch, and the place where it ends."""

    indices: Tensor
    end: _Place


class _Made(NamedTuple):
    """What comes back: the batch, or the error raised in its place, to be raised again in the loop's thread."""

    batch: Any
    error: Exception | None
    end: _Place


class _Blocks(BaseNode[_Block]):
    """The indices of one batch after another, from ``start`` to the beginning of epoch ``stop``."""

    def __init__(self, order: IndexOrder, batch_size: int, drop_last: bool, start: _Place, stop: int | None) -> None:
        super().__init__()
        self.order = order
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.start = start
        self.stop = stop

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        self._place = self.start if initial_state is None else _Place(**initial_state)
        self._blocks = self._generate(self._place)

    def next(self) -> _Block:
        block = next(self._blocks)
        self._place = block.end
        return block

    def get_state(self) -> dict[str, Any]:
        return self._place._asdict()

    def _generate(self, place: _Place) -> Iterator[_Block]:
        size = self.batch_size
        at_once = size
        epoch, position = place
        while self.stop is None or epoch < self.stop:
            left = len(self.order) - position
            if self.drop_last:
                left -= left % size
            if left == 0:
                epoch, position = epoch + 1, 0
                continue
            positions = torch.arange(position, position + min(at_once, left))
            for indices in self.order(epoch, positions).split(size):
                position += len(indices)
                yield _Block(indices, _Place(epoch, position))
            if 4 * at_once <= _POSITIONS_AT_ONCE:
                at_once *= 4


class _Make:
    """Turns a block of indices into a batch. An error is a result too, or it would lose its type on the way."""

    def __init__(self, source: Source, transform: Transform | None) -> None:
        self.source = source
        self.transform = transform

    def __call__(self, block: _Block) -> _Made:
        count = len(block.indices)
        try:
            batch = self.source.fetch(block.indices)
            _check_batch(batch, count, f"{type(self.source).__name__}.fetch")
            if self.transform is not None:
                batch = self.transform(batch)
                _check_batch(batch, count, "transform")
        except Exception as error:
            error.add_note(f"in the batch that ends at position {block.end.position} of epoch {block.end.epoch}")
            return _Made(None, error, block.end)
        return _Made(batch, None, block.end)


def _check_batch(batch: Any, count: int, where: str) -> None:
    if not is_tensor_collection(batch):
        raise TypeError(f"{where} must return a TensorDict, got {type(batch).__name__}")
    if batch.batch_size != (count,):
        raise ValueError(f"{where} must return a TensorDict of batch_size [{count}], got {list(batch.batch_size)}")


def _pinned(pin_memory: bool | Literal["auto"], device: torch.device | None, source: Source) -> bool:
    if isinstance(pin_memory, bool):
        if pin_memory and not torch.cuda.is_available():
            raise ValueError("pin_memory=True needs a CUDA device, and torch finds none: use 'auto' or False")
        return pin_memory
    if pin_memory != "auto":
        raise ValueError(f"pin_memory must be True, False or 'auto', got {pin_memory!r}")
    there_already = getattr(source, "device", None)
    return device is not None and device.type == "cuda" and (there_already is None or there_already.type == "cpu")
