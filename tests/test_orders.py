"""Orders: exact permutations at every size, what each kind gives, value semantics, and clear errors."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import purestep as ps
from _orders import Network, epoch_of
from purestep.data import (
    IndexOrder,
    grouped,
    mixed,
    sequential,
    shuffled,
    stratified,
    subset,
    weighted,
    with_replacement,
)
from purestep.data.orders._keyed import below
from purestep.data.orders._permutation import _hash, _radices
from purestep.data.orders.basic import _Shuffled
from purestep.data.orders.weighted import _exact_log

POWERS = [2**k + d for k in range(9, 18) for d in (-1, 0, 1)]

# ---------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("make", [_Shuffled, Network])
def test_an_epoch_is_a_permutation_at_every_small_size(make: Callable[[int, int], IndexOrder]) -> None:
    for n in range(301):
        for seed, epoch in ((0, 0), (7, 3), (2**70, 10**6)):
            indices = epoch_of(make(n, seed), epoch)
            assert torch.equal(indices.sort().values, torch.arange(n)), (n, seed, epoch)


@pytest.mark.parametrize("n", POWERS)
def test_an_epoch_is_a_permutation_around_powers_of_two(n: int) -> None:
    for seed, epoch in ((0, 0), (3, 5)):
        assert torch.equal(epoch_of(shuffled(n, seed), epoch).sort().values, torch.arange(n))


@pytest.mark.parametrize("n", [10**9, 10**12, 2**40 - 1, 2**40, 2**40 + 1, 2**62])
def test_no_index_comes_twice_in_a_large_order(n: int) -> None:
    draw = random.Random(n)
    positions = torch.tensor([*range(50_000), *{draw.randrange(50_000, n - 1) for _ in range(50_000)}, n - 1])
    indices = shuffled(n, seed=1)(2, positions)
    assert indices.min() >= 0
    assert indices.max() < n
    assert len(indices.unique()) == len(positions)
    assert indices.double().mean() == pytest.approx(n / 2, rel=0.01)


def undone(order: _Shuffled, epoch: int, indices: Tensor) -> Tensor:
    """The positions of indices: each round of the network backwards, and on while the result is outside."""
    keys, (a, b), n = order._keys(epoch), _radices(order.n), order.n
    left, right = indices // b, indices % b
    for i in reversed(range(order.rounds)):
        left, right = right, left
        left = (left - (_hash(right ^ keys[i]) >> 20)) % (b if i % 2 else a)
    positions = left * b + right
    outside = positions >= n
    if outside.any():
        positions[outside] = undone(order, epoch, positions[outside])
    return positions


@pytest.mark.parametrize("n", [2**k + d for k in range(18, 41) for d in (-1, 0, 1)] + [10**12, 2**62])
def test_the_shuffle_can_be_undone(n: int) -> None:
    """What has an inverse gives no index twice: exact, at lengths whose epochs nobody can list."""
    draw = random.Random(n)
    positions = torch.tensor([0, 1, 2, n - 2, n - 1, *(draw.randrange(n) for _ in range(2_000))])
    order = shuffled(n, seed=4)
    indices = order(3, positions)
    assert int(indices.min()) >= 0
    assert int(indices.max()) < n
    assert torch.equal(undone(order, 3, indices), positions)


def test_sequential_is_the_identity() -> None:
    order = sequential(5)
    assert epoch_of(order, 9).tolist() == [0, 1, 2, 3, 4]
    positions = torch.tensor([3, 1])
    order(0, positions).fill_(0)
    assert positions.tolist() == [3, 1]


def test_golden_values() -> None:
    """States saved today must find the same examples in later versions; who changes these raises ``revision``."""
    assert epoch_of(shuffled(10, seed=0), 0).tolist() == [0, 7, 9, 3, 2, 1, 5, 8, 6, 4]
    network = shuffled(10**6, seed=42)(3, torch.tensor([0, 1, 2, 999_999])).tolist()
    assert network == [867062, 602744, 416326, 354959]
    assert shuffled(10**12, seed=42)(3, 12_345) == 471215892213
    got = {name: epoch_of(order, 1)[:8].tolist() for name, order in GOLDEN_ORDERS.items()}
    assert got == GOLDEN
    fingerprints = (sequential(10).fingerprint(), shuffled(10, seed=0).fingerprint())
    assert fingerprints == ("b59b716d6def0fb5", "31600f17129fd186")


GOLDEN_ORDERS = {
    "subset": subset(range(3, 40, 4), seed=1),
    "with_replacement": with_replacement(10**12, 8, seed=1),
    "weighted": weighted([0.5, 0, 2, 1], 8, seed=1),
    "without": weighted([0.5, 0, 2, 1, 1, 7, 3, 0.1, 4], 8, seed=1, replacement=False),
    "grouped": grouped([5, 3, 9, 1, 1, 2, 8, 7, 4, 6], 3, seed=1, bucket=1),
    "stratified": stratified([0, 1, 0, 0, 1, 2, 0, 0, 1], seed=1),
    "mixed": mixed({"a": shuffled(5, seed=0), "b": sequential(3)}, [2, 1]),
}
GOLDEN = {
    "subset": [31, 27, 39, 35, 23, 15, 11, 3],
    "with_replacement": [
        667211650508,
        122148963906,
        884735754769,
        384593428593,
        906711512170,
        556422597314,
        444753853712,
        844372221177,
    ],
    "weighted": [3, 2, 2, 0, 2, 2, 2, 2],
    "without": [8, 5, 6, 2, 0, 7, 4, 3],
    "grouped": [4, 3, 5, 8, 0, 1, 9, 6],
    "stratified": [6, 4, 0, 1, 2, 8, 7, 5],
    "mixed": [7, 0, 3, 5, 1, 2, 6, 1],
}


# --------------------------------------------------------------------------------------------------- every kind


def test_a_subset_is_its_indices() -> None:
    indices = torch.tensor([9, 2, 2, 40])
    order = subset(indices)
    indices.zero_()
    assert epoch_of(order, 0).tolist() == epoch_of(order, 1).tolist() == [9, 2, 2, 40]
    assert (order.bound, order.distinct, subset([4, 1]).distinct) == (41, False, True)
    several = subset(np.arange(0, 3000, 3), seed=1)
    first, second = epoch_of(several, 0), epoch_of(several, 1)
    assert not torch.equal(first, second)
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(0, 3000, 3))
    assert len(subset([])) == subset([]).bound == 0


def test_weights_of_zero_are_never_drawn() -> None:
    weights = torch.zeros(1000)
    weights[[0, 17, 998]] = torch.tensor([1.0, 1e-3, 5.0])
    drawn = epoch_of(weighted(weights, 50_000, seed=0), 0)
    assert set(drawn.tolist()) == {0, 17, 998}
    for epoch in range(20):
        once = epoch_of(weighted(weights, 3, seed=0, replacement=False), epoch)
        assert sorted(once.tolist()) == [0, 17, 998]


def test_more_categories_than_float32_can_count() -> None:
    """torch's sampler refuses 2^24 + 1 weights, and a float32 cumulative sum never draws the upper ones."""
    n = 2**24 + 1
    weights = torch.ones(n)
    weights[-1] = 2**24
    drawn = weighted(weights, 4_000, seed=0)(0, torch.arange(4_000))
    assert abs(int((drawn == n - 1).sum()) - 2_000) < 160  # 5 standard deviations
    assert abs(int((drawn < n // 2).sum()) - 1_000) < 140


def test_a_small_weight_among_many_keeps_its_share() -> None:
    """10^6 weights of 1e-12 beside one of 1: their sum is 1e-6, and a scale made for the largest would lose them."""
    weights = torch.full((1_000_001,), 1e-12, dtype=torch.float64)
    weights[500_000] = 1e-6
    drawn = weighted(weights, 4_000, seed=0)(0, torch.arange(4_000))
    assert abs(int((drawn == 500_000).sum()) - 2_000) < 160
    assert len(drawn.unique()) > 1_900


@pytest.mark.parametrize("scale", [1e-300, 1.0, 2.0**900])
def test_only_the_proportions_of_weights_count(scale: float) -> None:
    weights = torch.tensor([0.3, 0.1, 2.0, 0.7], dtype=torch.float64)
    for replacement in (True, False):
        right = weighted(weights, 4, seed=0, replacement=replacement)
        scaled = weighted(weights * 2.0 ** round(math.log2(scale)), 4, seed=0, replacement=replacement)
        assert all(torch.equal(epoch_of(scaled, epoch), epoch_of(right, epoch)) for epoch in range(20))


def test_a_prefix_of_the_draws_is_the_draw_of_fewer() -> None:
    for make in (
        lambda count: with_replacement(9, count, seed=0),
        lambda count: weighted(range(1, 10), count, seed=0),
        lambda count: weighted(range(1, 10), count, seed=0, replacement=False),
    ):
        assert torch.equal(epoch_of(make(8), 2)[:5], epoch_of(make(5), 2))


def test_the_logarithm_is_one() -> None:
    x = torch.cat([torch.rand(100_000, dtype=torch.float64), 2.0 ** torch.linspace(-53, -1e-12, 10_000).double()])
    x = x[(x > 0) & (x < 1)]
    error = (_exact_log(x) / x.log() - 1).abs()
    assert float(error.max()) < 1e-15


def test_scaled_draws_are_exact() -> None:
    draw = random.Random(0)
    numbers = [0, 1, 2**31 - 1, 2**31, 2**62 - 1, *(draw.randrange(2**62) for _ in range(200))]
    for n in (1, 2, 3, 2**31 - 1, 2**31, 2**31 + 1, 10**12, 2**62 - 1, 2**62):
        assert below(torch.tensor(numbers), n).tolist() == [u * n >> 62 for u in numbers]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 200, 1000])
@pytest.mark.parametrize("bucket", [1, 3, None, 64])
def test_groups_are_of_similar_length(count: int, bucket: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 500, (count,), generator=generator)
    order = grouped(lengths, 8, seed=0, bucket=bucket)
    ranks = lengths.argsort(stable=True).argsort()
    for epoch in range(3):
        indices = epoch_of(order, epoch)
        assert torch.equal(indices.sort().values, torch.arange(count))
        for batch in indices[: count // 8 * 8].split(8) if count >= 8 else ():  # a short one may go around the end
            assert int(ranks[batch].max() - ranks[batch].min()) < 8 * (bucket or 7) * 3  # two buckets, the last larger
    if count == 1000 and bucket != 64:
        assert not torch.equal(epoch_of(order, 0), epoch_of(order, 1))
        spread = [
            sum(int(lengths[batch].max() - lengths[batch].min()) for batch in epoch_of(one, 0).split(8))
            for one in (order, shuffled(count, seed=0))
        ]
        assert spread[0] < spread[1] / 3


def test_every_part_of_a_stratified_order_has_the_labels_of_the_whole() -> None:
    labels = torch.tensor([0] * 700 + [1] * 200 + [2] * 90 + [3] * 10)[epoch_of(shuffled(1000, seed=9), 0)]
    order = stratified(labels, seed=0)
    seen = []
    for epoch in range(3):
        indices = epoch_of(order, epoch)
        assert torch.equal(indices.sort().values, torch.arange(1000))
        seen.append(indices)
        for size in (10, 50, 333):
            for part in labels[indices].unfold(0, size, 7):
                counts = torch.bincount(part, minlength=4)
                assert float((counts - size * torch.tensor([0.7, 0.2, 0.09, 0.01])).abs().max()) < 3
    assert not torch.equal(seen[0], seen[1])
    assert stratified(["b", "a", "b"], seed=0) == stratified([1, 0, 1], seed=0)
    assert len(stratified([], seed=0)) == 0


def test_a_mixture_has_its_weights_exactly() -> None:
    parts = {"web": shuffled(1000, seed=1), "books": shuffled(50, seed=2), "code": sequential(7)}
    order = mixed(parts, {"web": 0.7, "books": 0.2, "code": 0.1}, length=100)
    assert order.weights == (7, 2, 1) == mixed(parts, [Fraction(7, 3), Fraction(2, 3), Fraction(1, 3)]).weights
    sources = torch.cat([order.split(epoch, torch.arange(100))[0] for epoch in range(8)])
    for window in sources.unfold(0, 10, 1):
        assert torch.bincount(window, minlength=3).tolist() == [7, 2, 1]
    for number, part in enumerate(parts.values()):  # each goes through its own epochs, without a gap
        got = torch.cat(
            [index[source == number] for source, index in (order.split(e, torch.arange(100)) for e in range(8))]
        )
        right = torch.cat([epoch_of(part, epoch) for epoch in range(-(-len(got) // len(part)))])[: len(got)]
        assert torch.equal(got, right)
    source, index = order.split(0, torch.arange(100))
    assert torch.equal(order(0, torch.arange(100)), torch.tensor([0, 1000, 1050])[source] + index)
    assert order.bound == 1057
    assert mixed(parts, [1, 1, 1], sizes={"books": 60}).bound == 1067


@pytest.mark.parametrize("weights", [[1], [1, 1], [5, 3, 2, 1, 1], [1000, 1, 1, 1], list(range(1, 40)), [2**30, 7, 3]])
def test_an_interleave_never_leaves_its_shares(weights: list[int]) -> None:
    from purestep.data.orders._interleave import Interleave

    total = sum(weights)
    k = torch.arange(4 * total if total < 10_000 else 10_000)
    source, item = Interleave(tuple(weights))(k)
    for number, weight in enumerate(weights):
        mine = (source == number).long()
        assert item[source == number].tolist() == list(range(int(mine.sum())))
        drift = mine.cumsum(0).double() - (k + 1).double() * weight / total
        assert float(drift.abs().max()) < 3


# ----------------------------------------------------------------------------------------------- the map itself


@pytest.mark.parametrize("order", [sequential(5000), shuffled(5000, seed=3), shuffled(50, seed=3), shuffled(1, seed=0)])
def test_any_shape_gives_what_single_positions_give(order: IndexOrder) -> None:
    n = len(order)
    single = [order(2, position) for position in range(min(n, 24))]
    assert all(type(index) is int for index in single)
    positions = torch.arange(len(single))
    assert order(2, positions).tolist() == single
    square = positions.flip(0).reshape(-1, 1).expand(-1, 2)  # not contiguous
    assert order(2, square).tolist() == [[index, index] for index in reversed(single)]
    assert order(2, torch.tensor(0)).shape == ()
    assert order(2, torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3)
    assert order(2, positions).dtype == torch.int64
    assert order.bound == n


def test_an_order_reads_and_writes_nothing_else() -> None:
    positions = torch.arange(3000)
    before = torch.get_rng_state()
    first = shuffled(3000, seed=0)(1, positions)
    torch.rand(7)
    torch.set_rng_state(before)
    assert torch.equal(shuffled(3000, seed=0)(1, positions), first)
    assert torch.equal(positions, torch.arange(3000))
    assert torch.equal(torch.get_rng_state(), before)


VALUES = [
    sequential(10),
    sequential(11),
    shuffled(10, seed=0),
    shuffled(10, seed=1),
    shuffled(11, seed=0),
    subset([3, 1, 4]),
    subset([3, 1, 4], seed=0),
    subset([3, 1, 5], seed=0),
    with_replacement(5, 10, seed=0),
    with_replacement(5, 11, seed=0),
    weighted([0.1, 0.7], 5, seed=0),
    weighted([0.1, 0.8], 5, seed=0),
    weighted([0.1, 0.7, 1 / 3], 2, seed=0, replacement=False),
    grouped([3, 1, 4, 1, 5], 2, seed=0),
    grouped([3, 1, 4, 1, 5], 2, seed=0, bucket=2),
    stratified([0, 1, 1], seed=0),
    stratified([0, 1, 1], seed=1),
    mixed({"a": sequential(5), "b": shuffled(3, seed=0)}, [0.25, 0.75]),
    mixed({"a": sequential(5), "b": shuffled(3, seed=0)}, [1, 3], length=5),
    mixed({"a": sequential(5), "b": shuffled(3, seed=0)}, [1, 3], sizes={"b": 7}),
]


def test_value_semantics() -> None:
    orders = [*VALUES, *(order.shard(1, 3, uneven="drop") for order in VALUES), *(o.take(1).repeat(3) for o in VALUES)]
    orders += [VALUES[0].skip(2), VALUES[0].skip(3), VALUES[0].take(9), VALUES[0].shard(1, 3), VALUES[0].shard(2, 3)]
    for i, order in enumerate(orders):
        twin = eval(repr(order), vars(ps.data))
        assert twin == order
        assert hash(twin) == hash(order)
        assert twin.fingerprint() == order.fingerprint()
        assert pickle.loads(pickle.dumps(order)) == order
        assert all(order != other for other in orders[:i])
    assert len({order.fingerprint() for order in orders}) == len(orders)
    with pytest.raises(FrozenInstanceError):
        orders[0].n = 3  # type: ignore[attr-defined]


def test_values_that_are_too_long_to_print() -> None:
    numbers = torch.arange(100_000).flip(0)
    order, twin, other = subset(numbers), subset(numbers.clone()), subset(numbers.roll(1))
    assert order == twin != other
    assert hash(order) == hash(twin)
    assert repr(order) == repr(twin) != repr(other)
    assert len(repr(order)) < 80
    assert order.fingerprint() == twin.fingerprint() != other.fingerprint()


def test_an_order_of_ones_own() -> None:
    @dataclass(frozen=True)
    class Reversed(IndexOrder):
        n: int

        def __len__(self) -> int:
            return self.n

        def _indices(self, epoch: int, positions: Tensor) -> Tensor:
            return self.n - 1 - positions

    class Nameless(Reversed):
        __repr__ = object.__repr__

    assert epoch_of(Reversed(3), 0).tolist() == [2, 1, 0]
    assert Reversed(3).fingerprint() == Reversed(3).fingerprint() != Reversed(4).fingerprint()
    with pytest.raises(TypeError, match="Nameless needs a __repr__"):
        Nameless(3).fingerprint()
