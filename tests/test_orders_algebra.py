"""The algebra of orders: shards, batches, parts and repetitions, against torch's samplers; and places that are kept."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

import purestep as ps
from _orders import epoch_of
from purestep import laws
from purestep.data import IndexOrder, OrderSampler, grouped, mixed, sequential, shuffled, subset, weighted

FEW = settings(max_examples=25, deadline=None)


# -------------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize(("uneven", "drop_last"), [("repeat", False), ("drop", True)])
@pytest.mark.parametrize("world", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("n", [0, 1, 12, 13])
def test_shards_are_those_of_the_distributed_sampler(n: int, world: int, uneven: str, drop_last: bool) -> None:
    if n < world and (drop_last or n == 0):
        return  # torch's asserts that it has enough
    order = shuffled(n, seed=0)
    for rank in range(world):
        wanted = DistributedSampler(range(n), world, rank, shuffle=False, drop_last=drop_last)
        shard = order.shard(rank, world, uneven=uneven)
        assert len(shard) == len(wanted)
        assert epoch_of(shard, 2).tolist() == [order(2, position) for position in wanted]
        assert not shard.padded


@pytest.mark.parametrize("world", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("n", [0, 1, 12, 13])
def test_shards_have_every_position_once(n: int, world: int) -> None:
    order = shuffled(n, seed=0)
    whole = epoch_of(order, 1)
    ragged = [epoch_of(order.shard(rank, world, uneven="ragged"), 1) for rank in range(world)]
    assert [part.tolist() for part in ragged] == [whole[rank::world].tolist() for rank in range(world)]
    even = [order.shard(rank, world) for rank in range(world)]
    assert {len(part) for part in even} == {-(-n // world)}
    assert {part.padded for part in even} == {n % world > 0}
    for part, right in zip(even, ragged, strict=True):
        weights = part.weight(1, torch.arange(len(part)))
        assert weights.dtype == torch.float32
        assert torch.equal(epoch_of(part, 1)[weights > 0], right)
        assert int(weights.sum()) == len(right)


def test_a_mean_over_shards_is_the_mean_of_the_whole() -> None:
    """What fills a shard up is fetched, computed, and left out exactly: also where its value is the largest."""
    values = torch.rand(13, dtype=torch.float64)
    order = shuffled(13, seed=0)
    values[epoch_of(order, 0)[:4]] = 1e6  # the ones that stand at the start, with which shards are filled up
    parts = []
    for rank in range(5):
        shard, positions = order.shard(rank, 5), torch.arange(3)
        parts.append(ps.mean(values[shard(0, positions)], weight=shard.weight(0, positions)))
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    torch.testing.assert_close(merged.value(), values.mean(), rtol=1e-14, atol=0)


@given(st.data())
@FEW
def test_a_world_of_any_size_goes_on_from_one_integer(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 60))
    order, at, seen = shuffled(n, seed=3), 0, []
    for _ in range(4):
        world = data.draw(st.integers(1, 9))
        shards = [order.skip(at).shard(rank, world) for rank in range(world)]
        steps = data.draw(st.integers(0, len(shards[0])))
        for step in range(steps):
            seen += [shard(2, step) for shard in shards if shard.weight(2, step) > 0]
        at = min(at + steps * world, n)
    assert seen == epoch_of(order, 2)[:at].tolist()


# ----------------------------------------------------------------------------------------------- parts and batches


@given(laws.orders(max_length=30), st.data())
@FEW
def test_parts_join_to_the_whole(order: IndexOrder, data: st.DataObject) -> None:
    epoch, cut = data.draw(st.integers(0, 3)), data.draw(st.integers(0, len(order)))
    whole = epoch_of(order, epoch)
    assert torch.equal(torch.cat([epoch_of(order.take(cut), epoch), epoch_of(order.skip(cut), epoch)]), whole)
    repeated = order.repeat(3)
    right = torch.cat([epoch_of(order, 3 * epoch + i) for i in range(3)])
    assert torch.equal(epoch_of(repeated, epoch), right)
    mixed_up = torch.randperm(len(right), generator=torch.Generator().manual_seed(0))
    assert torch.equal(repeated(epoch, mixed_up), right[mixed_up])


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("n", "size"), [(0, 3), (1, 3), (9, 3), (10, 3), (2, 5)])
def test_batches_are_those_of_the_batch_sampler(n: int, size: int, drop_last: bool) -> None:
    order = sequential(n)
    batches = order.batched(size, drop_last=drop_last)
    wanted = list(BatchSampler(SequentialSampler(range(n)), size, drop_last))
    assert len(batches) == len(wanted)
    assert [batches(4, number).tolist() for number in range(len(batches))] == wanted
    assert [batches.weight(4, number).tolist() for number in range(len(batches))] == [[1.0] * len(b) for b in wanted]
    if wanted:
        everything = torch.arange(len(batches)).reshape(1, -1)
        table, weights = batches(4, everything), batches.weight(4, everything)
        assert table.shape == weights.shape == (1, len(batches), size)
        assert table[weights > 0].tolist() == [index for batch in wanted for index in batch]
        assert batches.padded == bool((weights == 0).any())
    twin = eval(repr(batches), vars(ps.data))
    assert (twin, hash(twin), twin.fingerprint()) == (batches, hash(batches), batches.fingerprint())
    assert batches.fingerprint() != order.batched(size + 1, drop_last=drop_last).fingerprint()


def test_ranks_get_batches_of_similar_length() -> None:
    lengths = torch.rand(960, generator=torch.Generator().manual_seed(0))
    order, ranks = grouped(lengths, 8 * 4, seed=0, bucket=2), lengths.argsort().argsort()
    shards = [order.shard(rank, 4).batched(8) for rank in range(4)]
    for step in range(len(shards[0])):
        together = torch.cat([ranks[shard(0, step)] for shard in shards])
        assert int(together.max() - together.min()) < 2 * 2 * 32


def test_an_order_of_ones_own_in_the_algebra() -> None:
    """A name of its own goes into the fingerprints of what is made of it, and its parts are asked the same way."""

    class Named(IndexOrder):
        def __init__(self, name: str) -> None:
            self.name = name

        def __len__(self) -> int:
            return 6

        def _indices(self, epoch: int, positions: torch.Tensor) -> torch.Tensor:
            return 5 - positions

        def fingerprint(self) -> str:
            return self.name

    one = Named("a").skip(1).shard(0, 2)
    assert epoch_of(one, 0).tolist() == [4, 2, 0]
    assert (
        one.fingerprint()
        == Named("a").skip(1).shard(0, 2).fingerprint()
        != Named("b").skip(1).shard(0, 2).fingerprint()
    )
    assert mixed({"a": Named("a")}, [1]).fingerprint() != mixed({"a": Named("b")}, [1]).fingerprint()


# ------------------------------------------------------------------------------------------------------ samplers

SAMPLED = {
    "SequentialSampler": (sequential(23), False),
    "RandomSampler": (shuffled(23, seed=0), True),
    "WeightedRandomSampler": (weighted(range(1, 24), 30, seed=0), True),
    "without replacement": (weighted(range(1, 24), 20, seed=0, replacement=False), True),
    "SubsetRandomSampler": (subset([4, 1, 20, 7, 9], seed=0), True),
    "DistributedSampler": (shuffled(23, seed=0).shard(1, 3, uneven="repeat"), True),
    "DistributedSampler, drop_last": (shuffled(23, seed=0).shard(1, 3, uneven="drop"), True),
    "ragged": (shuffled(23, seed=0).shard(2, 3, uneven="ragged"), True),
    "even": (shuffled(24, seed=0).shard(2, 3), True),
}


def of_a_loader(sampler: OrderSampler) -> list[int]:
    """One ``for`` over an ordinary DataLoader."""
    kind = {"batch_sampler": sampler} if "batched" in repr(sampler) else {"sampler": sampler, "batch_size": 4}
    return torch.cat([*DataLoader(range(100), **kind), torch.empty(0, dtype=torch.int64)]).tolist()


@pytest.mark.parametrize("batched", [None, 4, 3])
@pytest.mark.parametrize("name", SAMPLED)
def test_a_loader_sees_the_order_epoch_by_epoch(name: str, batched: int | None) -> None:
    order, changes = SAMPLED[name]
    sampler = (order if batched is None else order.batched(batched)).as_sampler()
    epochs = [of_a_loader(sampler) for _ in range(3)]
    assert epochs == [epoch_of(order, epoch).tolist() for epoch in range(3)]
    assert (epochs[0] != epochs[1]) == changes
    assert sampler.state_dict() == {"epoch": 3, "position": 0}
    assert len(sampler) == (len(order) if batched is None else -(-len(order) // batched))


@pytest.mark.parametrize("name", SAMPLED)
def test_a_loader_resumes_within_an_epoch(name: str) -> None:
    order, _ = SAMPLED[name]
    for stop in range(len(order) // 4 + 1):
        sampler = order.as_sampler()
        sampler.set_epoch(1)
        seen = []
        for number, batch in enumerate(DataLoader(range(100), batch_size=4, sampler=sampler), start=1):
            seen += batch.tolist()
            if number == stop:
                break
        state = sampler.state_dict()
        assert all(type(number) is int for number in state.values())
        assert set(state) == {"epoch", "position"}
        resumed = order.as_sampler()
        resumed.load_state_dict(state)
        resumed.set_epoch(state["epoch"])  # as a training loop does; it changes nothing here
        rest = of_a_loader(resumed)
        wanted = epoch_of(order, 1).tolist()
        assert (seen + rest == wanted) if stop else (rest == epoch_of(order, 2).tolist())
        assert of_a_loader(resumed) == epoch_of(order, resumed.state_dict()["epoch"] - 1).tolist()


def test_a_pass_that_was_left_is_not_taken_up_again() -> None:
    sampler = shuffled(10, seed=0).as_sampler()
    running = iter(sampler)
    next(running)
    assert list(sampler) == epoch_of(shuffled(10, seed=0), 1).tolist()
    with pytest.raises(RuntimeError, match="this iterator is over"):
        next(running)
    first = iter(sampler)
    next(first)
    sampler.set_epoch(7)
    assert list(sampler) == epoch_of(shuffled(10, seed=0), 7).tolist()


def test_drop_last_of_a_batch_sampler() -> None:
    order = shuffled(11, seed=0)
    sampler = order.batched(4, drop_last=True).as_sampler()
    assert [list(sampler), list(sampler)] == [
        [batch.tolist() for batch in epoch_of(order, epoch)[:8].split(4)] for epoch in (0, 1)
    ]
    assert len(sampler) == 2


@pytest.mark.parametrize("seen", [0, 1, 3, 5])
def test_with_workers_the_state_is_of_what_was_seen(seen: int) -> None:
    """Workers are sent ahead, so the loop says how far it is."""
    order = shuffled(20, seed=0)
    sampler = order.as_sampler()
    batches = iter(DataLoader(range(20), batch_size=4, sampler=sampler, num_workers=1))
    got = [index for _ in range(seen) for index in next(batches).tolist()]
    state = sampler.state_dict(seen=4 * seen)
    del batches
    assert state == ({"epoch": 1, "position": 0} if seen == 5 else {"epoch": 0, "position": 4 * seen})
    resumed = order.as_sampler()
    resumed.load_state_dict(state)
    if seen < 5:
        assert got + list(resumed) == epoch_of(order, 0).tolist()
    by_batches = order.batched(4).as_sampler()
    list(by_batches)
    assert by_batches.state_dict(seen=seen) == state


@given(st.data())
@FEW
def test_samplers_of_another_world_go_on(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 50))
    order = shuffled(n, seed=5)
    world, other = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    samplers = [order.shard(rank, world, uneven="ragged").as_sampler() for rank in range(world)]
    steps = data.draw(st.integers(0, n // world))
    seen, states = [], []
    for sampler in samplers:
        running = iter(sampler)
        seen += [next(running) for _ in range(steps)]
        states.append(sampler.state_dict())
    assert len({tuple(state.items()) for state in states}) == 1
    for rank in range(other):
        resumed = order.shard(rank, other, uneven="ragged").as_sampler()
        resumed.load_state_dict(states[0])
        seen += list(resumed)
    assert sorted(seen) == list(range(n))


def test_the_first_index_of_a_long_sampler_is_there_at_once() -> None:
    """Nothing is drawn for the 10^12 others: a list of them would not fit anywhere."""
    order = shuffled(10**12, seed=0)
    sampler = order.as_sampler()
    positions = iter(sampler)
    assert [next(positions) for _ in range(200)] == order(0, torch.arange(200)).tolist()
    assert sampler.state_dict() == {"epoch": 0, "position": 200}
