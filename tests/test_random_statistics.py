"""The generator's numbers as chance would have them, with torch's own generator as the control of each measure.

Every statistic is a p-value, and the keys are fixed, so a test passes or fails for good. A sound generator would fail
one of the 100 or so measures below with a probability of 100 · 10^-5. torch's is measured by the same ones, and each
has a bad generator that it finds out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from purestep import random

COUNT = 1 << 16
ALARM = 1e-5  # the rate of false alarms, of each measure


def two_sided(z: float) -> float:
    """The probability that a standard normal number is further from 0 than ``z``."""
    return math.erfc(abs(z) / math.sqrt(2))


def chi_square(counts: Tensor, expected: float) -> float:
    """The p-value of counts of equally likely cells, two-sided: too even is as suspect as too uneven."""
    statistic = ((counts.double() - expected) ** 2 / expected).sum()
    upper = torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2.0, dtype=torch.float64), statistic / 2).item()
    return 2 * min(upper, 1 - upper)


def mean(u: Tensor) -> float:
    return two_sided((u.mean().item() - 0.5) * math.sqrt(12 * len(u)))


def variance(u: Tensor) -> float:
    # ((u - 1/2)^2 has mean 1/12 and variance 1/180.)
    return two_sided((((u - 0.5) ** 2).mean().item() - 1 / 12) * math.sqrt(180 * len(u)))


def correlation(one: Tensor, two: Tensor) -> float:
    one, two = one - one.mean(), two - two.mean()
    return two_sided((one @ two / (one.norm() * two.norm())).item() * math.sqrt(len(one)))


def serial(u: Tensor) -> float:
    return correlation(u[:-1], u[1:])


def every_fourth(u: Tensor) -> float:
    """A block has four words: the same word of neighbouring blocks."""
    return correlation(u[:-4], u[4:])


def cells(u: Tensor) -> float:
    return chi_square(torch.bincount((u * 256).long(), minlength=256), len(u) / 256)


def pairs(u: Tensor) -> float:
    """Neighbours fall into each cell of a 16 by 16 square as often."""
    cell = (u[0::2] * 16).long() * 16 + (u[1::2] * 16).long()
    return chi_square(torch.bincount(cell, minlength=256), len(u) / 2 / 256)


MEASURES: dict[str, Callable[[Tensor], float]] = {
    measure.__name__: measure for measure in (mean, variance, serial, every_fourth, cells, pairs)
}
measured = pytest.mark.parametrize("measure", MEASURES.values(), ids=list(MEASURES))


def ours() -> Tensor:
    return random.uniform(random.key(0), (COUNT,), dtype=torch.float64)


def torchs(seed: int = 0) -> Tensor:
    return torch.rand(COUNT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@measured
def test_uniform_numbers(measure):
    assert measure(torchs()) > ALARM
    assert measure(ours()) > ALARM


# What each measure is there for: numbers of which it finds out what is wrong.
BAD = {
    "mean": torchs() * 0.98,
    "variance": torchs() * 0.96 + 0.02,
    "serial": torchs().repeat_interleave(2),
    "every_fourth": torchs()[: COUNT // 2].reshape(-1, 1, 4).expand(-1, 2, 4).reshape(-1),
    "cells": (torchs() * 200).floor() / 200,
    "pairs": torch.arange(COUNT, dtype=torch.float64) * 65 % 4096 / 4096,  # a linear congruential generator's lattice
}


@measured
def test_each_measure_finds_out_bad_numbers(measure):
    assert measure(BAD[measure.__name__]) < ALARM


def byte_counts(words: Tensor) -> list[float]:
    """P-values of the four bytes of words, and of all their 32 bits."""
    values = [chi_square(torch.bincount((words >> 8 * i) & 255, minlength=256), len(words) / 256) for i in range(4)]
    ones = torch.stack([(words >> i) & 1 for i in range(32)]).double().mean(1)
    z = (ones - 0.5) * 2 * math.sqrt(len(words))
    statistic = (z**2).sum() / 2
    values.append(torch.special.gammaincc(torch.tensor(16.0, dtype=torch.float64), statistic.double()).item())
    return values


def test_every_byte_and_bit_of_the_words():
    control = torch.randint(0, 1 << 32, (COUNT,), generator=torch.Generator().manual_seed(0))
    assert min(byte_counts(control)) > ALARM
    assert min(byte_counts(random.bits(random.key(0), (COUNT,)))) > ALARM
    for lane in range(4):
        assert min(byte_counts(random.bits(random.key(1), (COUNT,)).reshape(-1, 4)[:, lane])) > ALARM
    stuck = control & ~(1 << 13)
    assert min(byte_counts(stuck)) < ALARM


ROOT = random.key(2**40 + 5)
# Streams that a training run draws side by side: of neighbouring call sites, calls, examples, keys.
STREAMS: dict[str, Callable[[int], Tensor]] = {
    "call sites": lambda i: random.uniform(ROOT, (4096,), site=i, dtype=torch.float64),
    "high call sites": lambda i: random.uniform(ROOT, (4096,), site=i << 32, dtype=torch.float64),
    "calls": lambda i: random.uniform(random.call_key(ROOT, i), (4096,), dtype=torch.float64),
    "examples": lambda i: random.uniform(ROOT, (4096,), start=4096 * i, dtype=torch.float64),
    "split keys": lambda i: random.uniform(random.split(ROOT, 16)[i], (4096,), dtype=torch.float64),
    "folded keys": lambda i: random.uniform(random.fold_in(ROOT, i), (4096,), dtype=torch.float64),
    "seeds": lambda i: random.uniform(random.key(i), (4096,), dtype=torch.float64),
    "seeds' high words": lambda i: random.uniform(random.key(i << 32), (4096,), dtype=torch.float64),
}


def relation(stream: Callable[[int], Tensor]) -> float:
    """The smallest p-value of the correlations between 16 streams, 120 pairs, and of the numbers at one place of each;
    times their number."""
    together = torch.stack([stream(i) for i in range(16)])
    values = [correlation(together[i], together[j]) for i in range(16) for j in range(i)]
    across = together.t().reshape(-1)  # neighbouring streams' numbers follow each other
    values += [mean(across), serial(across), cells(across), pairs(across)]
    return min(values) * len(values)


@pytest.mark.parametrize("stream", STREAMS.values(), ids=list(STREAMS))
def test_streams_side_by_side_are_unrelated(stream):
    assert relation(stream) > ALARM


def test_torchs_streams_are_unrelated_and_bad_ones_are_found_out():
    assert relation(lambda i: torch.rand(4096, generator=torch.Generator().manual_seed(i), dtype=torch.float64)) > ALARM
    # A call site that is not passed on.
    assert relation(lambda i: random.uniform(ROOT, (4096,), dtype=torch.float64)) < ALARM
    # An example's stream that begins one word after the one before.
    shifted = [random.uniform(ROOT, (4096,), start=i, dtype=torch.float64) for i in range(16)]
    assert relation(lambda i: shifted[i]) < ALARM
    # The next key is the last plus one, of a linear congruential generator.
    steps = torch.arange(4096)
    assert relation(lambda i: ((i * 1664525 + steps * 1013904223) % (1 << 32)).double() / 2**32) < ALARM


def normal_measures(z: Tensor) -> float:
    u = torch.special.ndtr(z.double())
    moments = [two_sided((z**4).mean().sub(3).item() * math.sqrt(len(z) / 96))]
    return min([*(measure(u) for measure in MEASURES.values()), *moments])


def test_normal_numbers():
    control = torch.randn(COUNT, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert normal_measures(control) > ALARM
    assert normal_measures(random.normal(random.key(0), (COUNT,), dtype=torch.float64)) > ALARM
    assert normal_measures(control * 1.02) < ALARM
    # The cosine for both of a pair.
    assert normal_measures(control[::2].repeat_interleave(2)) < ALARM


def test_exponential_and_gumbel_numbers_by_their_distributions():
    exponential = random.exponential(random.key(3), (COUNT,), dtype=torch.float64)
    gumbel = random.gumbel(random.key(3), (COUNT,), dtype=torch.float64, site=1)
    for measure in MEASURES.values():
        assert measure(torch.exp(-exponential)) > ALARM
        assert measure(torch.exp(-torch.exp(-gumbel))) > ALARM


@pytest.mark.parametrize("size", [3, 255, 1 << 32, 3 << 60])
def test_integers_of_a_range(size):
    drawn = random.randint(random.key(size), (COUNT,), 0, size)
    cells = min(size, 256)
    counts = torch.bincount((drawn.double() / size * cells).long().clamp(max=cells - 1), minlength=cells)
    assert chi_square(counts, COUNT / cells) > ALARM
