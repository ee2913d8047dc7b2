"""Metrics of classes: accuracy, confusion counts and the scores made of them, calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from purestep import _checks, objectives
from purestep.metrics._pooling import (
    Pooled,
    check_classes,
    check_range,
    check_tensor,
    choice,
    kept,
    mask,
    number_of,
    register,
    wide,
)
from purestep.objectives import Mean

AVERAGES = ("binary", "macro", "micro", "weighted")


def accuracy(scores: Tensor, labels: Tensor, *, where: Tensor | None = None) -> Mean:
    """Return the share of labels that have the highest score, as a :class:`Mean` of exact counts.

    Args:
        scores: (..., classes), real: logits or probabilities. Of equal scores the first counts; NaN is never right.
        labels: (...), class numbers. One that is no class and counts is an error in eager mode on the CPU, and wrong
            elsewhere.
        where: bool, broadcastable to ``labels``: the entries that count (no padding), whatever the others hold. So in
            all metrics.

    Raises:
        TypeError, ValueError: a wrong argument, by name. So in all metrics.
    """
    labels, counts = _checked_scores(scores, labels, where)
    highest, predicted = scores.max(-1)
    return _share((predicted == labels) & ~torch.isnan(highest), counts)


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int, *, where: Tensor | None = None) -> Mean:
    """Return the share of labels among the ``k`` highest scores, as a :class:`Mean` of exact counts.

    Args:
        scores, labels, where: as in :func:`accuracy`. Of equal scores the first classes count, so k=1 is accuracy.
        k: from 1 to the number of classes.
    """
    labels, counts = _checked_scores(scores, labels, where)
    classes = scores.shape[-1]
    if _checks.integer("k", k, minimum=1) > classes:
        raise ValueError(f"k must be at most the number of classes in scores, {classes}, got {k}")
    own = scores.gather(-1, labels.unsqueeze(-1))
    earlier = torch.arange(classes, device=scores.device) < labels.unsqueeze(-1)
    # What cannot be compared (NaN) is ahead too.
    ahead = ~(scores <= own) | ((scores == own) & earlier)
    return _share(ahead.sum(-1) < k, counts)


def _checked_scores(scores: Tensor, labels: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the labels (0 where they do not count) and the mask."""
    check_tensor("scores", scores)
    if scores.shape[-1] == 0:
        raise ValueError(f"scores must have classes in its last dimension, got shape {tuple(scores.shape)}")
    labels = check_classes("labels", labels, scores.shape[:-1], "scores without its classes")
    counts = mask(where, labels.shape, "labels")
    check_range("labels", labels, scores.shape[-1], counts)
    return kept(labels, counts), counts


def _share(hits: Tensor, where: Tensor | None) -> Mean:
    kind = wide(hits)
    number = number_of(hits, where)
    return Mean((hits if where is None else hits & where).sum(dtype=torch.int64).to(kind), number.to(kind))


@register
@dataclass(frozen=True, eq=False)
class Confusion(Pooled):
    """How often each class was taken for each.

    Attributes:
        counts: int64, (classes, classes): rows are labels, columns predictions, as in scikit-learn.

    ``value()`` is the accuracy, so that it can be logged as one number; a score that is to be logged is
    :func:`precision`, :func:`recall` or :func:`f1`.
    """

    counts: Tensor

    def value(self) -> Tensor:
        """Return the share on the diagonal; NaN where nothing counted."""
        return self.hits.sum(-1).to(wide(self.counts)) / self.counts.sum((-2, -1))

    @property
    def hits(self) -> Tensor:
        """int64, (classes,): right predictions of each class."""
        return self.counts.diagonal(dim1=-2, dim2=-1)

    def precision(self, *, average: str | None, zero_division: float = 0.0) -> Tensor:
        """Return the precision: a number, or with ``average=None`` one for each class, (classes,)."""
        return self._score("precision", average, zero_division)

    def recall(self, *, average: str | None, zero_division: float = 0.0) -> Tensor:
        """Return the recall, as :meth:`precision`."""
        return self._score("recall", average, zero_division)

    def f1(self, *, average: str | None, zero_division: float = 0.0) -> Tensor:
        """Return the F1, as :meth:`precision`."""
        return self._score("f1", average, zero_division)

    def _score(self, score: str, average: str | None, zero_division: float) -> Tensor:
        zero_division = _check_reading(average, zero_division, self.counts.shape[-1], (*AVERAGES, None))
        of_class = (self.hits, self.counts.sum(-2), self.counts.sum(-1))
        return ClassScore(*of_class, score=score, average=average, zero_division=zero_division).value()


@register
@dataclass(frozen=True, eq=False)
class ClassScore(Pooled):
    """Precision, recall or F1, from three counts for each class.

    Attributes:
        hits: int64, (classes,): entries whose prediction and label are both the class.
        predicted: int64, (classes,): entries predicted to be of the class.
        actual: int64, (classes,): entries labelled so.
        score: ``"precision"`` = hits / predicted, ``"recall"`` = hits / actual, or ``"f1"`` = 2·hits / (predicted +
            actual).
        average: ``"binary"``: the score of class 1 of two. ``"micro"``: of the counts summed over the classes.
            ``"macro"``: the mean of the classes' scores. ``"weighted"``: their mean weighted by ``actual``. ``None``:
            all of them.
        zero_division: what 0 / 0 is, in a class that nothing was predicted to be, say. NaN leaves such classes out of
            the mean. Every class up to ``classes`` takes part, also one that never occurs (in scikit-learn, with
            ``labels=range(classes)``).
    """

    options: ClassVar[tuple[str, ...]] = ("score", "average", "zero_division")
    hits: Tensor
    predicted: Tensor
    actual: Tensor
    score: str
    average: str | None
    zero_division: float

    def value(self) -> Tensor:
        """Return the score, one number (of ``average=None`` one for each class)."""
        counts = (self.hits, self.predicted, self.actual)
        if self.average == "micro":
            counts = (self.hits.sum(-1), self.predicted.sum(-1), self.actual.sum(-1))
        hits, predicted, actual = (each.to(wide(each)) for each in counts)
        if self.score == "f1":
            scores = self._ratio(2 * hits, predicted + actual)
        else:
            scores = self._ratio(hits, predicted if self.score == "precision" else actual)
        if self.average == "binary":
            return scores[..., 1]
        if self.average in ("micro", None):
            return scores
        weights = actual if self.average == "weighted" else torch.ones_like(scores)
        weights = torch.where(torch.isnan(scores), 0, weights)
        return self._ratio((torch.nan_to_num(scores) * weights).sum(-1), weights.sum(-1))

    def _ratio(self, total: Tensor, number: Tensor) -> Tensor:
        return torch.where(number > 0, total / number.clamp(min=1), self.zero_division)


def confusion(predicted: Tensor, labels: Tensor, *, classes: int, where: Tensor | None = None) -> Confusion:
    """Count how often each class was taken for each, into ``classes``² int64 numbers.

    Args:
        predicted: class numbers of any shape, int64 or bool (of scores, ``scores.argmax(-1)``).
        labels: class numbers of the same shape.
        classes: how many there are, at least 2: it must not depend on the batch.
        where: as in :func:`accuracy`.

    Raises:
        ValueError: also a class number that counts and is out of range; off the CPU and in a compiled graph that is
            torch's own error of an index out of range.
    """
    predicted, labels, counts = _checked_classes(predicted, labels, classes, where)
    known = (predicted >= 0) & (predicted < classes)  # else it would count in the row below
    both = torch.where(known, labels * classes + predicted, classes * classes)
    return Confusion(_histogram(both, counts, classes * classes).reshape(classes, classes))


def precision(
    predicted: Tensor,
    labels: Tensor,
    *,
    classes: int,
    average: str,
    zero_division: float = 0.0,
    where: Tensor | None = None,
) -> ClassScore:
    """Return the precision: of what was predicted to be of a class, the share that is.

    Args:
        predicted, labels, classes, where: as in :func:`confusion`; no ``classes``² counts are kept.
        average, zero_division: as in :class:`ClassScore`; the average has no default, since each is another number.
    """
    return _class_score("precision", predicted, labels, classes, average, zero_division, where)


def recall(
    predicted: Tensor,
    labels: Tensor,
    *,
    classes: int,
    average: str,
    zero_division: float = 0.0,
    where: Tensor | None = None,
) -> ClassScore:
    """Return the recall: of what is of a class, the share that was predicted so. Arguments of :func:`precision`."""
    return _class_score("recall", predicted, labels, classes, average, zero_division, where)


def f1(
    predicted: Tensor,
    labels: Tensor,
    *,
    classes: int,
    average: str,
    zero_division: float = 0.0,
    where: Tensor | None = None,
) -> ClassScore:
    """Return the F1, the harmonic mean of precision and recall. Arguments of :func:`precision`."""
    return _class_score("f1", predicted, labels, classes, average, zero_division, where)


def _class_score(
    score: str, predicted: Tensor, labels: Tensor, classes: int, average: str, zero_division: float, where: Any
) -> ClassScore:
    predicted, labels, counts = _checked_classes(predicted, labels, classes, where)
    zero_division = _check_reading(average, zero_division, classes, AVERAGES)
    hits = predicted == labels
    return ClassScore(
        _histogram(labels, hits if counts is None else hits & counts, classes),
        _histogram(predicted, counts, classes),
        _histogram(labels, counts, classes),
        score=score,
        average=average,
        zero_division=zero_division,
    )


def _checked_classes(
    predicted: Tensor, labels: Tensor, classes: int, where: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    _checks.integer("classes", classes, minimum=2)
    check_tensor("predicted", predicted, several=False)
    predicted = check_classes("predicted", predicted, predicted.shape, "itself")
    labels = check_classes("labels", labels, predicted.shape, "predicted")
    counts = mask(where, labels.shape, "labels")
    check_range("predicted", predicted, classes, counts)
    check_range("labels", labels, classes, counts)
    return predicted, labels, counts


def _check_reading(average: Any, zero_division: Any, classes: int, allowed: tuple[str | None, ...]) -> float:
    """Return ``zero_division``, with one object for every NaN: it is compared as part of a tree's structure."""
    choice("average", average, allowed)
    if average == "binary" and classes != 2:
        raise ValueError(
            f"average must be 'macro', 'micro' or 'weighted' with {classes} classes: 'binary' is the score of class 1 "
            "of two"
        )
    if isinstance(zero_division, float) and math.isnan(zero_division):
        return math.nan
    return float(_checks.number("zero_division", zero_division, minimum=0, maximum=1))


def _histogram(index: Tensor, where: Tensor | None, size: int) -> Tensor:
    """Count each index, int64, (size,). Additions of integers have no order, so it has the same bits everywhere."""
    index = kept(index, where).flatten()
    ones = torch.ones_like(index) if where is None else where.flatten().to(torch.int64)
    return torch.zeros(size, dtype=torch.int64, device=index.device).scatter_add(0, index, ones)


@register
@dataclass(frozen=True, eq=False)
class Calibration(Pooled):
    """How far confidence is from accuracy, over bins of confidence.

    Attributes:
        number: int64, (bins,): entries in each bin.
        hits: int64, (bins,): those that were right.
        confidence: float64, (bins,): the sum of their highest probabilities.
    """

    number: Tensor
    hits: Tensor
    confidence: Tensor

    def value(self) -> Tensor:
        """Return ``Σ |hits - confidence| / Σ number``; NaN where nothing counted."""
        return (self.hits - self.confidence).abs().sum(-1) / self.number.sum(-1)


def calibration_error(
    probabilities: Tensor, labels: Tensor, *, bins: int = 15, where: Tensor | None = None
) -> Calibration:
    """Return the expected calibration error of the predicted class, over ``bins`` of equal width.

    Bin m of M holds confidences in ((m-1)/M, m/M]; of each the distance between the share that was right and the mean
    confidence counts by the number of its entries. Guo et al., "On calibration of modern neural networks",
    arXiv:1706.04599, equation 3. The bins are part of the number: another ``bins`` is another metric.

    Args:
        probabilities: (..., classes), from 0 to 1 (of logits, ``logits.softmax(-1)``).
        labels, where: as in :func:`accuracy`.
    """
    labels, counts = _checked_scores(probabilities, labels, where)
    _checks.integer("bins", bins, minimum=1)
    highest, predicted = probabilities.max(-1)
    confidence = kept(highest.to(wide(highest)), counts)
    if objectives._readable(confidence) and not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ValueError(
            f"probabilities must be from 0 to 1, got a highest of {confidence.max().item():g}: of logits, "
            ".softmax(-1) gives them"
        )
    place = (torch.ceil(confidence * bins) - 1).nan_to_num().clamp(0, bins - 1).to(torch.int64)
    hits = predicted == labels
    return Calibration(
        _histogram(place, counts, bins),
        _histogram(place, hits if counts is None else hits & counts, bins),
        torch.zeros(bins, dtype=confidence.dtype, device=confidence.device).scatter_add(
            0, place.flatten(), confidence.flatten()
        ),
    )
