"""Order statistics: intervals that assume no shape of the noise, which on a machine is never a bell."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """Where a median lies, from ``low`` to ``high``, with the confidence that the number of values gives."""

    low: float
    high: float
    confidence: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high


def median_interval(values: Sequence[float], confidence: float) -> Interval:
    """Return the interval of the median between two order statistics.

    With independent values, the median lies below the k-th smallest of n with the probability that fewer than k of n
    coins fall heads: ``P(Bin(n, 1/2) < k)``, whatever the distribution. The largest k is taken for which both ends
    together leave out at most ``1 - confidence``. Fewer values than that needs give the smallest and the largest value,
    and the confidence that these have: ``1 - 2^(1 - n)``.
    """
    ordered = sorted(values)
    rank, reached = _rank(len(ordered), confidence)
    return Interval(ordered[rank - 1], ordered[-rank], reached)


@functools.lru_cache(maxsize=4096)
def _rank(n: int, confidence: float) -> tuple[int, float]:
    """Return k, counted from 1, and the confidence of the interval from the k-th smallest to the k-th largest."""
    if n > 5_000:  # the normal approximation is then off by less than one rank
        z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
        return max(1, math.floor((n - z * math.sqrt(n)) / 2)), confidence
    # In integers, since 2^-n is no float for a large n: `outside` is P(Bin(n, 1/2) < k) times 2^n.
    allowed = (int((1 - confidence) * 2**53) << n) >> 54
    rank, outside, term = 0, 0, 1
    while rank < (n + 1) // 2 and outside + term <= allowed:
        outside += term
        rank += 1
        term = term * (n - rank + 1) // rank
    if rank == 0:
        return 1, 1 - 2.0 ** (1 - n)
    return rank, 1 - 2 * (outside / (1 << n))


def interquartile_range(values: Sequence[float]) -> float:
    """Return the distance between the first and the third quartile; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third - first
