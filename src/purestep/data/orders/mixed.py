"""One order over several sources, in exact proportions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from math import gcd, isfinite, lcm
from typing import Any

import torch
from torch import Tensor

from purestep._checks import integer, listed
from purestep.data.orders._interleave import Interleave, fits
from purestep.data.orders._map import LONGEST, check_place, checked_length, hashed
from purestep.data.orders.algebra import IndexOrder, across_epochs

# A float is taken for the fraction that it was rounded from, if that has a denominator up to this: nearer than a few
# roundings. (Any number is within 1e-12 of one.)
_DENOMINATOR, _NEAR = 10**6, 1e-15


def mixed(
    orders: Mapping[str, IndexOrder],
    weights: Mapping[str, Any] | Sequence[Any],
    *,
    length: int | None = None,
    sizes: Mapping[str, int] | None = None,
) -> MixedOrder:
    """Return an order that takes from several orders, each in its own order, in proportions that are kept exactly.

    Position p of epoch e is item ``e * length + p`` of one endless interleave, in which any source has within 3 items
    of its share at every place. A source that is through begins its next epoch, whatever the others do, so small ones
    come around more often.

    An index is that of the sources laid end to end: those of the first, then those of the second, and so on;
    :meth:`MixedOrder.split` tells them apart.

    Args:
        orders: by name, of the sources; each with a seed of its own, if they are shuffled.
        weights: by the same names, or in the same order: positive integers or fractions, or floats that are one (of a
            denominator up to a million). 7, 2, 1 and 0.7, 0.2, 0.1 are the same.
        length: positions of an epoch; None: as many as the orders have together.
        sizes: of the sources, by name, where one is longer than its order's ``bound``.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: there is no order, or an empty one; names differ; a weight is not above 0 or no such fraction, or
            they have no common denominator below 2^31; or a number is out of range.
    """
    if not isinstance(orders, Mapping) or not orders:
        raise TypeError(f"orders must be a dict of at least one order by name, got {orders!r}")
    for name, order in orders.items():
        if not isinstance(order, IndexOrder):
            raise TypeError(f"orders[{name!r}] must be an IndexOrder, got {order!r}")
        if len(order) == 0:
            raise ValueError(f"orders[{name!r}] must hold at least one position, got {order!r}")
    names = tuple(orders)
    whole = _whole_weights(names, weights)
    total = sum(len(order) for order in orders.values())
    length = checked_length("length", total if length is None else length)
    bounds = {name: order.bound for name, order in orders.items()}
    for name, size in (sizes or {}).items():
        if name not in bounds:
            raise ValueError(f"sizes must be of {listed(names)}, got one of {name!r}")
        bounds[name] = integer(f"sizes[{name!r}]", size, minimum=bounds[name])
    if sum(bounds.values()) > LONGEST:
        raise ValueError(f"sizes must add up to at most 2^62, got {sum(bounds.values())}")
    return MixedOrder(names, tuple(orders.values()), whole, length, tuple(bounds.values()))


def _whole_weights(names: tuple[str, ...], weights: Mapping[str, Any] | Sequence[Any]) -> tuple[int, ...]:
    if isinstance(weights, Mapping):
        if set(weights) != set(names):
            raise ValueError(f"weights must be of {listed(names)}, got some of {listed(map(str, weights))}")
        weights = [weights[name] for name in names]
    if len(weights) != len(names):
        raise ValueError(f"weights must be {len(names)}, one for each order, got {len(weights)}")
    fractions = [_fraction(name, weight) for name, weight in zip(names, weights, strict=True)]
    scale = lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * scale) for fraction in fractions]
    common = gcd(*whole)
    whole = [weight // common for weight in whole]
    if not fits(whole):
        raise ValueError(f"weights must be in the proportions of integers whose sum is below 2^31, got {list(weights)}")
    return tuple(whole)


def _fraction(name: str, weight: Any) -> Fraction:
    right = f"weights[{name!r}] must be an int, a Fraction or a float above 0"
    if isinstance(weight, bool) or not isinstance(weight, (int, float, Fraction)):
        raise TypeError(f"{right}, got {weight!r} of type {type(weight).__name__}")
    if not isfinite(weight) or weight <= 0:
        raise ValueError(f"{right}, got {weight!r}")
    exact = Fraction(weight)
    if not isinstance(weight, float):
        return exact
    near = exact.limit_denominator(_DENOMINATOR)
    if abs(near - exact) > exact * _NEAR:
        raise ValueError(f"{right} that is a fraction with a denominator up to {_DENOMINATOR}, got {weight!r}")
    return near


@dataclass(frozen=True, repr=False)
class MixedOrder(IndexOrder):
    """What :func:`mixed` returns: an order over the sources ``names``, laid end to end."""

    names: tuple[str, ...]
    orders: tuple[IndexOrder, ...]
    weights: tuple[int, ...]
    length: int
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        orders = dict(zip(self.names, self.orders, strict=True))
        sizes = {
            name: size
            for name, order, size in zip(self.names, self.orders, self.sizes, strict=True)
            if size != order.bound
        }
        known = f", sizes={sizes!r}" if sizes else ""
        return f"mixed({orders!r}, {list(self.weights)!r}, length={self.length}{known})"

    @property
    def bound(self) -> int:
        return sum(self.sizes)

    @property
    def distinct(self) -> bool:
        return self.length <= 1

    @property
    def padded(self) -> bool:
        return any(order.padded for order in self.orders)

    def fingerprint(self) -> str:
        parts = [order.fingerprint() for order in self.orders]
        return hashed(f"mixed {self.names} {parts} {self.weights} {self.length} {self.sizes}", self.revision)

    def split(self, epoch: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return which source (a number in ``names``) stands at each position, and the index in that source.

        Raises:
            TypeError, ValueError: as a call does.
        """
        check_place(self, epoch, positions)
        source, index = self._split(epoch, positions)
        return source, index

    @cached_property
    def _interleave(self) -> Interleave:
        return Interleave(self.weights)

    def _split(self, epoch: int, positions: Tensor, *, weights: bool = False) -> tuple[Tensor, Tensor]:
        if (epoch + 1) * self.length > LONGEST:
            last = LONGEST // self.length - 1
            raise ValueError(f"epoch must be at most {last} in {self!r}, got {epoch}")
        source, item = self._interleave(positions + epoch * self.length)
        found = torch.empty(positions.shape, dtype=torch.float32 if weights else torch.int64, device=positions.device)
        for number in source.unique().tolist():
            here = source == number
            found[here] = across_epochs(self.orders[number], 0, item[here], weights=weights)
        return source, found

    def _indices(self, epoch: int, positions: Tensor) -> Tensor:
        source, index = self._split(epoch, positions)
        starts = torch.tensor([0, *accumulate(self.sizes)], device=positions.device)
        return starts[source] + index

    def _weights(self, epoch: int, positions: Tensor) -> Tensor:
        return self._split(epoch, positions, weights=True)[1]
