"""Orders, and what can be made of one: shards, batches, parts, repetitions."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import get_args, overload

import torch
from torch import Tensor

from purestep._checks import integer
from purestep.data.orders._map import LONGEST, IndexMap, check_place, hashed, wrapped
from purestep.data.orders.sampler import OrderSampler, Uneven, share


class IndexOrder(IndexMap):
    """An immutable pure map ``(epoch, position) -> index`` with a length, vectorised over positions.

    ``len(order)`` is the number of positions of one epoch. Orders are equal when they give the same indices by
    construction (same kind, same arguments), and can be hashed and pickled. ``repr`` is the expression that makes one
    (more than 64 numbers, as in a long subset, print as their count and a hash).

    An order of one's own is a frozen dataclass that derives from this class and gives ``__len__`` and ``_indices``;
    see ``docs/data.md``.
    """

    def shard(self, rank: int, world: int, *, uneven: Uneven = "weightless") -> IndexOrder:
        """Return the part of one of ``world`` ranks: positions ``rank``, ``rank + world``, ... of this order.

        All ranks together have each position once, and side by side they go through this order. So the place of a run
        is one integer whatever the world: ranks that have each done ``k`` positions go on, with any other number of
        ranks, at ``order.skip(min(k * world, len(order))).shard(rank, other_world)``.

        Args:
            rank, world: ``0 <= rank < world``.
            uneven: what to do where ``world`` does not divide the length:

                - ``"weightless"``: all shards are as long as the longest. The others end with an example that has
                  weight zero (:meth:`weight`), which a weighted mean leaves out exactly;
                - ``"repeat"``: as long, and ends with examples from the start (torch's ``DistributedSampler``);
                - ``"drop"``: all are as long as the shortest (its ``drop_last=True``);
                - ``"ragged"``: some are longer by one than others. Ranks that wait for each other would wait for ever.

        Raises:
            TypeError: ``rank`` or ``world`` is not an int.
            ValueError: ``rank`` is not below ``world``, or ``uneven`` is none of the four.
        """
        integer("world", world, minimum=1)
        if integer("rank", rank, minimum=0) >= world:
            raise ValueError(f"rank must be below world, which is {world}, got {rank}")
        if uneven not in get_args(Uneven):
            raise ValueError(f"uneven must be one of {', '.join(map(repr, get_args(Uneven)))}, got {uneven!r}")
        return _Shard(self, rank, world, uneven)

    def batched(self, size: int, *, drop_last: bool = False) -> Batches:
        """Return the map ``(epoch, number of a batch) -> indices of its examples`` (torch's ``BatchSampler``).

        Raises:
            TypeError, ValueError: ``size`` is no int of at least 1.
        """
        return Batches(self, integer("size", size, minimum=1), bool(drop_last))

    def skip(self, count: int) -> IndexOrder:
        """Return each epoch without its first ``count`` positions.

        Raises:
            TypeError, ValueError: ``count`` is no int from 0 to the length.
        """
        return _Skip(self, self._part(count))

    def take(self, count: int) -> IndexOrder:
        """Return the first ``count`` positions of each epoch.

        Raises:
            TypeError, ValueError: ``count`` is no int from 0 to the length.
        """
        return _Take(self, self._part(count))

    def repeat(self, epochs: int) -> IndexOrder:
        """Return an order whose epoch is ``epochs`` ones of this: epoch 0 is the epochs 0 to ``epochs - 1``, and so on.

        Raises:
            TypeError, ValueError: ``epochs`` is no int of at least 1, or the result is longer than 2^62.
        """
        integer("epochs", epochs, minimum=1)
        if len(self) * epochs > LONGEST:
            raise ValueError(f"epochs must make an order of at most 2^62 positions, got {epochs} for {len(self)}")
        return _Repeat(self, epochs)

    def as_sampler(self) -> OrderSampler:
        """Return a sampler for torch's ``DataLoader``, whose ``state_dict()`` is two integers.

        Raises:
            ValueError: the order has positions of weight zero, which a sampler cannot say.
        """
        return sampler_of(self, self)

    def _part(self, count: int) -> int:
        if integer("count", count, minimum=0) > len(self):
            raise ValueError(f"count must be at most {len(self)}, the length of {self!r}, got {count}")
        return count


def sampler_of(
    order: IndexMap, flat: IndexOrder, *, batch_size: int | None = None, drop_last: bool = False
) -> OrderSampler:
    """Return the sampler of ``order``: ``flat``, in batches of ``batch_size`` where that is given."""
    if flat.padded:
        raise ValueError(
            f"a sampler gives indices without their weights, and {flat!r} has positions of weight zero: shard it with "
            "uneven='drop', 'repeat' or 'ragged', or read it with data.pipeline"
        )
    if not isinstance(flat, _Shard):
        return OrderSampler(order, flat, batch_size=batch_size, drop_last=drop_last)
    whole, rank, world, uneven = flat.order, flat.rank, flat.world, flat.uneven
    return OrderSampler(order, whole, rank=rank, world=world, uneven=uneven, batch_size=batch_size, drop_last=drop_last)


def across_epochs(order: IndexMap, epoch: int, offsets: Tensor, *, weights: bool = False) -> Tensor:
    """Return the indices (or weights) at ``offsets`` from the start of ``epoch``, through as many epochs as it takes.

    ``offsets``: at least 0. Their epochs are asked one by one; neighbouring positions lie in one or two.
    """
    n = len(order)
    ask = order._weights if weights else order._indices
    if offsets.numel() == 0:
        return ask(epoch, offsets)
    numbers = offsets.div(n, rounding_mode="floor")
    places = offsets - numbers * n
    first, last = (int(end) for end in torch.aminmax(numbers))
    if first == last:
        return ask(epoch + first, places)
    result = torch.empty(offsets.shape, dtype=torch.float32 if weights else torch.int64, device=offsets.device)
    for number in numbers.unique().tolist():
        here = numbers == number
        result[here] = ask(epoch + number, places[here])
    return result


class _Derived(IndexMap):
    """What is made of one order, ``order``: an example keeps its index."""

    order: IndexOrder

    @property
    @abstractmethod
    def _operation(self) -> str:
        """What makes this of the other, as it is written behind it."""

    @property
    def bound(self) -> int:
        return self.order.bound

    @property
    def distinct(self) -> bool:
        return self.order.distinct

    @property
    def padded(self) -> bool:
        return self.order.padded

    def __repr__(self) -> str:
        return f"{self.order!r}{self._operation}"

    def fingerprint(self) -> str:
        return hashed(f"{self.order.fingerprint()}{self._operation}", self.revision)


@dataclass(frozen=True, repr=False)
class _Skip(_Derived, IndexOrder):
    order: IndexOrder
    count: int

    def __len__(self) -> int:
        return len(self.order) - self.count

    @property
    def _operation(self) -> str:
        return f".skip({self.count})"

    def _indices(self, epoch: int, positions: Tensor) -> Tensor:
        return self.order._indices(epoch, positions + self.count)

    def _weights(self, epoch: int, positions: Tensor) -> Tensor:
        return self.order._weights(epoch, positions + self.count)


@dataclass(frozen=True, repr=False)
class _Take(_Derived, IndexOrder):
    order: IndexOrder
    count: int

    def __len__(self) -> int:
        return self.count

    @property
    def _operation(self) -> str:
        return f".take({self.count})"

    def _indices(self, epoch: int, positions: Tensor) -> Tensor:
        return self.order._indices(epoch, positions)

    def _weights(self, epoch: int, positions: Tensor) -> Tensor:
        return self.order._weights(epoch, positions)


@dataclass(frozen=True, repr=False)
class _Repeat(_Derived, IndexOrder):
    order: IndexOrder
    epochs: int

    def __len__(self) -> int:
        return len(self.order) * self.epochs

    @property
    def _operation(self) -> str:
        return f".repeat({self.epochs})"

    @property
    def distinct(self) -> bool:
        return self.order.distinct and self.epochs == 1

    def _indices(self, epoch: int, positions: Tensor) -> Tensor:
        return across_epochs(self.order, epoch * self.epochs, positions)

    def _weights(self, epoch: int, positions: Tensor) -> Tensor:
        return across_epochs(self.order, epoch * self.epochs, positions, weights=True)


@dataclass(frozen=True, repr=False)
class _Shard(_Derived, IndexOrder):
    order: IndexOrder
    rank: int
    world: int
    uneven: Uneven

    def __len__(self) -> int:
        return share(len(self.order), self.rank, self.world, self.uneven)

    @property
    def _operation(self) -> str:
        uneven = "" if self.uneven == "weightless" else f", uneven={self.uneven!r}"
        return f".shard({self.rank}, {self.world}{uneven})"

    @property
    def padded(self) -> bool:
        return self.order.padded or (self.uneven == "weightless" and len(self.order) % self.world > 0)

    def _indices(self, epoch: int, positions: Tensor) -> Tensor:
        return self.order._indices(epoch, wrapped(self._places(positions), len(self.order)))

    def _weights(self, epoch: int, positions: Tensor) -> Tensor:
        places, n = self._places(positions), len(self.order)
        weights = self.order._weights(epoch, wrapped(places, n))
        return weights * (places < n) if self.uneven == "weightless" else weights

    def _places(self, positions: Tensor) -> Tensor:
        return positions * self.world + self.rank


@dataclass(frozen=True, repr=False)
class Batches(_Derived):
    """The batches of an order: a pure map ``(epoch, number of a batch) -> indices of its examples``.

    A call with an int returns the indices of that batch, int64 of shape ``(size,)``, of fewer for a last one that is
    short. A call with a tensor of numbers of shape ``s`` returns ``s + (size,)``, where a short batch is filled up with
    examples from the start of the epoch that have weight zero (:meth:`weight`, of the same shapes).
    """

    order: IndexOrder
    size: int
    drop_last: bool

    def __len__(self) -> int:
        n = len(self.order)
        return n // self.size if self.drop_last else -(-n // self.size)

    @property
    def _operation(self) -> str:
        return f".batched({self.size}{', drop_last=True' if self.drop_last else ''})"

    @property
    def padded(self) -> bool:
        return self.order.padded or (not self.drop_last and len(self.order) % self.size > 0)

    @overload  # type: ignore[override]
    def __call__(self, epoch: int, positions: int) -> Tensor: ...
    @overload
    def __call__(self, epoch: int, positions: Tensor) -> Tensor: ...
    def __call__(self, epoch: int, positions: int | Tensor) -> Tensor:
        check_place(self, epoch, positions)
        if isinstance(positions, Tensor):
            return self._indices(epoch, positions)
        return self.order._indices(epoch, self._of_one(positions))

    @overload  # type: ignore[override]
    def weight(self, epoch: int, positions: int) -> Tensor: ...
    @overload
    def weight(self, epoch: int, positions: Tensor) -> Tensor: ...
    def weight(self, epoch: int, positions: int | Tensor) -> Tensor:
        check_place(self, epoch, positions)
        if isinstance(positions, Tensor):
            return self._weights(epoch, positions)
        return self.order._weights(epoch, self._of_one(positions))

    def as_sampler(self) -> OrderSampler:
        """Return a batch sampler for ``DataLoader(dataset, batch_sampler=...)``; its state is that of the order's.

        Raises:
            ValueError: the order has positions of weight zero, which a sampler cannot say.
        """
        return sampler_of(self, self.order, batch_size=self.size, drop_last=self.drop_last)

    def _of_one(self, number: int) -> Tensor:
        return torch.arange(number * self.size, min((number + 1) * self.size, len(self.order)))

    def _places(self, numbers: Tensor) -> Tensor:
        return numbers.unsqueeze(-1) * self.size + torch.arange(self.size, device=numbers.device)

    def _indices(self, epoch: int, positions: Tensor) -> Tensor:
        return self.order._indices(epoch, wrapped(self._places(positions), len(self.order)))

    def _weights(self, epoch: int, positions: Tensor) -> Tensor:
        places, n = self._places(positions), len(self.order)
        return self.order._weights(epoch, wrapped(places, n)) * (places < n)
