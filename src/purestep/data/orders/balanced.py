"""Shuffled orders whose batches are alike: of similar lengths, or of the same mixture of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from purestep._checks import integer
from purestep.data.orders._held import Table, real_numbers, whole_numbers
from purestep.data.orders._interleave import MOST, Interleave
from purestep.data.orders._keyed import Keys, below, draw, key_words
from purestep.data.orders._permutation import GROUP_ROUNDS, permute, permute_groups
from purestep.data.orders.algebra import IndexOrder

_KEYS = 16 * -(-(GROUP_ROUNDS + 2) // 16)


def grouped(lengths: Any, batch_size: int, seed: int, *, bucket: int | None = None) -> IndexOrder:
    """Return a shuffled order whose consecutive ``batch_size`` examples are of similar length.

    Each epoch is a permutation. The examples, sorted by length, are cut into buckets of ``bucket`` batches each (the
    last one is larger); an epoch shuffles each bucket, cuts the whole into batches, and shuffles these. Where
    ``batch_size`` does not divide the number of examples, the last batch of the epoch is short, and of other lengths
    each time.

    Batches of a shard: with ``grouped(lengths, per_rank * world, seed).shard(rank, world)`` the batches that the ranks
    have at the same time are of similar lengths, too.

    Args:
        lengths: of the examples, real numbers of any unit, a vector. 16 bytes are held for each.
        batch_size: of the batches that the order will be cut into.
        seed: from 0 on.
        bucket: batches to a bucket. More: batches that are less alike, and more random. None: a sixteenth of the
            batches, from 1 to 64.

    Raises:
        TypeError: ``lengths`` are no real numbers, or another argument is no int.
        ValueError: a length is NaN or infinite, or another argument is out of range.
    """
    held = real_numbers("lengths", lengths)
    if held.numel() and not bool(held.isfinite().all()):
        at = int((~held.isfinite()).nonzero()[0])
        raise ValueError(f"lengths must be finite, got {float(held[at])} at place {at}")
    integer("batch_size", batch_size, minimum=1)
    if bucket is None:
        bucket = min(max(len(held) // batch_size // 16, 1), 64)
    integer("bucket", bucket, minimum=1)
    return _Grouped(Table(held), batch_size, integer("seed", seed, minimum=0), bucket)


def stratified(labels: Any, seed: int) -> IndexOrder:
    """Return a shuffled order any part of which has the labels in the proportions of the whole.

    Each epoch is a permutation: the labels follow one another in the most even way (an exact interleave, whose start is
    drawn anew for each epoch), and the examples of a label are shuffled among themselves. In each run of consecutive
    positions, such as a batch, every label is within a few examples of its share.

    Args:
        labels: of the examples: integers, or a sequence of strings. 16 bytes are held for each.
        seed: from 0 on.

    Raises:
        TypeError: ``labels`` are neither, or ``seed`` is no int.
        ValueError: ``seed`` is negative, or there are 2^31 labels or more.
    """
    if isinstance(labels, Sequence) and len(labels) and all(isinstance(label, str) for label in labels):
        codes = {label: code for code, label in enumerate(sorted(set(labels)))}
        labels = [codes[label] for label in labels]
    held = whole_numbers("labels", labels)
    if len(held) >= MOST:
        raise ValueError(f"labels must be fewer than 2^31, got {len(held)}")
    return _Stratified(Table(held), integer("seed", seed, minimum=0))


@dataclass(frozen=True, repr=False)
class _Grouped(IndexOrder):
    held: Table
    batch_size: int
    seed: int
    bucket: int

    def __len__(self) -> int:
        return len(self.held)

    def __repr__(self) -> str:
        return f"grouped({self.held!r}, {self.batch_size}, seed={self.seed}, bucket={self.bucket})"

    @cached_property
    def _sorted(self) -> Table:
        return Table(self.held.numbers.argsort(stable=True))

    def _keys(self, what: str, epoch: int, count: int = 16) -> Keys:
        return key_words(f"purestep grouped {what} {len(self)} {self.batch_size} {self.seed} {epoch}", count)

    def _indices(self, epoch: int, positions: Tensor) -> Tensor:
        whole, rest = divmod(len(self), self.batch_size)
        # The short batch takes the ranks by length from here on, around the end if need be: each as often as another.
        cut = below(draw(self._keys("cut", epoch), 0), len(self)) if rest else 0
        batch = positions.div(self.batch_size, rounding_mode="floor")
        slot = positions - batch * self.batch_size
        is_whole = batch < whole
        place = permute(whole, self._keys("batches", epoch), torch.where(is_whole, batch, 0)) if whole else batch
        ranks = place * self.batch_size + slot
        ranks += cut + rest - len(self) if cut + rest > len(self) else torch.where(ranks >= cut, rest, 0)
        ranks = torch.where(is_whole, ranks, (cut + slot) % max(len(self), 1))
        return self._sorted.on(positions.device)[self._within_bucket(epoch, ranks)]

    def _within_bucket(self, epoch: int, ranks: Tensor) -> Tensor:
        size = self.batch_size * self.bucket
        buckets = max(1, len(self) // size)
        sizes = torch.full((buckets,), size, device=ranks.device)
        sizes[-1] = len(self) - (buckets - 1) * size
        group = ranks.div(size, rounding_mode="floor").clamp_(max=buckets - 1)
        start = group * size
        return start + permute_groups(sizes, group, self._keys("buckets", epoch, _KEYS), ranks - start)


@dataclass(frozen=True, repr=False)
class _Stratified(IndexOrder):
    held: Table
    seed: int

    def __len__(self) -> int:
        return len(self.held)

    def __repr__(self) -> str:
        return f"stratified({self.held!r}, seed={self.seed})"

    @cached_property
    def _members(self) -> Table:
        """The examples by label."""
        return Table(self.held.numbers.argsort(stable=True))

    @cached_property
    def _counts(self) -> Table:
        return Table(self.held.numbers.unique(return_counts=True)[1])

    @cached_property
    def _interleave(self) -> Interleave:
        return Interleave(tuple(self._counts.numbers.tolist()))

    def _indices(self, epoch: int, positions: Tensor) -> Tensor:
        if positions.numel() == 0:
            return positions.clone()
        name = f"purestep stratified {len(self)} {self.seed} {epoch}"
        start = below(draw(key_words(f"{name} start"), 0), len(self))
        label, item = self._interleave(positions + start)
        counts = self._counts.on(positions.device)
        place = permute_groups(counts, label, key_words(name, _KEYS), item % counts[label])
        return self._members.on(positions.device)[(counts.cumsum(0) - counts)[label] + place]
