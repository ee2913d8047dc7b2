"""Loaders: torch's DataLoader, argument for argument, over a stream whose state is exact.

from purestep.data import loader as DataLoader      # what a loop has to change
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sized
from typing import Any

import torch
from tensordict import is_tensor_collection
from torch.utils.data import IterableDataset, TensorDataset

from purestep._checks import integer
from purestep.data._examples import MakeFromDataset, MakeFromIterable, MakeFromTensors
from purestep.data._plans import OrderPlan, Plan
from purestep.data._samplers import IterablePlan, SamplerPlan
from purestep.data._stream import Stream
from purestep.data._workers import Work
from purestep.data.collate import collate, convert
from purestep.data.orders import Batches, IndexOrder, sequential, shuffled
from purestep.data.pipeline import check_timeout
from purestep.data.sources import from_tensors


def loader(
    dataset: Any,
    batch_size: int | None = 1,
    shuffle: bool | None = False,
    sampler: Iterable[Any] | IndexOrder | None = None,
    batch_sampler: Iterable[Any] | None = None,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    pin_memory: bool = False,
    drop_last: bool = False,
    timeout: float = 0,
    worker_init_fn: Callable[[int], Any] | None = None,
    multiprocessing_context: str | None = None,
    generator: None = None,
    *,
    prefetch_factor: int | None = None,
    persistent_workers: bool = False,
    in_order: bool = True,
    seed: int = 0,
) -> Loader:
    """Return an iterable of the batches of a dataset, with the arguments of :class:`torch.utils.data.DataLoader`.

    What it has beyond torch's: ``state_dict()`` and ``load_state_dict()``, which resume at the very batch, in a new
    process and with other workers; each epoch shuffled anew from (seed, epoch) alone; and random numbers of each
    example that are functions of (seed, epoch, position), whatever code draws them from torch's, Python's or NumPy's
    global generator in ``__getitem__``. These generators are left as they were in the loop's own process.

    Args:
        dataset: ``dataset[i]`` and ``len(dataset)``; or what is only iterated. One with ``__getitems__(indices)`` is
            asked for a batch at once. A ``TensorDataset`` is selected from, not walked through.
        batch_size: examples in a batch; None hands out single ones, with no dimension of the batch.
        shuffle: True: a permutation for each epoch, ``shuffled(len(dataset), seed)``.
        sampler: an order such as ``weighted(...)``; or any iterable of indices. The latter is drawn again up to the
            place to resume, so it must draw from the global generators, which are seeded for it, or from its epoch
            (``set_epoch`` is called). What it draws then is compared with what it drew before.
        batch_sampler: ``order.batched(size)``, or an iterable of lists of indices, in place of ``batch_size``,
            ``shuffle``, ``sampler`` and ``drop_last``.
        num_workers: processes that read examples, ``prefetch_factor`` batches ahead in each (2 if None).
        collate_fn: a function of the list of a batch's examples; None: :func:`collate`, whose batches of mappings are
            TensorDicts. :func:`padded` pads sequences.
        pin_memory: put batches into page-locked memory.
        drop_last: leave out an epoch's last batch when it is smaller than ``batch_size``.
        timeout: seconds to wait for a batch from a worker; 0: for ever.
        worker_init_fn: called with its number in each worker when it starts.
        multiprocessing_context: ``"fork"``, ``"spawn"`` or ``"forkserver"``; None: as Python does.
        generator: refused: ``seed`` is what everything here is drawn from.
        persistent_workers: keep the workers from one pass to the next.
        in_order: False hands out whichever batch is ready first; see :func:`pipeline`.
        seed: of the shuffle and of all that examples draw.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range, or excludes another: the message says
            which to drop.
    """
    if generator is not None:
        raise TypeError(
            f"generator must be None, got {generator!r}: drop it and give seed=..., from which the order and all that "
            "examples draw are functions of the epoch and the place"
        )
    iterable = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
    _check_dataset(dataset, iterable)
    _check_exclusions(iterable, batch_size, bool(shuffle), sampler, batch_sampler, drop_last, in_order)
    _check_workers(num_workers, prefetch_factor, persistent_workers, timeout, pin_memory, multiprocessing_context)
    for name, value in (("collate_fn", collate_fn), ("worker_init_fn", worker_init_fn)):
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be a function or None, got {value!r}")
    integer("seed", seed, minimum=0)
    plan = _plan(dataset, iterable, batch_size, bool(shuffle), sampler, batch_sampler, num_workers, drop_last, seed)
    work = Work(
        num_workers,
        "process",
        0 if not num_workers else 2 if prefetch_factor is None else prefetch_factor,
        pin_memory,
        in_order=in_order,
        timeout=timeout,
        persistent=persistent_workers,
        context=multiprocessing_context,
        begin=worker_init_fn,
    )
    single = batch_size is None and batch_sampler is None
    return Loader(dataset, plan, _make(dataset, plan, single, collate_fn, seed), work, seed)


class Loader(Stream):
    """What :func:`loader` returns: each ``for`` is one epoch, and the next ``for`` the next one.

    An epoch that was left by ``break`` is not taken up again, as with a DataLoader; right after ``load_state_dict`` the
    first ``for`` is the rest of the epoch that was saved. The state is that of :class:`Pipeline`, with the same
    promises; with an iterable dataset, or a sampler that is no order, the examples before the place are drawn again.
    """

    def __init__(self, dataset: Any, plan: Plan, make: Any, work: Work, seed: int) -> None:
        super().__init__(plan, make, work, 1, seed, dataset)
        self.dataset = dataset
        self.batch_size: int | None = getattr(plan, "batch_size", None)
        self.num_workers = work.workers

    def __len__(self) -> int:
        """Return the number of batches of an epoch; TypeError where the dataset or the sampler has no length."""
        return self._plan.batches_per_epoch()

    def __repr__(self) -> str:
        return f"loader({type(self.dataset).__name__}, batch_size={self.batch_size}, at {self._place})"


def _plan(
    dataset: Any,
    iterable: bool,
    batch_size: int | None,
    shuffle: bool,
    sampler: Any,
    batch_sampler: Any,
    workers: int,
    drop_last: bool,
    seed: int,
) -> Plan:
    if iterable:
        length = len(dataset) if isinstance(dataset, Sized) else None
        return IterablePlan(workers, length, batch_size, drop_last)
    if isinstance(batch_sampler, Batches):
        sampler, batch_size, drop_last = batch_sampler.order, batch_sampler.size, batch_sampler.drop_last
    elif batch_sampler is not None:
        return SamplerPlan(batch_sampler, None, False, seed)
    order = sampler
    if sampler is None:
        if len(dataset) == 0 and shuffle:
            raise ValueError("dataset must hold at least one example to be shuffled, got an empty one")
        order = shuffled(len(dataset), seed) if shuffle else sequential(len(dataset))
    if isinstance(order, IndexOrder):
        if isinstance(dataset, Sized) and order.bound > len(dataset):
            raise ValueError(
                f"sampler must keep within the dataset's {len(dataset)} examples, got {order!r}, whose indices reach "
                f"{order.bound - 1}"
            )
        if order.padded:
            raise ValueError(
                f"sampler must have no positions that count nothing, for batches here have no weights, got {order!r}: "
                "take .shard(..., uneven='ragged' or 'drop'), or a pipeline"
            )
        return OrderPlan(order, batch_size or 1, drop_last)
    return SamplerPlan(order, batch_size or 1, drop_last, seed)


def _make(dataset: Any, plan: Plan, single: bool, collate_fn: Any, seed: int) -> Any:
    gather = collate_fn or (convert if single else collate)
    if isinstance(plan, IterablePlan):
        return MakeFromIterable(dataset, None if single else plan.batch_size, plan.drop_last, gather, seed)
    if collate_fn is None and not single:
        if type(dataset) is TensorDataset:
            return MakeFromTensors(dataset.tensors)
        if is_tensor_collection(dataset):
            return MakeFromTensors(from_tensors(dataset))
    return MakeFromDataset(dataset, gather, seed, single)


def _check_dataset(dataset: Any, iterable: bool) -> None:
    if iterable and not hasattr(dataset, "__iter__"):
        raise TypeError(
            f"dataset must have dataset[i] and len(dataset), or be iterable, got {type(dataset).__name__}; a source "
            "(fetch) goes to pipeline(source, order, batch_size=...)"
        )


def _check_exclusions(
    iterable: bool, batch_size: Any, shuffle: bool, sampler: Any, batch_sampler: Any, drop_last: bool, in_order: bool
) -> None:
    given = {
        "shuffle": shuffle,
        "sampler": sampler is not None,
        "batch_sampler": batch_sampler is not None,
    }
    if iterable and any(given.values()):
        name = next(name for name, there in given.items() if there)
        raise ValueError(
            f"{name} needs a dataset with dataset[i] and len(dataset), and this one is only iterated: drop {name}, and "
            "order the examples in the dataset"
        )
    if batch_sampler is not None:
        excluded = {"batch_size": batch_size != 1, **given, "drop_last": drop_last}
        if drop := [name for name, there in excluded.items() if there and name != "batch_sampler"]:
            names = " and ".join(drop)
            raise ValueError(f"batch_sampler says what each batch is made of, and excludes {names}: drop {names}")
        if isinstance(batch_sampler, IndexOrder):
            raise TypeError(f"batch_sampler must give lists of indices, got {batch_sampler!r}: give it as sampler=")
        if not isinstance(batch_sampler, Batches):
            _check_sampler("batch_sampler", batch_sampler)
    elif sampler is not None:
        if shuffle:
            raise ValueError("sampler says in which order examples come, and excludes shuffle: drop one of them")
        if not isinstance(sampler, IndexOrder):
            _check_sampler("sampler", sampler)
    if batch_size is None:
        if drop_last:
            raise ValueError("batch_size=None hands out single examples, and excludes drop_last: drop drop_last")
    else:
        integer("batch_size", batch_size, minimum=1)
    given_order = batch_sampler if sampler is None else sampler
    drawn = iterable or not isinstance(given_order, (IndexOrder, Batches, type(None)))
    if not in_order and drawn:
        raise ValueError(
            "in_order=False needs an order, since the place of a sampler or an iterator is how far it has been drawn: "
            "drop in_order, or give sampler=an order of purestep.data"
        )


def _check_sampler(name: str, sampler: Any) -> None:
    if not hasattr(sampler, "__iter__") or iter(sampler) is sampler:
        raise TypeError(
            f"{name} must be an order or an iterable that begins anew for each epoch, got {type(sampler).__name__}"
        )
    for each in (sampler, getattr(sampler, "sampler", None)):
        if isinstance(getattr(each, "generator", None), torch.Generator):
            raise ValueError(
                f"{name} must not have a generator of its own, whose place no state knows: drop generator from "
                f"{type(each).__name__}, and give loader(seed=...)"
            )


def _check_workers(workers: Any, prefetch: Any, persistent: bool, timeout: Any, pinned: Any, context: Any) -> None:
    integer("num_workers", workers, minimum=0)
    if prefetch is not None:
        integer("prefetch_factor", prefetch, minimum=1)
        if not workers:
            raise ValueError("prefetch_factor is of workers, and num_workers is 0: drop it, or raise num_workers")
    if persistent and not workers:
        raise ValueError("persistent_workers is of workers, and num_workers is 0: drop it, or raise num_workers")
    if context is not None:
        if context not in (known := multiprocessing.get_all_start_methods()):
            right = " or ".join(map(repr, known))
            raise ValueError(f"multiprocessing_context must be {right}, or None, got {context!r}")
        if not workers:
            raise ValueError(
                "multiprocessing_context is of workers, and num_workers is 0: drop it, or raise num_workers"
            )
    check_timeout(timeout, waits=workers > 0, for_what="num_workers > 0")
    if not isinstance(pinned, bool):
        raise TypeError(f"pin_memory must be True or False, got {pinned!r}")
    if pinned and not torch.cuda.is_available():
        raise ValueError("pin_memory=True needs a CUDA device, and torch finds none: drop pin_memory")
