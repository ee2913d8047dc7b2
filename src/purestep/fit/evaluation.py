"""The metrics of a state over a whole set of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tensordict import is_tensor_collection
from torch import Tensor

from purestep.data.pipeline import Pipeline
from purestep.fit._window import Window
from purestep.state import TrainState


def evaluate(
    step: Callable[[TrainState, Any], Mapping[str, Any]], state: TrainState, batches: Iterable[Any]
) -> dict[str, Any]:
    """Return the metrics of ``state`` over all of ``batches``, pooled as if they had been one batch.

    Totals and weights add up in float64, so ragged batches weigh what they should and no count is too long. The device
    is not waited for: the results are on it, and ``float(metrics["loss"])`` reads one.

    Args:
        step: ``(state, batch) -> metrics``, as :func:`purestep.eval_step` or its compiled form.
        state: what to evaluate; it is not changed.
        batches: the batches of one pass. A list or a pipeline with ``epochs=1`` can be read again; a generator once.

    Returns:
        The pooled metrics, each a :class:`Mean`, a :class:`Loss` or what the step returned; :func:`purestep.values`
        divides them, and :func:`purestep.merge` pools them further. Of a plain tensor the last batch's stays.

    Raises:
        TypeError: ``step`` is no function, ``batches`` is one batch, or a loss that is a bare tensor, which cannot be
            pooled.
        ValueError: ``batches`` yields nothing or has no end, or the metrics differ between batches.
    """
    check_step(step)
    check_batches(batches)
    if isinstance(batches, Pipeline) and batches.epochs is None:
        raise ValueError("batches must end, got an endless pipeline: make it with epochs=1")
    window = Window(last_bare=False)
    for batch in batches:
        window.add(step(state, batch))
    if not window.steps:
        raise ValueError(no_batches(batches))
    return window.pooled()


def check_step(step: Any) -> None:
    """Raise ``TypeError`` where a step is no function."""
    if not callable(step):
        raise TypeError(f"step must be a function (state, batch) -> ..., got {step!r} of type {type(step).__name__}")


def check_batches(batches: Any) -> None:
    """Raise ``TypeError`` where ``batches`` is no iterable of batches: a batch is often iterable too."""
    if isinstance(batches, (Tensor, Mapping, str)) or is_tensor_collection(batches):
        raise TypeError(
            f"batches must be an iterable of batches, got a {type(batches).__name__}, which is one batch: [batch] is a "
            "list of it"
        )
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, got {batches!r} of type {type(batches).__name__}")


def no_batches(batches: Any) -> str:
    """Say that there were no batches, and why that is often so."""
    return (
        f"batches must yield at least one batch, got none from a {type(batches).__name__} (a generator can be read "
        "only once: give a list, a DataLoader or a pipeline where it is read again)"
    )
