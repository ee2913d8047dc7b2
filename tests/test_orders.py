"""Orders: exact permutations at every size, the statistics of a fair shuffle, and clear errors."""

from __future__ import annotations

import math
import pickle
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch
from torch import Tensor

from purestep.data import IndexOrder, sequential, shuffled
from purestep.data.orders import _Shuffled

POWERS = [2**k + d for k in range(9, 18) for d in (-1, 0, 1)]


@dataclass(frozen=True, repr=False)
class Network(_Shuffled):
    """The Feistel network at every size, also where the shuffle sorts."""

    sorted_up_to = 0


@dataclass(frozen=True, repr=False)
class FourRounds(Network):
    """The mutant that the statistics must catch: as many rounds as grain takes."""

    rounds = 4


@dataclass(frozen=True, repr=False)
class Aliased(_Shuffled):
    """The mutant of a key that adds seed and epoch."""

    def _keys(self, epoch: int) -> tuple[int, ...]:
        return _Shuffled(self.n, self.seed + epoch)._keys(0)


def epoch_of(order: IndexOrder, epoch: int) -> Tensor:
    return order(epoch, torch.arange(len(order)))


# ---------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("make", [_Shuffled, Network])
def test_an_epoch_is_a_permutation_at_every_small_size(make: Callable[[int, int], IndexOrder]) -> None:
    for n in range(301):
        for seed, epoch in ((0, 0), (0, 1), (7, 3), (2**70, 10**6)):
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


def test_the_first_batch_costs_the_same_at_any_length() -> None:
    positions = torch.arange(128)

    def seconds(n: int) -> float:
        start = time.perf_counter()
        shuffled(n, seed=0)(0, positions)
        return time.perf_counter() - start

    short, long = (min(seconds(n) for _ in range(20)) for n in (10**4, 10**12))
    assert long < 5 * short + 1e-3


def test_sequential_is_the_identity() -> None:
    order = sequential(5)
    assert epoch_of(order, 9).tolist() == [0, 1, 2, 3, 4]
    positions = torch.tensor([3, 1])
    order(0, positions).fill_(0)
    assert positions.tolist() == [3, 1]


def test_golden_values() -> None:
    """States saved today must find the same examples in later versions; who changes these raises ``revision``."""
    assert epoch_of(shuffled(10, seed=0), 0).tolist() == GOLDEN_SORTED
    assert shuffled(10**6, seed=42)(3, torch.tensor([0, 1, 2, 999_999])).tolist() == GOLDEN_NETWORK
    assert shuffled(10**12, seed=42)(3, 12_345) == GOLDEN_LARGE
    assert (sequential(10).fingerprint(), shuffled(10, seed=0).fingerprint()) == GOLDEN_FINGERPRINTS


GOLDEN_SORTED = [0, 7, 9, 3, 2, 1, 5, 8, 6, 4]
GOLDEN_NETWORK = [867062, 602744, 416326, 354959]
GOLDEN_LARGE = 471215892213
GOLDEN_FINGERPRINTS = ("b59b716d6def0fb5", "31600f17129fd186")


# --------------------------------------------------------------------------------------------------- statistics


def chi_square(counts: Tensor, expected: Tensor | float) -> float:
    """How many standard deviations Pearson's statistic lies above its mean."""
    freedom = counts.numel() - 1
    return float(((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


def all_permutations(draw: Callable[[int], Tensor], n: int, each: int = 40) -> float:
    """χ² over the n! permutations, with ``each`` expected of each."""
    counts = Counter(tuple(draw(i).tolist()) for i in range(each * math.factorial(n)))
    table = torch.zeros(math.factorial(n), dtype=torch.float64)
    table[: len(counts)] = torch.tensor(list(counts.values()), dtype=torch.float64)
    return chi_square(table, each)


def of_epochs(epochs: Tensor) -> dict[str, float]:
    """Statistics of permutations (epochs, n), each in standard deviations from what a fair shuffle gives."""
    count, n = epochs.shape
    width = -(-n // (math.isqrt(n - 1) + 1))  # of the network: its weakness would show between positions so far apart
    variance = (n * n - 1) / 12
    centred = epochs.double() - (n - 1) / 2
    result = {}
    for lag in (1, 2, width, width + 1, 2 * width):
        correlation = float((centred[:, lag:] * centred[:, :-lag]).mean()) / variance + 1 / (n - 1)
        result[f"serial correlation at lag {lag}"] = correlation * math.sqrt(count * (n - lag))
        differences = (epochs[:, lag:] - epochs[:, :-lag]).remainder(n)
        bins = torch.bincount(differences.flatten() * 64 // n, minlength=64).double()
        share = torch.bincount(torch.arange(1, n) * 64 // n, minlength=64).double() / (n - 1)
        result[f"differences at lag {lag}"] = chi_square(bins, share * differences.numel())
    for size in (32, 128):
        batches = n // size
        means = centred[:, : batches * size].reshape(count, batches, size).mean(-1)
        expected = variance / size * (n - size) / (n - 1)
        deviation = math.sqrt(2 / (count * batches))
        result[f"variance of the means of batches of {size}"] = (float((means**2).mean()) / expected - 1) / deviation
    bins = epochs[:, :16] * 16 // n + 16 * torch.arange(16)
    result["index by position"] = chi_square(torch.bincount(bins.flatten(), minlength=256).double(), count / 16)
    for other in (1, width):
        pairs = (epochs[:, 0] * 16 // n) * 16 + epochs[:, other] * 16 // n
        result[f"pairs of positions 0 and {other}"] = chi_square(
            torch.bincount(pairs, minlength=256).double(), count / 256
        )
    result["fixed points"] = float((epochs == torch.arange(n)).double().sum(1).mean() - 1) * math.sqrt(count)
    return result


def worst(statistics: dict[str, float]) -> tuple[float, str]:
    return max((abs(value), name) for name, value in statistics.items())


def fair(n: int) -> Callable[[int], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda _: torch.randperm(n, generator=generator)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_permutations_are_equally_frequent(n: int) -> None:
    assert all_permutations(fair(n), n) < 4
    assert all_permutations(lambda epoch: epoch_of(shuffled(n, seed=1), epoch), n) < 4
    assert all_permutations(lambda seed: epoch_of(shuffled(n, seed=seed), 1), n) < 4


def test_four_rounds_do_not_reach_all_permutations_equally() -> None:
    assert all_permutations(lambda epoch: epoch_of(FourRounds(5, 1), epoch), 5, each=20) > 20


@pytest.mark.parametrize("n", [900, 1025, 1600, 4096])
def test_statistics_across_epochs_and_across_seeds(n: int) -> None:
    count = 600
    for draw in (
        fair(n),
        lambda epoch: epoch_of(shuffled(n, seed=5), epoch),
        lambda seed: epoch_of(shuffled(n, seed=seed), 5),
    ):
        value, name = worst(of_epochs(torch.stack([draw(i) for i in range(count)])))
        assert value < 5, name


@pytest.mark.parametrize("n", [1025, 1600, 4096])
def test_the_statistics_catch_four_rounds(n: int) -> None:
    statistics = of_epochs(torch.stack([epoch_of(FourRounds(n, 5), epoch) for epoch in range(600)]))
    value, name = worst(statistics)
    assert value > 20, name


@pytest.mark.parametrize("n", [9, 1089])
def test_half_of_the_permutations_are_odd(n: int) -> None:
    """Squares of odd numbers are where a network over √n × √n would give even permutations alone."""

    def is_odd(permutation: list[int]) -> bool:
        cycles, seen = 0, [False] * n
        for start in range(n):
            cycles += not seen[start]
            at = start
            while not seen[at]:
                seen[at] = True
                at = permutation[at]
        return (n - cycles) % 2 == 1

    odd = sum(is_odd(epoch_of(shuffled(n, seed=0), epoch).tolist()) for epoch in range(400))
    assert abs(odd - 200) < 40


def matches(make: Callable[[int, int], IndexOrder], n: int) -> int:
    """Positions at which the epochs of neighbouring (seed, epoch) pairs agree, over all pairs with equal sums."""
    total = 0
    for s in range(4):
        rows = [epoch_of(make(n, seed), s - seed) for seed in range(s + 1)]
        total += sum(int((rows[i] == rows[j]).sum()) for i in range(len(rows)) for j in range(i))
    return total


@pytest.mark.parametrize("n", [1000, 5000])
def test_seed_and_epoch_do_not_alias(n: int) -> None:
    assert matches(_Shuffled, n) < 40  # ten pairs, one match expected in each
    assert matches(Aliased, n) == 10 * n


def test_lengths_do_not_alias() -> None:
    short, long = epoch_of(shuffled(1000, seed=0), 0), epoch_of(shuffled(1001, seed=0), 0)
    assert int((short == long[:1000]).sum()) < 10


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


def test_value_semantics() -> None:
    orders = [sequential(10), sequential(11), shuffled(10, seed=0), shuffled(10, seed=1), shuffled(11, seed=0)]
    for i, order in enumerate(orders):
        twin = eval(repr(order), {"sequential": sequential, "shuffled": shuffled})
        assert twin == order
        assert hash(twin) == hash(order)
        assert twin.fingerprint() == order.fingerprint()
        assert pickle.loads(pickle.dumps(order)) == order
        assert all(order != other for other in orders[:i])
    assert len({order.fingerprint() for order in orders}) == len(orders)
    with pytest.raises(FrozenInstanceError):
        orders[0].n = 3  # type: ignore[attr-defined]


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


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sequential(-1), ValueError, "n must be an int of at least 0, got -1"),
        (lambda: sequential(2.0), TypeError, "n must be an int of at least 0, got 2.0 of type float"),
        (lambda: shuffled(2**62 + 1, seed=0), ValueError, f"n must be at most 2^62, got {2**62 + 1}"),
        (lambda: shuffled(5, seed=-3), ValueError, "seed must be an int of at least 0, got -3"),
        (lambda: shuffled(5, seed=None), TypeError, "seed must be an int of at least 0, got None of type NoneType"),
        (lambda: shuffled(5, 0)(-1, 0), ValueError, "epoch must be an int of at least 0, got -1"),
        (lambda: shuffled(5, 0)(0.0, 0), TypeError, "epoch must be an int of at least 0, got 0.0 of type float"),
        (lambda: shuffled(5, 0)(0, 5), ValueError, "positions must be from 0 to 4, got 5 in shuffled(5, seed=0)"),
        (lambda: shuffled(5, 0)(0, -1), ValueError, "positions must be from 0 to 4, got -1"),
        (lambda: sequential(0)(0, 0), ValueError, "positions must be none, for the order is empty, got 0"),
        (
            lambda: sequential(5)(0, torch.tensor([0, 7])),
            ValueError,
            "positions must be from 0 to 4, got 7 in sequential(5)",
        ),
        (lambda: sequential(5)(0, torch.tensor([-2, 1])), ValueError, "positions must be from 0 to 4, got -2"),
        (lambda: sequential(5)(0, [0, 1]), TypeError, "positions must be an int or an int64 tensor, got [0, 1]"),
        (lambda: sequential(5)(0, True), TypeError, "positions must be an int or an int64 tensor, got True"),
        (lambda: sequential(5)(0, torch.tensor([0.0])), TypeError, "got a tensor of torch.float32"),
    ],
)
def test_bad_arguments(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
