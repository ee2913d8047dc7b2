"""Intervals of a median, quartiles, and figures with their units."""

from __future__ import annotations

import math

import pytest
import torch

from purestep.measure import _format
from purestep.measure._statistics import interquartile_range, median_interval


@pytest.mark.parametrize(
    ("n", "confidence", "rank", "reached"),
    [
        (1, 0.95, 1, 0.0),
        (5, 0.95, 1, 1 - 2 * 0.5**5),  # five values cannot reach 95 %
        (6, 0.95, 1, 1 - 2 * 0.5**6),
        (10, 0.95, 2, 1 - 2 * 11 / 1024),
        (100, 0.95, 40, None),  # the textbook's ranks 40 and 61
        (7, 0.99, 1, 1 - 2 * 0.5**7),
        (8, 0.99, 1, 1 - 2 * 0.5**8),
    ],
)
def test_the_interval_of_a_median(n, confidence, rank, reached):
    values = [float(value) for value in range(1, n + 1)]
    interval = median_interval(values[::-1], confidence)
    assert (interval.low, interval.high) == (rank, n + 1 - rank)
    outside = 2 * sum(math.comb(n, k) for k in range(rank)) / 2**n
    assert interval.confidence == pytest.approx(1 - outside if reached is None else reached, abs=1e-12)


def test_the_interval_of_many_values_goes_on_as_it_did():
    low_exact = median_interval(range(5000), 0.99).low / 5000
    low_normal = median_interval(range(5001), 0.99).low / 5001
    assert low_exact == pytest.approx(low_normal, abs=1e-3)


def test_the_interval_covers_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 25, generator=generator, dtype=torch.float64).exp().pow(3).tolist()  # skewed
    true = math.exp(1.5)
    intervals = [median_interval(values, 0.9) for values in draws]
    covered = sum(true in interval for interval in intervals) / len(draws)
    assert covered == pytest.approx(intervals[0].confidence, abs=0.02)


def test_the_interquartile_range():
    assert interquartile_range([1.0]) == 0.0
    assert interquartile_range([1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (_format.seconds(12.345e-6), "12.35 µs"),
        (_format.seconds(2.0), "2.000 s"),
        (_format.seconds(0.0), "0.000 ns"),
        (_format.rate(1.234e12, "FLOP/s"), "1.234 TFLOP/s"),
        (_format.size(1536 * 1024), "1.500 MiB"),
        (_format.size(12), "12 B"),
        (_format.percent(0.0489), "4.9 %"),
        (_format.percent(3.2), "320 %"),
        (_format.percent(12.345), "1,234 %"),
        (_format.count(1, "call"), "1 call"),
        (_format.count(1000, "call"), "1,000 calls"),
    ],
)
def test_figures_have_units(text, right):
    assert text == right
