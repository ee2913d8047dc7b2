"""Plans of what is no order: samplers and batch samplers, which are iterators, and datasets that are.

What such a one gives at a place is known only by drawing all before it. So resuming draws the epoch again up to the
place, from generators that (seed, epoch) has seeded, and a digest of the indices tells whether they are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any

import torch

from purestep._checks import integer
from purestep.data._globals import OwnGenerators, number_of
from purestep.data._plans import Block, Place, Span


class SamplerPlan:
    """A sampler of indices, or of lists of them, cut into batches."""

    def __init__(self, sampler: Iterable[Any], batch_size: int | None, drop_last: bool, seed: int) -> None:
        """``batch_size`` None: the sampler gives batches."""
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.seed = seed

    def batches_per_epoch(self) -> int:
        count = len(self.sampler)  # type: ignore[arg-type]
        if self.batch_size is None:
            return count
        return count // self.batch_size + (1 if count % self.batch_size and not self.drop_last else 0)

    def identity(self) -> dict[str, str]:
        return {"sampler": type(self.sampler).__qualname__}

    def check(self, state: Mapping[str, Any]) -> None:
        if state["sampler"] != self.identity()["sampler"]:
            raise ValueError(
                f"state must be of this loader's sampler, {self.identity()['sampler']}, got one of {state['sampler']}"
            )

    def ends(self, place: Place) -> bool:
        return False  # batches come in order here, and so nobody asks

    def blocks(self, place: Place, handed_out: Sequence[Span], digest: str, stop: int | None) -> Iterator[Block]:
        epoch, position = place
        while stop is None or epoch < stop:
            yield from self._epoch(epoch, position, digest)
            epoch, position, digest = epoch + 1, 0, ""

    def _epoch(self, epoch: int, position: int, digest: str) -> Iterator[Block]:
        if callable(getattr(self.sampler, "set_epoch", None)):
            self.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        drawn, seen = blake2b(digest_size=8), 0
        for indices in self._drawn(epoch):
            for index in indices:
                drawn.update(f"{index!r},".encode())
            start, seen = seen, seen + len(indices)
            if seen == position and digest not in ("", drawn.hexdigest()):
                raise ValueError(
                    f"sampler must draw the same indices again for a loader to resume, and those before position "
                    f"{position} of epoch {epoch} differ: draw them from torch's, Python's or NumPy's global "
                    "generator, or take an order of purestep.data"
                )
            if seen > position:
                if start < position:
                    raise ValueError(
                        f"state['position'] must be where a batch of this loader ends, got {position}, which lies "
                        f"between {start} and {seen}: load with the batch_size that it was saved with"
                    )
                yield Block(epoch, start, seen, list(indices), torch.arange(start, seen), digest=drawn.hexdigest())
        if seen < position:
            raise ValueError(
                f"sampler must draw the same indices again for a loader to resume, and epoch {epoch} has {seen} of "
                f"them, where the state is at position {position}: load with the sampler and the batch_size that it "
                "was saved with"
            )

    def _drawn(self, epoch: int) -> Iterator[list[Any]]:
        """Generate the indices of each batch; the global generators are the sampler's own while it draws."""
        numbers = OwnGenerators(number_of(self.seed, epoch))
        with numbers:
            drawing = iter(self.sampler)
        while True:
            with numbers:
                taken = list(islice(drawing, self.batch_size or 1))
            if not taken or (self.batch_size is not None and self.drop_last and len(taken) < self.batch_size):
                return
            yield taken if self.batch_size is not None else list(taken[0])


class IterablePlan:
    """A dataset that is iterated: each worker has its own iterator over it, and they give a batch each in turn."""

    def __init__(self, workers: int, length: int | None, batch_size: int | None, drop_last: bool) -> None:
        self.workers = max(workers, 1)
        self.length = length
        self.batch_size = batch_size or 1
        self.drop_last = drop_last

    def batches_per_epoch(self) -> int:
        if self.length is None:
            raise TypeError("a loader of a dataset without a length has none")
        return self.length // self.batch_size + (1 if self.length % self.batch_size and not self.drop_last else 0)

    def identity(self) -> dict[str, str]:
        return {"iterated": f"batches of {self.batch_size}, in turn of {self.workers}"}

    def check(self, state: Mapping[str, Any]) -> None:
        if state["iterated"] != self.identity()["iterated"]:
            raise ValueError(
                f"state must be of a loader that cuts its dataset alike ({self.identity()['iterated']}), "
                f"got one of {state['iterated']}"
            )
        integer("state['position']", state["position"], minimum=0)

    def ends(self, place: Place) -> bool:
        return False

    def blocks(self, place: Place, handed_out: Sequence[Span], digest: str, stop: int | None) -> Iterator[Block]:
        turn = 0
        while True:  # until every worker has said that its iterator has ended
            yield Block(place.epoch, turn, turn + 1, worker=turn % self.workers, discard=turn < place.position)
            turn += 1
