"""Orders that draw some examples more often than others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from purestep._checks import integer
from purestep.data.orders._held import Memory, Table, real_numbers
from purestep.data.orders._keyed import below, draw, key_words
from purestep.data.orders._map import checked_length
from purestep.data.orders.algebra import IndexOrder

# The smallest weight over the largest: beyond it the quotients of a draw without replacement would leave float64.
_SPAN = 1e-290

_PIECE = 2**14
"""Numbers worked on at once where an epoch is made whole, so that what is between takes no memory."""


def weighted(weights: Any, num_samples: int, seed: int, *, replacement: bool = True) -> IndexOrder:
    r"""Return ``num_samples`` draws of 0, ..., n - 1 in proportion to weights (torch's ``WeightedRandomSampler``).

    With replacement, each position is an independent draw: the first index whose cumulative weight exceeds a uniform
    number. Weights are counted in integers of about 2^-61 of their sum (an index below that never comes), so that
    any number of indices will do and any device gives the same draws. Any position is found alone, by a binary search.

    Without, an epoch is a sequence of draws in each of which the indices left are drawn in proportion to their weights.
    With independent exponential numbers :math:`E_i` under the epoch's key, it is

    .. math:: \text{the indices in ascending order of } E_i / w_i, \qquad E_i = -\log u_i

    (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006,
    https://doi.org/10.1016/j.ipl.2005.11.003). It is made whole and kept until another epoch is asked: 8 bytes an index
    while it lasts.

    Args:
        weights: of the indices, a vector; zero: never drawn. 16 bytes are held for each.
        num_samples: positions of an epoch.
        seed: from 0 on.
        replacement: whether an index may come again in the same epoch.

    Raises:
        TypeError: ``weights`` are no real numbers, or ``num_samples`` or ``seed`` is no int.
        ValueError: a weight is negative, NaN or infinite, all are zero, or, without replacement, fewer than
            ``num_samples`` are above zero or some differ by a factor of more than 10^290.
    """
    held = real_numbers("weights", weights)
    checked_length("num_samples", num_samples)
    integer("seed", seed, minimum=0)
    wrong = (~(held >= 0) | held.isinf()).nonzero().reshape(-1)
    if wrong.numel():
        at = int(wrong[0])
        raise ValueError(f"weights must be finite and at least 0, got {float(held[at])} at place {at}")
    if not bool((held > 0).any()):
        raise ValueError(f"weights must hold at least one above 0, got {len(held)} of which none is")
    if replacement:
        return _Weighted(Table(held), num_samples, seed)
    positive = held[held > 0]
    if len(positive) < num_samples:
        raise ValueError(
            f"num_samples must be at most {len(positive)}, the number of weights above 0, without replacement, "
            f"got {num_samples}"
        )
    if float(positive.min() / positive.max()) < _SPAN:
        raise ValueError(
            f"weights must be within a factor of 1e290 without replacement, got {float(positive.min())} and "
            f"{float(positive.max())}"
        )
    return _WeightedOnce(Table(held), num_samples, seed)


@dataclass(frozen=True, repr=False)
class _Weighted(IndexOrder):
    held: Table
    num_samples: int
    seed: int
    cumulative: Memory = field(default_factory=Memory, compare=False)

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        return f"weighted({self.held!r}, {self.num_samples}, seed={self.seed})"

    @property
    def bound(self) -> int:
        return len(self.held)

    @property
    def distinct(self) -> bool:
        return self.num_samples <= 1

    def _indices(self, epoch: int, positions: Tensor) -> Tensor:
        table: Table = self.cumulative.get(None, lambda: Table(_counts(self.held.numbers).cumsum(0)))
        keys = key_words(f"purestep weighted {len(self.held)} {self.seed} {epoch}")
        # An index of weight zero ends where it begins, and is never the first that ends above a number.
        ends = table.on(positions.device)
        return torch.searchsorted(ends, below(draw(keys, positions), int(table.numbers[-1])), right=True)


@dataclass(frozen=True, repr=False)
class _WeightedOnce(IndexOrder):
    held: Table
    num_samples: int
    seed: int
    drawn: Memory = field(default_factory=Memory, compare=False)

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        return f"weighted({self.held!r}, {self.num_samples}, seed={self.seed}, replacement=False)"

    @property
    def bound(self) -> int:
        return len(self.held)

    def _indices(self, epoch: int, positions: Tensor) -> Tensor:
        table: Table = self.drawn.get(epoch, lambda: Table(self._epoch(epoch)))
        return table.on(positions.device)[positions]

    def _epoch(self, epoch: int) -> Tensor:
        weights = self.held.numbers
        keys = key_words(f"purestep weighted once {len(weights)} {self.seed} {epoch}")
        largest = weights.max()  # over which weights are taken, against overflow
        times = torch.empty_like(weights)
        for start in range(0, len(weights), _PIECE):
            places = torch.arange(start, min(start + _PIECE, len(weights)))
            # 52 bits and half of one: neither 0 nor 1 as float64.
            uniform = ((draw(keys, places) >> 10).double() + 0.5) * 2.0**-52
            times[start : start + _PIECE] = _exact_log(uniform).neg_() / (weights[start : start + _PIECE] / largest)
        return times.argsort(stable=True)[: self.num_samples].clone()  # a weight of zero made an infinite time


def _counts(weights: Tensor) -> Tensor:
    """Return integers in proportion to the weights, rounded down, whose sum is at most 2^62 and above 2^60 - n.

    All roundings are those of single numbers: a floating sum, which depends on the machine, would move the draws.
    """
    # First so that n times the largest fits; their sum then says by which power of two all can grow.
    spare = len(weights).bit_length()
    exponent = 62 - spare - int(torch.frexp(weights.max()).exponent)
    total = int(_scaled(weights, exponent).sum()) + len(weights)
    return _scaled(weights, exponent + 62 - total.bit_length())


def _scaled(weights: Tensor, exponent: int) -> Tensor:
    """Return ⌊weights · 2^exponent⌋, in two factors, since 2^exponent alone may be no float64."""
    half = exponent // 2
    return (weights * 2.0**half * 2.0 ** (exponent - half)).floor().long()


def _exact_log(x: Tensor) -> Tensor:
    r"""Return the logarithm of float64 numbers in (0, 1), within 1e-15 of its size, with the same bits on any machine.

    torch's own differs in the last bit between processors, and so would an order that is made by sorting it. For
    :math:`x = m\,2^e` with m in :math:`[\tfrac{1}{\sqrt 2}, \sqrt 2)` and :math:`t = \frac{m-1}{m+1}`:

    .. math:: \log x = e \log 2 + 2\,\bigl(t + \tfrac{t^3}{3} + \tfrac{t^5}{5} + \dots\bigr)
    """
    mantissa, exponent = torch.frexp(x)
    low = mantissa < 0.7071067811865476
    mantissa = torch.where(low, mantissa * 2, mantissa)
    exponent = exponent.double() - low.double()
    t = (mantissa - 1) / (mantissa + 1)
    square = t * t
    series = torch.zeros_like(t)
    for k in range(23, 0, -2):
        series = series * square + 1 / k
    return exponent * 0.6931471805599453 + 2 * t * series
