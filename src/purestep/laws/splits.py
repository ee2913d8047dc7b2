"""Laws of splitting: however a batch is cut, its gradient and metrics are the whole batch's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import accumulate as running_sum
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from purestep import _batches, _checks, objectives
from purestep.functional import Trainable
from purestep.gradients import Gradient
from purestep.laws._compare import Comparison, LawViolation
from purestep.optimizers import sgd
from purestep.state import TrainState, init_state
from purestep.step import Objective, grad_step, train_step
from purestep.updates import Optimizer

_SPLIT = "law 2 (split-invariant)"


def check_split_invariant(
    model: nn.Module,
    objective: Objective,
    batch: Any,
    *,
    parts: Sequence[Sequence[int]] | None = None,
    accumulate: Sequence[int] = (2, 3),
    optimizer: Optimizer | None = None,
    state: TrainState | None = None,
    trainable: Trainable = None,
    tolerance: float = 1e-12,
) -> None:
    """Assert law 2: any partition of a batch gives the whole batch's gradient and metrics.

    The batch is cut by hand, each part's ``grad_step`` merged with :func:`purestep.merge`, and by ``accumulate=``
    inside ``grad_step`` and ``train_step``. Errors are relative to the norm of the whole gradient (of the whole update
    for new parameters), since an entry whose true gradient is zero has no relative error of its own.

    An objective that couples examples (batch statistics of BatchNorm in training mode, a contrastive loss) is no sum
    over them and fails, rightly. Random masks belong to an example's place in the whole batch, which parts cut by hand
    do not know: give ``parts=()`` for a model with dropout.

    Args:
        model, objective, trainable: as in :func:`purestep.train_step`. In float32 the law is seen less sharply:
            ``model.double()`` and a float64 batch show it best.
        batch: at least two examples; ragged examples, padding and weights show more than equal ones.
        parts: partitions, each the lengths of its consecutive parts, which add up to the batch's; 0 is an empty part.
            By default a quarter and the rest, and three ragged parts.
        accumulate: the numbers of micro-batches to try; those above the number of examples are passed over. ``()`` for
            none.
        optimizer: compares ``train_step`` with this optimizer as well; by default with SGD, whose update is the
            gradient. (Adam divides a gradient by its own size, and so makes noise of one that is truly zero.)
        state: where to take the gradient; by default the model's own values.
        tolerance: for float64; other dtypes are allowed as many of their own roundings.

    Raises:
        LawViolation: the entry that differs, both values, and the error relative to its norm.
        ValueError: a partition whose lengths do not add up to the number of examples; nothing to cut the batch by.
    """
    length = _batches.batch_length(batch)
    parts = _default_parts(length) if parts is None else parts
    counts = [count for count in accumulate if count <= length]
    if not (len(parts) or counts):
        raise ValueError(
            f"parts and accumulate must cut the {length} examples of batch in one way at least, got parts={parts!r} "
            f"and accumulate={accumulate!r}"
        )
    optimizer = sgd(1.0) if optimizer is None else optimizer
    state = init_state(model, optimizer, seed=0, trainable=trainable) if state is None else state
    gradient = grad_step(model, objective, trainable=trainable)
    whole = gradient(state, batch)
    for lengths in parts:
        pieces = partition(batch, lengths)
        merged = functools.reduce(_merged, (gradient(state, piece) for piece in pieces))
        comparison = Comparison(_SPLIT, f"merged from parts of {list(lengths)}", "in the whole batch", tolerance)
        comparison.gradients(merged, whole)
    if not counts:
        return
    make_gradient = functools.partial(_make_grad_step, model, objective, trainable)
    check_accumulation(make_gradient, state, batch, accumulate=counts, tolerance=tolerance)
    make_step = functools.partial(_make_train_step, model, objective, optimizer, trainable)
    check_accumulation(make_step, state, batch, accumulate=counts, tolerance=tolerance)


def check_accumulation(
    make_step: Callable[[int], Callable[[TrainState, Any], Any]],
    state: TrainState,
    batch: Any,
    *,
    accumulate: Sequence[int] = (2, 3),
    tolerance: float = 1e-12,
) -> None:
    """Assert law 2 of a step: with any number of micro-batches it gives what it gives with one.

    Args:
        make_step: the step that cuts a batch into so many micro-batches:
            ``lambda count: ps.train_step(model, objective, optimizer, accumulate=count)``. It returns
            ``(state, metrics)``, a :class:`purestep.Gradient`, or metrics.
        state, batch: what to call the steps with.
        accumulate: the numbers of micro-batches to try, at least one.
        tolerance: as in :func:`check_split_invariant`.

    Buffers are not compared: running statistics of batches depend on the batches.

    Raises:
        LawViolation: as :func:`check_split_invariant`.
        ValueError: ``accumulate`` is empty.
    """
    if not len(accumulate):
        raise ValueError(f"accumulate must be at least one number, or nothing is compared, got {accumulate!r}")
    whole = make_step(1)(state.clone(), batch)
    for count in accumulate:
        comparison = Comparison(_SPLIT, f"by accumulate={count}", "by accumulate=1", tolerance)
        got = make_step(count)(state.clone(), batch)
        comparison.results(got, whole, state, buffers=False)


def partition(batch: Any, lengths: Sequence[int]) -> list[Any]:
    """Return consecutive slices of a batch along dimension 0, of the given lengths; 0 gives an empty one.

    Raises:
        ValueError: lengths below 0, or that do not add up to the number of examples.
    """
    length = _batches.batch_length(batch)
    for size in lengths:
        _checks.integer("a part's length", size, minimum=0)
    if sum(lengths) != length or not lengths:
        raise ValueError(
            f"parts must be lengths that add up to the {length} examples of batch, got {list(lengths)}, which add up "
            f"to {sum(lengths)}"
        )
    return [_batches.slice_batch(batch, start, stop) for start, stop in pairwise(running_sum(lengths, initial=0))]


def _default_parts(length: int) -> list[tuple[int, ...]]:
    if length < 2:
        raise ValueError(f"batch must have at least 2 examples to be cut, got {length}")
    quarter, third = max(1, length // 4), length // 3
    ragged = (third, length - 2 * third + third // 2, third - third // 2)
    return [(quarter, length - quarter), tuple(size for size in ragged if size)]


def _merged(first: Gradient, second: Gradient) -> Gradient:
    bare = [name for name, metric in first.metrics.items() if isinstance(metric, Tensor)]
    if bare:
        raise LawViolation(
            f"{_SPLIT}: metric {bare[0]!r} is a bare tensor, and tensors of several parts cannot be pooled: return "
            "ps.mean(values) instead"
        )
    try:
        return objectives.merge(first, second)
    except TypeError as error:
        raise LawViolation(f"{_SPLIT}: the parts cannot be merged: {error}") from error


def _make_grad_step(model: nn.Module, objective: Objective, trainable: Trainable, count: int) -> Any:
    return grad_step(model, objective, accumulate=count, trainable=trainable)


def _make_train_step(
    model: nn.Module, objective: Objective, optimizer: Optimizer, trainable: Trainable, count: int
) -> Any:
    return train_step(model, objective, optimizer, accumulate=count, trainable=trainable)
