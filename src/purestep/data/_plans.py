"""Plans: what the batches of a stream are, as blocks of indices that each know the place where they begin and end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from purestep import random
from purestep._checks import integer
from purestep.data.orders import IndexOrder

# An order is asked for many batches at a time, for up to some thousands of positions its cost is by the call. The first
# request is for one batch and each next one is four times as long, so that the first batch does not wait for others.
_POSITIONS_AT_ONCE = 2**14

Span = tuple[int, int, int]
"""Positions ``start`` to ``end`` of an epoch, as (epoch, start, end)."""


class Place(NamedTuple):
    """Before the example at ``position`` of ``epoch``; at the length of the order, the end of the epoch.

    The end of one epoch and the start of the next are two places, so that a state saved within the loop after the last
    batch, and one saved after the loop, each go on as they would have.
    """

    epoch: int
    position: int


class Block(NamedTuple):
    """What travels to the workers: what one batch is made of, and where in the stream it stands.

    Attributes:
        epoch, start, end: the batch covers positions ``start`` to ``end`` of the epoch, those of all ranks.
        indices: of the examples to fetch; int64 (n,), or a list where a sampler made them.
        positions: of these examples in the epoch, int64 (n,): what their random numbers are functions of.
        weights: float32 (n,), where some positions of the order only fill it up and count nothing.
        empty: the rank's share is nothing; one example is fetched all the same, so that the batch has its leaves.
        digest: of all indices of the epoch up to here, where only drawing them again can tell what they were.
        worker: the one that must make it; None: any.
        discard: it was handed out before the state was saved, and is made again only for what comes after.
    """

    epoch: int
    start: int
    end: int
    indices: Any = None
    positions: Any = None
    weights: Any = None
    empty: bool = False
    digest: str = ""
    worker: int | None = None
    discard: bool = False

    def place_only(self) -> Block:
        return self._replace(indices=None, positions=None, weights=None)


class Plan(Protocol):
    """What a stream needs to know about its batches."""

    def blocks(self, place: Place, handed_out: Sequence[Span], digest: str, stop: int | None) -> Iterator[Block]:
        """Generate the blocks from ``place`` to the start of epoch ``stop``, except those in ``handed_out``."""
        ...

    def identity(self) -> dict[str, str]:
        """Return what tells this plan from another, for a state."""
        ...

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError where a state is of another plan, or its place is not in this one."""
        ...

    def ends(self, place: Place) -> bool:
        """Whether no batch of the place's epoch comes after it."""
        ...

    def batches_per_epoch(self) -> int: ...


class OrderPlan:
    """An order cut into batches, of each of which one rank of several takes its share."""

    def __init__(self, order: IndexOrder, batch_size: int, drop_last: bool, rank: int = 0, world: int = 1) -> None:
        self.order = order
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank = rank
        self.world = world

    def batches_per_epoch(self) -> int:
        whole, rest = divmod(len(self.order), self.batch_size * self.world)
        return whole + (1 if rest and not self.drop_last else 0)

    def identity(self) -> dict[str, str]:
        return {"order": repr(self.order), "fingerprint": self.order.fingerprint()}

    def check(self, state: Mapping[str, Any]) -> None:
        if state["fingerprint"] != self.order.fingerprint():
            raise ValueError(
                f"state must be of this pipeline's order {self.order!r} (fingerprint {self.order.fingerprint()}), "
                f"got one of {state['order']} (fingerprint {state['fingerprint']})"
            )
        position = integer("state['position']", state["position"], minimum=0)
        if position > len(self.order):
            raise ValueError(f"state['position'] must be at most {len(self.order)}, got {position}")

    def ends(self, place: Place) -> bool:
        left = len(self.order) - place.position
        return left < self.batch_size * self.world if self.drop_last else left == 0

    def blocks(self, place: Place, handed_out: Sequence[Span], digest: str, stop: int | None) -> Iterator[Block]:
        at_once = size = self.batch_size * self.world
        for epoch, start, end in self._spans(place, handed_out, stop):
            while start < end:
                until = min(start + at_once, end)
                yield from self._cut(epoch, start, until)
                start = until
                if 4 * at_once <= max(size, _POSITIONS_AT_ONCE):
                    at_once *= 4

    def _spans(self, place: Place, handed_out: Sequence[Span], stop: int | None) -> Iterator[Span]:
        """Generate what is left of each epoch: one span, or the gaps between the batches that were handed out."""
        epoch, position = place
        while stop is None or epoch < stop:
            for other, first, last in sorted(handed_out):
                if other == epoch and first >= position:
                    yield epoch, position, first
                    position = last
            left = len(self.order) - position
            if self.drop_last:
                left -= left % (self.batch_size * self.world)
            yield epoch, position, position + left
            epoch, position = epoch + 1, 0

    def _cut(self, epoch: int, start: int, until: int) -> Iterator[Block]:
        size, every = self.batch_size, self.batch_size * self.world
        places = torch.arange(start + self.rank, max(until, start + self.rank), self.world)
        parts = zip(*(part.split(size) for part in self._at(epoch, places)), strict=True)
        for begin in range(start, until, every):
            end = min(begin + every, until)
            if begin + self.rank < end:
                yield Block(epoch, begin, end, *next(parts))
            else:
                yield Block(epoch, begin, end, *self._at(epoch, torch.tensor([begin])))._replace(empty=True)

    def _at(self, epoch: int, positions: torch.Tensor) -> list[Any]:
        found = [self.order(epoch, positions), positions]
        return [*found, self.order.weight(epoch, positions)] if self.order.padded else found


def item_keys(seed: int, epoch: int, positions: torch.Tensor) -> torch.Tensor:
    """Return the key of each example, int64 (n, 2): a function of the seed, the epoch and its position there.

    By the position and not by the index, so that an example that is drawn twice in an epoch is augmented in two ways.
    """
    return random.fold_in(random.fold_in(random.key(seed), epoch), positions)
