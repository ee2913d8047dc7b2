"""check_order: law 7, over the orders that purestep has, and a mutant for each of its laws."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch

import purestep as ps
from purestep import laws
from purestep.data import IndexOrder
from purestep.laws import LawViolation
from purestep.laws.orders import ORDER_LAWS

ORDERS = {
    "sequential": ps.data.sequential(20),
    "shuffled": ps.data.shuffled(23, seed=1),
    "shuffled, above the sorted ones": ps.data.shuffled(1500, seed=1),
    "one position": ps.data.shuffled(1, seed=0),
    "subset": ps.data.subset([4, 9, 2, 2], seed=0),
    "with replacement": ps.data.with_replacement(5, 30, seed=0),
    "weighted": ps.data.weighted([1, 0, 2.5], 20, seed=0),
    "weighted, without replacement": ps.data.weighted([1, 0, 2.5, 7], 3, seed=0, replacement=False),
    "grouped": ps.data.grouped(range(23), 4, seed=0, bucket=2),
    "stratified": ps.data.stratified([0, 0, 1, 2, 0, 1, 1, 1, 2], seed=0),
    "mixed": ps.data.mixed({"a": ps.data.shuffled(5, seed=0), "b": ps.data.sequential(9)}, [2, 1]),
    "shard": ps.data.shuffled(23, seed=0).shard(3, 4),
    "shard of a shard": ps.data.shuffled(23, seed=0).shard(3, 4).shard(1, 4),
    "repeated part": ps.data.shuffled(23, seed=0).skip(3).take(11).repeat(3),
    "mixed shards": ps.data.mixed({"a": ps.data.sequential(5).shard(1, 2)}, [1]),
}


@pytest.mark.parametrize("name", ORDERS)
def test_orders_keep_every_law(name):
    assert laws.check_order(ORDERS[name]).held == ORDER_LAWS


def test_a_long_order_is_looked_at_in_some_positions():
    report = laws.check_order(ps.data.shuffled(10**12, seed=0))
    assert report.held == tuple(law for law in ORDER_LAWS if law not in ("shards", "elastic"))


def test_drawn_orders_keep_every_law():
    assert laws.check_order(laws.orders(max_length=20), epochs=(0, 3), worlds=(1, 3), max_examples=8).held == ORDER_LAWS


@dataclass(frozen=True)
class Base(IndexOrder):
    """The order 0, 1, ..., n - 1; mutants change what it gives."""

    n: int

    def __len__(self):
        return self.n

    def _indices(self, epoch, positions):
        return positions.clone()


class Squares(Base):
    def _indices(self, epoch, positions):
        return positions * positions % self.n


class Beyond(Base):
    def _indices(self, epoch, positions):
        return positions + epoch


class Remembers(Base):
    """A shuffle drawn anew whenever it is asked, as a sampler with a generator does."""

    def _indices(self, epoch, positions):
        asked = vars(self).setdefault("asked", [])
        asked.append(epoch)
        return (positions + len(asked)) % self.n


class DrawsGlobally(Base):
    def _indices(self, epoch, positions):
        random.random()
        return positions.clone()


class GivesItsArgument(Base):
    def _indices(self, epoch, positions):
        return positions


class ByRank(Base):
    """The place in what was asked, not in the epoch: right for all positions at once, and for no others."""

    def _indices(self, epoch, positions):
        return torch.arange(positions.numel()).reshape(positions.shape)


class PerThread(Base):
    def _indices(self, epoch, positions):
        shift = 0 if threading.current_thread() is threading.main_thread() else 1
        return (positions + shift) % self.n


class NoFingerprint(Base):
    def fingerprint(self):
        return str(id(self))


class SkipsOneLess(Base):
    """What is made of an order may have a way of its own, and an error of its own."""

    def skip(self, count):
        return super().skip(max(count - 1, 0))


class ForgetsItsWeights(Base):
    def shard(self, rank, world, *, uneven="weightless"):
        return super().shard(rank, world, uneven="repeat")


class RaggedShards(Base):
    def shard(self, rank, world, *, uneven="weightless"):
        return super().shard(rank, world, uneven="ragged")


class SkipsWholeSteps(Base):
    """As a resume that counts in steps of its own world does."""

    def skip(self, count):
        return super().skip(min(count // 2 * 2, len(self)))


MUTANTS = {
    Squares: ("permutation", r"Squares\(n=3\), epoch 0, example 1"),
    Beyond: ("permutation", r"Beyond\(n=1\), epoch 1, position 0"),
    Remembers: ("pure", r"epoch 0, position 0"),
    DrawsGlobally: ("pure", r"order=DrawsGlobally\(n=1\)"),
    GivesItsArgument: ("pure", r"order=GivesItsArgument\(n=2\), epoch 0, position 1"),
    ByRank: ("random access", r"order=ByRank\(n=2\), epoch 0, position 1"),
    PerThread: ("workers", r"order=PerThread\(n=2\), epoch 0, position 0"),
    SkipsOneLess: ("algebra", r"order=SkipsOneLess\(n=2\), epoch 0, position 1"),
    ForgetsItsWeights: ("shards", r"order=ForgetsItsWeights\(n=1\), epoch 0, 2 shards"),
    RaggedShards: ("shards", r"order=RaggedShards\(n=1\), epoch 0, 2 shards"),
    SkipsWholeSteps: ("elastic", r"SkipsWholeSteps\(n=\d+\), epoch 0, \d shards, then \d from position \d+"),
    NoFingerprint: ("written", r"order=NoFingerprint\(n=1\), a pickled copy"),
}


@pytest.mark.parametrize("kind", MUTANTS, ids=lambda kind: kind.__name__)
def test_it_catches(kind):
    law, on = MUTANTS[kind]
    drawn = st.builds(kind, n=st.integers(1, 30))
    with pytest.raises(LawViolation, match=r"law [17]") as caught:
        laws.check_order(drawn, laws=[law], max_examples=40)
    with pytest.raises(LawViolation, match=on):
        raise LawViolation(caught.value.on)
    with pytest.raises(LawViolation) as caught:
        laws.check_order(kind(30))
    assert law in caught.value.report.broken


@dataclass(frozen=True)
class Shard(IndexOrder):
    order: IndexOrder
    rank: int
    world: int

    def __len__(self):
        return len(self.order) // self.world

    def _indices(self, epoch, positions):
        return self.order(epoch, positions * self.world + self.rank)


def test_shards_that_drop_the_rest_are_caught():
    """As a distributed sampler with ``drop_last`` does."""
    order = ps.data.shuffled(6, seed=0)
    laws.check_order(order, shard=Shard, worlds=(1, 2, 3), laws=["shards"])
    with pytest.raises(LawViolation, match=r"4 shards of epoch 0 give 4 examples of 6, and the example .* is in none"):
        laws.check_order(order, shard=Shard, worlds=(1, 2, 4), laws=["shards"])


def test_shards_that_overlap_are_caught():
    order = ps.data.sequential(6)
    with pytest.raises(LawViolation, match="2 shards of epoch 0 give 12 examples of 6, some of them twice"):
        laws.check_order(order, shard=lambda order, rank, world: order, laws=["shards"])


ARGUMENTS = {
    "no order": (lambda: laws.check_order([2, 0, 1]), TypeError, r"order must be an IndexOrder such as .* \[2, 0, 1\]"),
    "an empty one": (lambda: laws.check_order(ps.data.sequential(0)), ValueError, "at least one position"),
    "an epoch": (lambda: laws.check_order(Base(2), epochs=[-1]), ValueError, "an epoch must be an int of at least 0"),
    "a world": (lambda: laws.check_order(Base(2), worlds=[0]), ValueError, "a world must be an int of at least 1"),
    "no such law": (lambda: laws.check_order(Base(2), laws=["shard"]), ValueError, r"did you mean 'shards'"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_the_message(case):
    call, kind, message = ARGUMENTS[case]
    with pytest.raises(kind, match=message):
        call()
