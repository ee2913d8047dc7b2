"""Laws of steps: pure, and the same however it is executed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from purestep import _checks, nonfinite
from purestep.laws._compare import Comparison, check_same_bits, named_leaves, named_result
from purestep.laws._world import Untouched, copies, guarded_world, module_leaves
from purestep.state import TrainState

Step = Callable[[TrainState, Any], Any]

_PURE = "law 1 (pure)"
_EXECUTION = "law 3 (execution-invariant)"


def check_pure(
    step: Step, state: TrainState, batch: Any, *, model: nn.Module | None = None, donates: bool = False
) -> None:
    """Assert law 1: the same arguments give the same bits, and nothing but the results is new.

    The step is called twice, the second time under other seeds of the global generators. Its arguments keep every bit
    and every version counter; the global random states (torch's on the CPU and on CUDA, Python's, NumPy's), grad mode,
    default dtype, default device and deterministic mode stay; and what the first call returned is not written by the
    second. On CUDA, some of torch's kernels give other bits each time unless deterministic algorithms are on.

    Args:
        step: ``(state, batch) -> anything``: a training step, ``eval_step``, ``grad_step``, or one's own.
        state, batch: what to call it with.
        model: the module the step was made from: its values, gradients and modes must stay as well.
        donates: the step takes over its state's storage, so each call gets a clone that may be written.

    Raises:
        LawViolation: what was touched, or which entry of the result has other bits.
    """
    watched = [Untouched(_PURE, lambda: named_leaves(batch, "batch"))]
    if not donates:
        watched.append(Untouched(_PURE, lambda: named_leaves(state, "state")))
    if model is not None:
        watched.append(Untouched(_PURE, lambda: module_leaves(model)))

    def call(seed: int | None) -> dict[str, Any]:
        given = state.clone() if donates else state
        with guarded_world(_PURE, "the step", seed=seed):
            result = step(given, batch)
        for part in watched:
            part.check("the step")
        return named_result(result)

    first = call(None)
    kept = copies(first)
    second = call(20_251)
    check_same_bits(_PURE, second, kept, names=("at a second call with the same arguments", "at the first"))
    check_same_bits(_PURE, first, kept, names=("once the step was called again", "before that"))


def check_same(
    step: Step,
    other: Step,
    state: TrainState,
    batch: Any,
    *,
    names: tuple[str, str] = ("by the step", "by the other step"),
    tolerance: float = 1e-10,
    steps: int = 1,
) -> None:
    """Assert that two steps give the same results from the same arguments, within a tolerance.

    New parameters are compared relative to the norm of the whole update (plus a few roundings of the stored value),
    gradients to that of the whole gradient, any other tree of tensors to its own norm, and metrics to their value, or
    to 1 where it is smaller. Integers and bools must be equal.

    Args:
        step, other: ``(state, batch) -> (state, metrics)``, ``-> Gradient``, or ``-> metrics``; either may donate, as
            each gets a clone of the state.
        state, batch: what to call them with.
        names: what messages call the two.
        tolerance: for float64; other dtypes are allowed as many of their own roundings.
        steps: how many to take from ``state``, each on the same batch; every result is compared.

    Raises:
        LawViolation: the first entry that differs, both values, and the error relative to its norm.
        ValueError, TypeError: ``steps`` below 1.
    """
    _checks.integer("steps", steps, minimum=1)
    comparison = Comparison(_EXECUTION, names[1], names[0], tolerance)
    mine, theirs = state.clone(), state.clone()
    for _ in range(steps):
        before = mine.clone()
        right, got = step(mine, batch), other(theirs, batch)
        comparison.results(got, right, before)
        if isinstance(right, tuple) and isinstance(right[0], TrainState):
            mine, theirs = right[0], got[0]


def check_execution_invariant(
    step: Step,
    state: TrainState,
    batch: Any,
    *,
    others: Mapping[str, Step],
    tolerance: float = 1e-10,
    steps: int = 1,
) -> None:
    """Assert law 3: the step gives the same results however it is executed.

    Args:
        step: the step as it is, eager.
        state, batch: what to call it with.
        others: the same step executed otherwise, by the name messages give it:
            ``{"compiled": ps.compile(step), "donated": ps.compile(step, donate=True)}``.
        tolerance, steps: as in :func:`check_same`.

    Raises:
        LawViolation: as :func:`check_same`.
        ValueError: ``others`` is empty.
    """
    if not others:
        raise ValueError(f"others must hold at least one step, or nothing is compared, got {others!r}")
    for name, other in others.items():
        check_same(step, other, state, batch, names=("eagerly", name), tolerance=tolerance, steps=steps)


def check_ensemble(step: Step, states: Sequence[TrainState], batch: Any, *, tolerance: float = 1e-10) -> None:
    """Assert law 3 for an ensemble: the step under ``torch.vmap`` over stacked states does what it does to each.

    Args:
        step: as in :func:`check_same`.
        states: at least two of one model, with different values.
        batch: the batch that all of them get.
        tolerance: as in :func:`check_same`.

    Raises:
        LawViolation: as :func:`check_same`.
        ValueError: fewer than two states.
    """
    if len(states) < 2:
        raise ValueError(f"states must be at least two, to tell one member from another, got {len(states)}")
    stacked: Any = torch.stack([state.clone() for state in states])  # type: ignore[misc]
    # Alone, a member that is not finite raises; together it tells so in its metrics, which are looked at here.
    together = nonfinite.raise_pending(torch.vmap(step, in_dims=(0, None))(stacked, batch))
    for position, state in enumerate(states):
        names = ("alone", f"as member {position} of an ensemble")
        comparison = Comparison(_EXECUTION, names[1], names[0], tolerance)
        comparison.results(_member(together, position), step(state.clone(), batch), state)


def _member(results: Any, position: int) -> Any:
    if isinstance(results, TrainState):
        return results[position]
    if isinstance(results, tuple):
        return tuple(_member(part, position) for part in results)
    return pytree.tree_map_only(Tensor, lambda tensor: tensor[position], results)
