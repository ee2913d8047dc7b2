"""Metrics of real numbers: sums, extremes, spread, and what is made of means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from purestep import _checks
from purestep.metrics._pooling import Pooled, check_tensor, kept, mask, number_of, register, wide
from purestep.objectives import Mean


@register
@dataclass(frozen=True, eq=False)
class Total(Pooled):
    """A sum. ``total``: 0-d, int64 or float64."""

    total: Tensor

    def value(self) -> Tensor:
        return self.total


def total(values: Tensor, *, where: Tensor | None = None) -> Total:
    """Return ``Σ x`` over all entries: float64, and int64 (exact) of integers and bool.

    Args:
        values: any shape.
        where: bool, broadcastable to ``values``: the entries that count, whatever the others hold. So in all metrics.

    Raises:
        TypeError, ValueError: a wrong ``values`` or ``where``, by name. So in all metrics.
    """
    counts = _checked("values", values, where, several=False)
    return Total(kept(values, counts).sum(dtype=wide(values) if values.is_floating_point() else torch.int64))


def count(where: Tensor) -> Total:
    """Return how many entries of ``where`` (bool, any shape) are true, as an int64 :class:`Total`."""
    check_tensor("where", where, several=False)
    if where.dtype != torch.bool:
        raise TypeError(f"where must be a bool tensor, got {where.dtype}; write `where=mask != 0`")
    return Total(where.sum(dtype=torch.int64))


@register
@dataclass(frozen=True, eq=False)
class Maximum(Pooled):
    """The largest so far. ``largest``: 0-d; -inf where nothing counted."""

    largest: Tensor

    def pool(self, other: Self) -> dict[str, Tensor]:
        return {"largest": torch.maximum(self.largest, other.largest)}

    def value(self) -> Tensor:
        return self.largest


@register
@dataclass(frozen=True, eq=False)
class Minimum(Pooled):
    """The smallest so far. ``smallest``: 0-d; inf where nothing counted."""

    smallest: Tensor

    def pool(self, other: Self) -> dict[str, Tensor]:
        return {"smallest": torch.minimum(self.smallest, other.smallest)}

    def value(self) -> Tensor:
        return self.smallest


def maximum(values: Tensor, *, where: Tensor | None = None) -> Maximum:
    """Return the largest entry of ``values`` (any shape): float64, which holds any float32 exactly. NaN stays NaN."""
    counts = _checked("values", values, where, several=False)
    return Maximum(_largest(values.to(wide(values)), counts))


def minimum(values: Tensor, *, where: Tensor | None = None) -> Minimum:
    """Return the smallest entry of ``values`` (any shape), as :func:`maximum`."""
    counts = _checked("values", values, where, several=False)
    return Minimum(-_largest(-values.to(wide(values)), counts))


def _largest(values: Tensor, where: Tensor | None) -> Tensor:
    least = torch.full((), -torch.inf, dtype=values.dtype, device=values.device)
    if values.numel() == 0:
        return least
    return (values if where is None else torch.where(where, values, least)).amax()


@dataclass(frozen=True, eq=False)
class _Moments(Pooled):
    """The number of values, their mean, and the sum of their squared distances to it, pooled by Chan's formulas.

    Sums of values and of squares would pool by addition, and their difference cancels: of values around 1e8 with a
    spread of 1 nothing is left of the variance in float64. Distances to the mean do not cancel.

    Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983), equations 2.1.
    """

    number: Tensor
    mean: Tensor
    squares: Tensor

    def pool(self, other: Self) -> dict[str, Tensor]:
        number = self.number + other.number
        # Of the two, an empty one has a share of exactly 0, and the other's numbers stay as they are.
        share = other.number.to(self.mean.dtype) / number.clamp(min=1)
        apart = other.mean - self.mean
        return {
            "number": number,
            "mean": self.mean + apart * share,
            "squares": self.squares + other.squares + apart.square() * (self.number * share),
        }


def _moments(values: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    values = kept(values.to(wide(values)), where)
    number = number_of(values, where)
    mean = values.sum() / number.clamp(min=1)
    return number, mean, kept(values - mean, where).square().sum()


@register
@dataclass(frozen=True, eq=False)
class Variance(_Moments):
    """The variance of all values, around their common mean.

    Attributes:
        number: int64, 0-d.
        mean: float64, 0-d: the mean of the values; 0 where nothing counted.
        squares: float64, 0-d: Σ (x - mean)².
        correction: what is taken off the number that ``squares`` is divided by.
    """

    options: ClassVar[tuple[str, ...]] = ("correction",)
    correction: int

    def value(self) -> Tensor:
        """Return ``squares / (number - correction)``; NaN where the number is no larger than the correction."""
        freedom = self.number - self.correction
        return torch.where(freedom > 0, self.squares / freedom.clamp(min=1), torch.nan)


@register
@dataclass(frozen=True, eq=False)
class Deviation(Variance):
    """The standard deviation, with the fields of :class:`Variance`."""

    def value(self) -> Tensor:
        """Return the square root of the variance."""
        return super().value().sqrt()


def variance(values: Tensor, *, where: Tensor | None = None, correction: int = 0) -> Variance:
    """Return the variance ``Σ (x - mean)² / (number - correction)`` over all entries; its ``mean`` is theirs.

    Args:
        values: one dimension or more.
        where: as in :func:`total`.
        correction: 0 for the population's variance (NumPy's default), 1 for the sample's (torch's).
    """
    counts = _checked("values", values, where)
    return Variance(*_moments(values, counts), correction=_checks.integer("correction", correction, minimum=0))


def deviation(values: Tensor, *, where: Tensor | None = None, correction: int = 0) -> Deviation:
    """Return the standard deviation, the root of :func:`variance`, with the same arguments."""
    counts = _checked("values", values, where)
    return Deviation(*_moments(values, counts), correction=_checks.integer("correction", correction, minimum=0))


@register
@dataclass(frozen=True, eq=False)
class RSquared(_Moments):
    """The share of the targets' variance that predictions explain.

    Attributes:
        number, mean, squares: of the targets, as in :class:`Variance`.
        residual: float64, 0-d: Σ (target - predicted)².
    """

    residual: Tensor

    def pool(self, other: Self) -> dict[str, Tensor]:
        return {**super().pool(other), "residual": self.residual + other.residual}

    def value(self) -> Tensor:
        """Return ``1 - residual / squares``; targets that are all equal give NaN (no residual) or -inf."""
        return 1 - self.residual / self.squares


def r_squared(predicted: Tensor, targets: Tensor, *, where: Tensor | None = None) -> RSquared:
    """Return the coefficient of determination ``1 - Σ (y - ŷ)² / Σ (y - mean)²`` over all entries, as one output.

    Args:
        predicted, targets: one shape, of one dimension or more.
        where: as in :func:`total`.
    """
    counts = _checked("targets", targets, where)
    _check_pair("predicted", predicted, targets, "targets")
    apart = kept(targets.to(wide(targets)) - predicted.to(wide(targets)), counts)
    return RSquared(*_moments(targets, counts), apart.square().sum())


@dataclass(frozen=True, eq=False)
class _OfMean(Pooled):
    """A function of a pooled mean. ``total``: Σ x, float64, 0-d. ``weight``: Σ w, float64, 0-d."""

    total: Tensor
    weight: Tensor


@register
@dataclass(frozen=True, eq=False)
class Perplexity(_OfMean):
    """The exponential of a mean of nats. ``total``, ``weight``: its sum and its weight, float64, 0-d."""

    def value(self) -> Tensor:
        """Return ``exp(total / weight)``; NaN where nothing counted."""
        return torch.exp(self.total / self.weight)


@register
@dataclass(frozen=True, eq=False)
class RootMeanSquare(_OfMean):
    """The root of a mean of squares. ``total``, ``weight``: its sum and its weight, float64, 0-d."""

    def value(self) -> Tensor:
        """Return ``sqrt(total / weight)``; NaN where nothing counted."""
        return torch.sqrt(self.total / self.weight)


def perplexity(nats: Tensor | Mean, *, where: Tensor | None = None) -> Perplexity:
    """Return ``exp`` of the mean of ``nats`` over all tokens seen, which is no mean of perplexities.

    Args:
        nats: -log p of each token (any shape of one dimension or more), as
            ``F.cross_entropy(..., reduction="none")`` gives it; or the loss itself where it is their :class:`Mean`.
        where: as in :func:`total`; of a ``Mean`` the entries were left out before.
    """
    if isinstance(nats, Mean):
        if where is not None:
            raise ValueError("where cannot be given with a Mean, whose entries are summed already: give it to ps.mean")
        return Perplexity(nats.total.to(wide(nats.total)), nats.weight.to(wide(nats.total)))
    counts = _checked("nats", nats, where)
    return Perplexity(kept(nats, counts).sum(dtype=wide(nats)), number_of(nats, counts).to(wide(nats)))


def root_mean_square(values: Tensor, *, where: Tensor | None = None) -> RootMeanSquare:
    """Return ``sqrt(Σ x² / number)`` over all entries: of ``predicted - targets``, the root-mean-square error."""
    counts = _checked("values", values, where)
    squares = kept(values, counts).to(wide(values)).square().sum()
    return RootMeanSquare(squares, number_of(values, counts).to(wide(values)))


def _checked(name: str, values: Tensor, where: Tensor | None, *, several: bool = True) -> Tensor | None:
    check_tensor(name, values, several=several)
    return mask(where, values.shape, name)


def _check_pair(name: str, tensor: Tensor, like: Tensor, of: str) -> None:
    check_tensor(name, tensor)
    if tensor.shape != like.shape:
        raise ValueError(f"{name} must have the shape {tuple(like.shape)} of {of}, got {tuple(tensor.shape)}")
