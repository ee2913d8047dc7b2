"""Whether shuffled and weighted orders look like chance: p-values, with torch's own generator as the control.

Seeds are fixed, so a run tells of the code and not of luck. Of fair orders a p-value is below ``ALARM`` with that
probability; all of them here together (less than 500) give a false alarm with one below 1 in 2000, should the keys ever
change. The mutants (four rounds; a key that adds seed and epoch) must be below ``CAUGHT``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from _orders import Aliased, FourRounds, epoch_of
from purestep.data import IndexOrder, grouped, shuffled, stratified, weighted, with_replacement
from purestep.data.orders._keyed import key_words
from purestep.data.orders._permutation import GROUP_ROUNDS, permute_groups
from purestep.data.orders.basic import _Shuffled

ALARM, CAUGHT = 1e-6, 1e-20


def chi_square(counts: Tensor, expected: Tensor | float, freedom: int | None = None) -> float:
    """Two-sided p-value of Pearson's statistic: counts too even are as suspect as counts too uneven."""
    counts = counts.double()
    statistic = ((counts - expected) ** 2 / expected).sum()
    half = torch.tensor((counts.numel() - 1 if freedom is None else freedom) / 2, dtype=torch.float64)
    above, below = torch.special.gammaincc(half, statistic / 2), torch.special.gammainc(half, statistic / 2)
    few = counts.numel() < 10  # of which the chance of exactly even counts is no longer small
    return float(above) if few else 2 * min(float(above), float(below))


def normal(deviations: float) -> float:
    """Two-sided p-value of a standard normal number."""
    return math.erfc(abs(deviations) / math.sqrt(2))


def ranked(permutations: Tensor) -> Tensor:
    """Number permutations (count, n) from 0 to n! - 1."""
    n = permutations.shape[1]
    code = torch.zeros(len(permutations), dtype=torch.int64)
    for i in range(n):
        code = code * (n - i) + (permutations[:, i + 1 :] < permutations[:, i : i + 1]).sum(1)
    return code


def all_permutations(draw: Callable[[int], Tensor], n: int, each: int = 20) -> float:
    """χ² over the n! permutations, with ``each`` expected of each."""
    codes = ranked(torch.stack([draw(i) for i in range(each * math.factorial(n))]))
    return chi_square(torch.bincount(codes, minlength=math.factorial(n)), each)


def of_epochs(epochs: Tensor) -> dict[str, float]:
    """P-values of what should hold of permutations (epochs, n) from a fair shuffle."""
    count, n = epochs.shape
    width = -(-n // (math.isqrt(n - 1) + 1))  # of the network: its weakness would show between positions so far apart
    variance = (n * n - 1) / 12
    centred = epochs.double() - (n - 1) / 2
    result = {}
    for lag in (1, 2, width, width + 1, 2 * width):
        correlation = float((centred[:, lag:] * centred[:, :-lag]).mean()) / variance + 1 / (n - 1)
        result[f"serial correlation at lag {lag}"] = normal(correlation * math.sqrt(count * (n - lag)))
        differences = (epochs[:, lag:] - epochs[:, :-lag]).remainder(n)
        bins = torch.bincount(differences.flatten() * 64 // n, minlength=64)
        share = torch.bincount(torch.arange(1, n) * 64 // n, minlength=64).double() / (n - 1)
        result[f"differences at lag {lag}"] = chi_square(bins, share * differences.numel())
    for size in (32, 128):
        batches = n // size
        means = centred[:, : batches * size].reshape(count, batches, size).mean(-1)
        ratio = float((means**2).mean()) / (variance / size * (n - size) / (n - 1))
        # The means of an epoch's batches add up to about nothing, which takes one degree of freedom from each epoch.
        result[f"variance of the means of batches of {size}"] = normal((ratio - 1) * math.sqrt(count * batches / 2))
    bins = epochs[:, :16] * 16 // n + 16 * torch.arange(16)
    result["index by position"] = chi_square(torch.bincount(bins.flatten(), minlength=256), count / 16, 16 * 15)
    first = epochs * 16 // n
    pairs = {f"positions 0 and {lag}": (first[:, 0], first[:, lag]) for lag in (1, width)}
    pairs["a position and the same one in the next epoch"] = (first[:-1, :8].flatten(), first[1:, :8].flatten())
    for name, (one, other) in pairs.items():
        table = torch.bincount(one * 16 + other, minlength=256)
        result[f"pairs of {name}"] = chi_square(table, len(one) / 256)
    fixed = float((epochs == torch.arange(n)).double().sum(1).mean())
    result["fixed points"] = normal((fixed - 1) * math.sqrt(count))
    return result


def worst(p_values: dict[str, float]) -> tuple[float, str]:
    return min((value, name) for name, value in p_values.items())


def fair(n: int) -> Callable[[int], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda _: torch.randperm(n, generator=generator)


# ------------------------------------------------------------------------------------------------------ shuffles


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_all_permutations_are_equally_frequent(n: int) -> None:
    each = 100 if n < 5 else 6
    assert all_permutations(fair(n), n, each) > ALARM
    assert all_permutations(lambda epoch: epoch_of(shuffled(n, seed=1), epoch), n, each) > ALARM
    assert all_permutations(lambda seed: epoch_of(shuffled(n, seed=seed), 1), n, each) > ALARM


def test_four_rounds_do_not_reach_all_permutations_equally() -> None:
    assert all_permutations(lambda epoch: epoch_of(FourRounds(5, 1), epoch), 5) < CAUGHT


@pytest.mark.parametrize("n", [900, 1025, 4096])
def test_statistics_across_epochs_and_across_seeds(n: int) -> None:
    count = 500
    for draw in (
        fair(n),
        lambda epoch: epoch_of(shuffled(n, seed=5), epoch),
        lambda seed: epoch_of(shuffled(n, seed=seed), 5),
    ):
        value, name = worst(of_epochs(torch.stack([draw(i) for i in range(count)])))
        assert value > ALARM, name


@pytest.mark.parametrize("n", [1025, 4096])
def test_the_statistics_catch_four_rounds(n: int) -> None:
    p_values = of_epochs(torch.stack([epoch_of(FourRounds(n, 5), epoch) for epoch in range(500)]))
    value, name = worst(p_values)
    assert value < CAUGHT, name
    assert p_values["serial correlation at lag " + str(-(-n // (math.isqrt(n - 1) + 1)))] < CAUGHT


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
    assert normal((odd - 200) / 10) > ALARM


def matches(make: Callable[[int, int], IndexOrder], n: int) -> int:
    """Positions at which the epochs of neighbouring (seed, epoch) pairs agree, over all pairs with equal sums."""
    total = 0
    for s in range(4):
        rows = [epoch_of(make(n, seed), s - seed) for seed in range(s + 1)]
        total += sum(int((rows[i] == rows[j]).sum()) for i in range(len(rows)) for j in range(i))
    return total


@pytest.mark.parametrize("n", [1000, 5000])
def test_seed_and_epoch_do_not_alias(n: int) -> None:
    # Ten pairs, in each about a Poisson number of mean 1: 35 or more have a chance of 4e-9.
    assert matches(_Shuffled, n) < 35
    assert matches(Aliased, n) == 10 * n


def test_lengths_do_not_alias() -> None:
    short, long = epoch_of(shuffled(1000, seed=0), 0), epoch_of(shuffled(1001, seed=0), 0)
    assert int((short == long[:1000]).sum()) < 12


# ---------------------------------------------------------------------------------- shuffles of many small groups


def group_permutations(n: int, rounds: int, groups: int = 20_000) -> Tensor:
    """The permutations of many groups of n places each, (groups, n)."""
    group, place = torch.arange(groups).repeat_interleave(n), torch.arange(n).repeat(groups)
    sizes = torch.full((groups,), n)
    return permute_groups(sizes, group, key_words(f"test {n}", 48), place, rounds=rounds).view(groups, n)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_groups_have_all_permutations_equally_often(n: int) -> None:
    codes, kinds = ranked(group_permutations(n, GROUP_ROUNDS)), math.factorial(n)
    assert chi_square(torch.bincount(codes, minlength=kinds), len(codes) / kinds) > ALARM
    if n < 5:
        pairs = codes[0::2] * kinds + codes[1::2]  # of neighbouring groups
        assert chi_square(torch.bincount(pairs, minlength=kinds**2), len(pairs) / kinds**2) > ALARM


def test_groups_with_few_rounds_are_caught() -> None:
    codes = ranked(group_permutations(5, rounds=4))
    assert chi_square(torch.bincount(codes, minlength=120), len(codes) / 120) < CAUGHT


@pytest.mark.parametrize(
    "order",
    [
        stratified([0] * 20 + [1] * 9 + [2], seed=0),
        grouped(range(30), 5, seed=0, bucket=2),
    ],
    ids=["stratified", "grouped"],
)
def test_an_example_stands_anywhere_equally_often(order: IndexOrder) -> None:
    n, count = len(order), 300
    epochs = torch.stack([epoch_of(order, epoch) for epoch in range(count)])
    table = torch.bincount((epochs + n * torch.arange(n)).flatten(), minlength=n * n)
    # The rows of one epoch are not independent draws: a permutation matrix has (n - 1)^2 free entries, and a sum of
    # such ones Pearson's distribution times n / (n - 1) in the place of n^2 - 1 degrees.
    statistic = (table - count / n) * math.sqrt((n - 1) / n)
    assert chi_square(statistic + count / n, count / n, (n - 1) ** 2) > ALARM


def test_any_example_comes_into_the_short_batch() -> None:
    order, count = grouped(range(31), 5, seed=0, bucket=2), 600
    last = torch.tensor([order(epoch, 30) for epoch in range(count)])
    assert chi_square(torch.bincount(last, minlength=31), count / 31) > ALARM


# --------------------------------------------------------------------------------------------------------- draws


def draws_of(make: Callable[[int, int], IndexOrder], count: int = 20_000) -> dict[str, Tensor]:
    """Draws along an epoch, across epochs at a few positions, and across seeds."""
    few, many = 40, count // 40
    return {
        "an epoch": epoch_of(make(count, 0), 0),
        "epochs": torch.stack([epoch_of(make(few, 0), epoch) for epoch in range(many)]).flatten(),
        "seeds": torch.stack([epoch_of(make(few, seed), 0) for seed in range(many)]).flatten(),
    }


@pytest.mark.parametrize("kind", ["weighted", "with replacement", "torch"])
def test_draws_have_their_frequencies(kind: str) -> None:
    weights = torch.tensor([0.5, 0.0, 2.0, 1.0, 8.0, 0.25], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    if kind == "with replacement":
        weights = torch.ones(6, dtype=torch.float64)
        draws = draws_of(lambda count, seed: with_replacement(6, count, seed=seed))
    elif kind == "weighted":
        draws = draws_of(lambda count, seed: weighted(weights, count, seed=seed))
    else:
        draws = {"torch": torch.multinomial(weights, 20_000, replacement=True, generator=generator)}
    share = weights / weights.sum()
    possible = share > 0
    for name, drawn in draws.items():
        counts = torch.bincount(drawn, minlength=6)
        assert int(counts[~possible].sum()) == 0
        assert chi_square(counts[possible], share[possible] * len(drawn)) > ALARM, name
        for lag in (1, 40):  # neighbours, and the same position of the next epoch or seed
            pairs = torch.bincount(drawn[lag:] * 6 + drawn[:-lag], minlength=36)
            both = (share[:, None] * share).flatten()
            assert chi_square(pairs[both > 0], both[both > 0] * (len(drawn) - lag)) > ALARM, name


def test_a_large_range_is_drawn_evenly() -> None:
    n = 3 * 2**60
    drawn = with_replacement(n, 60_000, seed=0)(0, torch.arange(60_000))
    assert chi_square(torch.bincount(drawn // (n // 96), minlength=96), 60_000 / 96) > ALARM
    assert chi_square(torch.bincount(drawn % 64, minlength=64), 60_000 / 64) > ALARM


@pytest.mark.parametrize("across", ["epochs", "seeds", "torch"])
def test_draws_without_replacement_are_successive_draws(across: str) -> None:
    """The first two: P(i, j) = w_i / W · w_j / (W - w_i)."""
    weights = torch.tensor([1.0, 5.0, 0.5, 2.5, 0.0], dtype=torch.float64)
    count, generator = 1_200, torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [
            torch.multinomial(weights, 2, generator=generator)
            if across == "torch"
            else epoch_of(
                weighted(weights, 2, seed=i * (across == "seeds"), replacement=False), i * (across == "epochs")
            )
            for i in range(count)
        ]
    )
    share = weights / weights.sum()
    both = share[:, None] * share / (1 - share[:, None])
    both.fill_diagonal_(0)
    counts = torch.bincount(drawn[:, 0] * 5 + drawn[:, 1], minlength=25)
    possible = both.flatten() > 0
    assert int(counts[~possible].sum()) == 0
    assert chi_square(counts[possible], both.flatten()[possible] * count) > ALARM
