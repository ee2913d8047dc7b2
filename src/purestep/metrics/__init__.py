"""Metrics that merge exactly: what micro-batches, steps and epochs have seen is pooled, and only the end divides.

Each function looks at one batch and returns a metric with ``merge`` and ``value``. A metric keeps sums and counts, and
no result: the F1 of two halves does not give the F1 of the whole, and neither does the mean of two perplexities.

Counts are int64 and sums float64 (float32 on MPS, which has no float64), whatever the dtype of the batch: a float32
count stops growing at 2^24. All take ``where=``, the entries that count; an empty batch, or one whose entries are all
left out, is the identity of ``merge``. In an ensemble under ``vmap`` a metric's tensors have one more dimension in
front, and so has its value.
"""

from purestep.metrics.classification import (
    Calibration,
    ClassScore,
    Confusion,
    accuracy,
    calibration_error,
    confusion,
    f1,
    precision,
    recall,
    top_k_accuracy,
)
from purestep.metrics.numbers import (
    Deviation,
    Maximum,
    Minimum,
    Perplexity,
    RootMeanSquare,
    RSquared,
    Total,
    Variance,
    count,
    deviation,
    maximum,
    minimum,
    perplexity,
    r_squared,
    root_mean_square,
    total,
    variance,
)

__all__ = [
    "Calibration",
    "ClassScore",
    "Confusion",
    "Deviation",
    "Maximum",
    "Minimum",
    "Perplexity",
    "RSquared",
    "RootMeanSquare",
    "Total",
    "Variance",
    "accuracy",
    "calibration_error",
    "confusion",
    "count",
    "deviation",
    "f1",
    "maximum",
    "minimum",
    "perplexity",
    "precision",
    "r_squared",
    "recall",
    "root_mean_square",
    "top_k_accuracy",
    "total",
    "variance",
]
