"""An order as a sampler for torch's DataLoader, with a place that can be saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Sampler

from purestep._checks import integer
from purestep.data.orders._map import IndexMap, wrapped

Uneven = Literal["weightless", "repeat", "drop", "ragged"]

# For up to some thousands of positions the cost of an order is by the call. The first request is small, for the first
# index must not wait for the others.
_FIRST, _MOST = 64, 2**14


def share(count: int, rank: int, world: int, uneven: Uneven) -> int:
    """Return how many of the last ``count`` positions of an epoch are one rank's."""
    if uneven == "drop":
        return count // world
    if uneven == "ragged":
        return max(0, -(-(count - rank) // world))
    return -(-count // world)


class OrderSampler(Sampler[Any]):
    """What ``order.as_sampler()`` returns: a sampler for ``DataLoader(dataset, sampler=...)``, or, from
    ``order.batched(size)``, a batch sampler for ``DataLoader(dataset, batch_sampler=...)``.

    Each ``for`` is an epoch, the next one each time; one that was left by ``break`` is not taken up again. After
    :meth:`load_state_dict` the first ``for`` is the rest of the epoch that was saved.

    **State.** ``{"epoch": e, "position": p}``. A shard counts ``p`` in the order that it is a shard of: all ranks have
    the same state, and a world of any other size goes on from it, with the indices at ``p + rank``,
    ``p + rank + world``, ...
    """

    def __init__(
        self,
        order: IndexMap,
        whole: IndexMap,
        *,
        rank: int = 0,
        world: int = 1,
        uneven: Uneven = "ragged",
        batch_size: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self._order = order
        self._whole = whole
        self._rank = rank
        self._world = world
        self._uneven = uneven
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._epoch = 0
        self._position = 0
        self._pass_start = (0, 0)  # the place where this pass began
        self._handed_out = 0  # indices, or batches, of this pass
        self._left = False  # whether this pass is under way: another one begins the next epoch
        self._live: object = None  # the iterator that may go on

    def __len__(self) -> int:
        """Return the number of indices, or batches, of a whole epoch."""
        return len(self._order)

    def __repr__(self) -> str:
        return f"{self._order!r}.as_sampler(), at epoch {self._epoch}, position {self._position}"

    def __iter__(self) -> Iterator[Any]:
        self._go_to(*((self._epoch + 1, 0) if self._left else (self._epoch, self._position)))
        self._live = live = object()
        return self._pass(live)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``, as ``DistributedSampler.set_epoch``; the rest of it after a resume stays."""
        if integer("epoch", epoch, minimum=0) != self._epoch or self._left:
            self._go_to(epoch, 0)

    def state_dict(self, *, seen: int | None = None) -> dict[str, int]:
        """Return the place after what was handed out: ``epoch`` and ``position``.

        Args:
            seen: how much the loop has got in this pass, in what the sampler hands out (indices or batches). A
                DataLoader with workers asks for more than the loop has seen; without workers nobody needs this.

        Raises:
            TypeError, ValueError: ``seen`` is no int from 0 to what was handed out.
        """
        if seen is None or integer("seen", seen, minimum=0) == self._handed_out:
            return {"epoch": self._epoch, "position": self._position}
        if seen > self._handed_out:
            raise ValueError(f"seen must be at most {self._handed_out}, which this pass has handed out, got {seen}")
        epoch, start = self._pass_start
        return {"epoch": epoch, "position": start + seen * self._world * (self._batch_size or 1)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to the place of a state; an iterator that is under way raises.

        Raises:
            TypeError: ``state`` is no mapping, or its numbers are no ints.
            ValueError: it lacks one of the two, or the place is not in the order.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be the dict that state_dict() returned, got {state!r}")
        if missing := [key for key in ("epoch", "position") if key not in state]:
            raise ValueError(f"state must have the keys 'epoch' and 'position', got one without {missing}")
        epoch = integer("state['epoch']", state["epoch"], minimum=0)
        position = integer("state['position']", state["position"], minimum=0)
        if position > len(self._whole):
            raise ValueError(f"state['position'] must be at most {len(self._whole)}, got {position}")
        self._go_to(epoch, position)

    def _go_to(self, epoch: int, position: int) -> None:
        self._epoch, self._position = self._pass_start = epoch, position
        self._handed_out, self._left, self._live = 0, False, None

    def _pass(self, live: object) -> Iterator[Any]:
        epoch, start, size = self._epoch, self._position, self._batch_size or 1
        todo = share(len(self._whole) - start, self._rank, self._world, self._uneven)
        if self._drop_last:
            todo -= todo % size
        done, block = 0, size * -(-_FIRST // size)
        while done < todo:
            indices = self._take(epoch, start, torch.arange(done, min(done + block, todo))).tolist()
            for offset in range(0, len(indices), size):
                if self._live is not live:
                    raise RuntimeError(
                        "this iterator is over: its sampler was iterated again or went to another place since; "
                        "for two at a time, make two samplers"
                    )
                part = indices[offset : offset + size]
                done += len(part)
                self._position = min(start + done * self._world, len(self._whole))
                self._handed_out, self._left = self._handed_out + 1, True
                yield part if self._batch_size is not None else part[0]
            block = min(block * 4, max(size, _MOST // size * size))
        if self._live is live:
            self._epoch, self._position, self._left = epoch + 1, 0, False

    def _take(self, epoch: int, start: int, local: Tensor) -> Tensor:
        positions = local.mul_(self._world).add_(start + self._rank)
        # Only a repeating shard goes beyond the end, and there begins anew.
        return self._whole(epoch, wrapped(positions, len(self._whole)))
