"""Pipelines: a source read in an order, as a stream of TensorDict batches, carried out by torchdata.nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from tensordict import TensorDictBase

from purestep._checks import integer
from purestep.data._making import MakeFromSource, OnError
from purestep.data._plans import OrderPlan
from purestep.data._stream import Stream, Work
from purestep.data.orders import IndexOrder
from purestep.data.sources import Source

Transform = Callable[..., TensorDictBase]
_METHODS = ("thread", "process")
_ON_ERROR = ("raise", "skip")


def pipeline(
    source: Source,
    order: IndexOrder,
    *,
    batch_size: int,
    transform: Transform | None = None,
    workers: int = 0,
    method: Literal["thread", "process"] = "thread",
    prefetch: int = 2,
    pin_memory: bool | Literal["auto"] = "auto",
    device: torch.device | str | None = None,
    in_order: bool = True,
    drop_last: bool = False,
    epochs: int | None = None,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    on_error: OnError = "raise",
    timeout: float = 0,
) -> Pipeline:
    """Return an iterable of TensorDict batches: ``source`` read in ``order``.

    The batches depend on ``source``, ``order``, ``batch_size``, ``transform``, ``drop_last``, ``seed``, ``rank`` and
    ``world`` alone; the other arguments say where and when they are made (and ``in_order=False``, in which order they
    come out).

    Args:
        source: anything with ``len(source)`` and ``source.fetch(indices) -> TensorDict``; see :class:`Source`.
        order: which example stands where, such as ``shuffled(len(source), seed=0)``. Where some of its positions count
            nothing (``order.padded``: a shard that was filled up), batches have a leaf ``weight``, 1 or 0.
        batch_size: examples in a batch. A batch never spans two epochs, so the last one of an epoch may be smaller.
        transform: a function of a whole batch, run where the batch is fetched. It returns a TensorDict of as many
            examples and may return other keys. One with a parameter ``keys`` gets a key for each example, int64 (n, 2).
        workers: threads or processes that fetch and transform, a batch each. The batches do not depend on them.
        method: ``"thread"``, for what releases Python's lock as decoders do, and starts at once; ``"process"``, for
            Python code. Processes get a copy of ``source`` and ``transform``, and stay until the pipeline is gone.
        prefetch: finished batches that may wait for the loop, beyond the ``2 * workers`` that the threads hold; with
            processes, the batches under way in each (one at least). With ``workers=0`` one thread makes them. With both
            0 all happens in the loop's own thread; so it does with ``workers=0`` for a source in memory, as passing a
            batch between threads takes longer than selecting it.
        pin_memory: whether batches pass through page-locked memory; ``"auto"``: when they go from the CPU to CUDA.
        device: where the batches go; None leaves them where the source puts them.
        in_order: False hands out whichever batch is ready first. Resuming is exact all the same: each batch of an epoch
            comes once, and the state lists those that came out of turn.
        drop_last: leave out an epoch's last batch when it is smaller than ``batch_size`` (times ``world``).
        epochs: the epochs of one pass, or None for a stream without end, which a training loop stops by its steps.
        seed: of the keys, which are functions of (seed, epoch, position) and so of neither workers, ranks nor batches.
        rank, world: of each ``batch_size * world`` positions this pipeline takes every ``world``-th from ``rank`` on.
            All ranks hand out as many batches. The last of an epoch may be smaller for some, and empty, rather than
            repeat an example: a :class:`purestep.Mean` weighs it by what it holds.
        on_error: what is done about an example whose ``fetch`` raises :class:`DecodeError` (a broken file):
            ``"raise"``, or ``"skip"``: it is left out of its batch, and ``pipeline.skipped`` counts it.
        timeout: seconds to wait for a batch from a process; 0: for ever.

    Raises:
        TypeError: an argument is of the wrong type (a source without ``fetch``, a ``workers`` that is no int).
        ValueError: a number is out of range, the order is empty or goes beyond the source, or ``drop_last`` would
            leave nothing of an epoch.
    """
    _check_source_and_order(source, order)
    integer("batch_size", batch_size, minimum=1)
    integer("workers", workers, minimum=0)
    integer("prefetch", prefetch, minimum=0)
    integer("seed", seed, minimum=0)
    if integer("rank", rank, minimum=0) >= integer("world", world, minimum=1):
        raise ValueError(f"rank must be below world, {world}, got {rank}")
    if epochs is not None:
        integer("epochs", epochs, minimum=1)
    _check_choice("method", method, _METHODS)
    _check_choice("on_error", on_error, _ON_ERROR)
    check_timeout(timeout, waits=method == "process" and workers > 0, for_what="workers > 0 and method='process'")
    if transform is not None and not callable(transform):
        raise TypeError(f"transform must be a function of a batch or None, got {transform!r}")
    if drop_last and batch_size * world > len(order):
        raise ValueError(
            f"batch_size must be at most {len(order) // world}, the length of the order"
            f"{f' over {world} ranks' if world > 1 else ''}, with drop_last=True (no batch would be left), "
            f"got {batch_size}"
        )
    target = None if device is None else torch.device(device)
    if not workers and getattr(source, "in_memory", False):
        prefetch = 0
    work = Work(workers, method, prefetch, _pinned(pin_memory, target, source), target, in_order, timeout)
    make = MakeFromSource(source, transform, seed, on_error)
    return Pipeline(OrderPlan(order, batch_size, drop_last, rank, world), make, work, epochs, seed)


class Pipeline(Stream):
    """What :func:`pipeline` returns: an iterable of TensorDicts of ``batch_size=[n]`` that knows where it is.

    **Iterating.** With ``epochs=None`` the pipeline is one endless stream: each ``for`` goes on after the last batch
    that was handed out, also after a ``break``. With ``epochs=k`` each ``for`` is one whole pass over k epochs, as
    with a DataLoader: the first pass reads epochs 0 to k - 1, the next one epochs k to 2k - 1 (a shuffled order is
    shuffled anew), and a pass that was left by ``break`` is not taken up again. Right after ``load_state_dict`` the
    first ``for`` is the rest of the pass that was saved. One iterator is live at a time: an older one raises.

    **State.** The state is the place after the last batch that was handed out, and the order's fingerprint. A program
    that loads it sees the batches, and the ends of its ``for`` loops, that the saving program would have seen,
    whatever ``workers``, ``prefetch`` or device it has; with another ``batch_size`` or ``world`` the same examples in
    the same order, cut and dealt into other batches.

    **Errors** that a fetch or a transform raises come out of the ``for`` unchanged, and the state still stands
    before the batch that failed: no batch is lost by them.
    """

    def __init__(self, plan: OrderPlan, make: MakeFromSource, work: Work, epochs: int | None, seed: int) -> None:
        super().__init__(plan, make, work, epochs, seed if make.draws else None, make.source)
        self.source = make.source
        self.order = plan.order
        self.batch_size = plan.batch_size

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches of one whole epoch."""
        return self._plan.batches_per_epoch()

    def __len__(self) -> int:
        """Return the number of batches of one whole pass; an endless pipeline raises TypeError."""
        if self.epochs is None:
            raise TypeError("a pipeline with epochs=None has no end; batches_per_epoch is the length of an epoch")
        return self.epochs * self.batches_per_epoch

    def __repr__(self) -> str:
        return f"pipeline({type(self.source).__name__}, {self.order!r}, batch_size={self.batch_size}, at {self._place})"


def _check_source_and_order(source: Source, order: IndexOrder) -> None:
    if not isinstance(source, Source):
        raise TypeError(
            f"source must have len(source) and source.fetch(indices), got {type(source).__name__}; "
            "for tensors in memory, from_tensors(...) makes one"
        )
    if not isinstance(order, IndexOrder):
        raise TypeError(f"order must be an IndexOrder such as shuffled(len(source), seed=0), got {order!r}")
    if len(order) == 0:
        raise ValueError(f"order must hold at least one position, got {order!r}")
    if order.bound > len(source):
        raise ValueError(
            f"order must keep within the source's {len(source)} examples, got {order!r}, "
            f"whose indices reach {order.bound - 1}"
        )


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def check_timeout(timeout: Any, *, waits: bool, for_what: str) -> None:
    """Raise where ``timeout`` is no number of seconds, or nothing waits for so long."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, got {timeout!r} of type {type(timeout).__name__}")
    if not (math.isfinite(timeout) and timeout >= 0):
        raise ValueError(f"timeout must be seconds of at least 0 (0: for ever), got {timeout!r}")
    if timeout and not waits:
        raise ValueError(f"timeout must be 0 without worker processes to wait for ({for_what}), got {timeout!r}")


def _pinned(pin_memory: bool | Literal["auto"], device: torch.device | None, source: Source) -> bool:
    if isinstance(pin_memory, bool):
        if pin_memory and not torch.cuda.is_available():
            raise ValueError("pin_memory=True needs a CUDA device, and torch finds none: use 'auto' or False")
        return pin_memory
    if pin_memory != "auto":
        raise ValueError(f"pin_memory must be True, False or 'auto', got {pin_memory!r}")
    there_already = getattr(source, "device", None)
    return device is not None and device.type == "cuda" and (there_already is None or there_already.type == "cpu")
