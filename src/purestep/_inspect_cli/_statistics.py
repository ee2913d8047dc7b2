"""What a tensor's values are like, and how far two tensors are apart: in pieces, so that nothing large is made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_PIECE = 1 << 18  # entries at once: 2 MB in float64


@dataclass(frozen=True)
class Statistics:
    """A tensor's values in numbers.

    Attributes:
        norm: the root of the sum of the squares, in float64.
        least, largest: of those that are no NaN; ``None`` of complex numbers, and where there are none.
        nonfinite: how many are NaN or infinite.
    """

    norm: float
    least: float | int | None
    largest: float | int | None
    nonfinite: int


@dataclass(frozen=True)
class Difference:
    """How far two tensors of one shape and dtype are apart.

    Attributes:
        bits: whether each bit is the same.
        largest: the largest absolute difference of two entries. Equal infinities and two NaN are no difference; one NaN
            is infinitely far from everything else.
        relative: the norm of the difference over the larger one of theirs.
    """

    bits: bool
    largest: float
    relative: float


def statistics(tensor: Tensor) -> Statistics | None:
    """Return a tensor's statistics, or ``None`` for a dtype that torch does not compute with."""
    total, nonfinite, least, largest = 0.0, 0, [], []
    for piece in _pieces(tensor):
        wide = _wide(piece)
        if wide is None:
            return None
        total += float(wide.abs().square().sum())
        nonfinite += int((~torch.isfinite(wide)).sum())
        if not wide.is_complex():
            # Whole numbers as they are: float64 has not all of them.
            own = wide if piece.is_floating_point() or piece.dtype == torch.uint64 else piece.to(torch.int64)
            own = own[~own.isnan()]
            least += [own.min().item()] if own.numel() else []
            largest += [own.max().item()] if own.numel() else []
    return Statistics(math.sqrt(total), min(least, default=None), max(largest, default=None), nonfinite)


def difference(first: Tensor, second: Tensor) -> Difference | None:
    """Return how far two tensors of one shape and dtype are apart, or ``None`` where only their bits can be told and
    differ."""
    bits, largest, apart, sizes = True, 0.0, 0.0, [0.0, 0.0]
    for one, other in zip(_pieces(first), _pieces(second), strict=True):
        same = torch.equal(one.view(torch.uint8), other.view(torch.uint8))
        bits = bits and same
        a, b = _wide(one), _wide(other)
        if a is None or b is None:
            if not same:
                return None
            continue
        sizes = [size + float(wide.abs().square().sum()) for size, wide in zip(sizes, (a, b), strict=True)]
        if same:
            continue
        gap = (a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf)
        if one.is_floating_point() or one.is_complex():
            alike = (a == b) | (a.isnan() & b.isnan())
        else:  # float64 has not all whole numbers: two that are one there are at least 1 apart
            alike, gap = _whole(one) == _whole(other), gap.clamp(min=1.0)
        gap = torch.where(alike, 0.0, gap)
        largest = max(largest, float(gap.max()))
        apart += float(gap.square().sum())
    size = max(sizes) if not any(map(math.isnan, sizes)) else math.nan
    relative = math.sqrt(apart) / math.sqrt(size) if apart else 0.0
    return Difference(bits, largest, math.inf if math.isnan(relative) else relative)


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    yield from tensor.reshape(-1).split(_PIECE)


def _whole(piece: Tensor) -> Tensor:
    """Return the bits of whole numbers as signed ones, which torch compares in every size."""
    return piece.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[piece.itemsize])


def _wide(piece: Tensor) -> Any:
    """Return a piece in float64 or complex128, or ``None`` where torch has no conversion."""
    try:
        return piece.to(torch.complex128 if piece.is_complex() else torch.float64)
    except (RuntimeError, NotImplementedError):
        return None
