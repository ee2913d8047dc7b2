"""Law 9: nothing that is not finite is applied silently."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from purestep import _batches
from purestep.laws._compare import LawViolation, named_leaves, named_tensors, same_bits
from purestep.laws._report import LawDoesNotApplyError
from purestep.laws._world import Untouched
from purestep.state import TrainState

_LAW = "law 9 (nothing non-finite is applied silently)"
_POISONS = (math.nan, math.inf)
_MAY_CHANGE = ("state.calls", "state.aux", "state.key")


def check_nonfinite(step: Callable[[TrainState, Any], Any], state: TrainState, batch: Any) -> None:
    """Raise where a step applies what is not finite, or writes into the state that it was given while it refuses.

    NaN and infinity are put into one entry of each floating leaf of the batch, and into one of the parameters. The
    step may raise, with the state as it was; or return a state in which nothing but ``calls``, ``key`` and ``aux``
    changed; or one that is finite all over, with a finite loss, where the number does not count.

    Raises:
        LawViolation: on which number, and what became of it.
        LawDoesNotApplyError: none of them made anything non-finite.
    """
    met = False
    for name, given, poisoned in _poisoned(state, batch):
        watched = Untouched(_LAW, lambda given=given: named_leaves(given, "state"))  # type: ignore[misc]
        try:
            result = step(given, poisoned)
        except Exception:  # a policy of raising, whatever it raises
            watched.check(f"the step, which refused {name},")
            met = True
            continue
        met |= _check_kept(name, given, result)
    if not met:
        raise LawDoesNotApplyError("NaN in its batch or its parameters makes nothing in its results non-finite")


def _poisoned(state: TrainState, batch: Any) -> Iterator[tuple[str, TrainState, Any]]:
    """Yield what is poisoned, the state and the batch."""
    floating = [(path, leaf) for path, leaf in _batches.tensors_of(batch) if leaf.is_floating_point() and leaf.numel()]
    for path, leaf in floating:
        place = leaf.numel() // 2
        index = [int(i) for i in torch.unravel_index(torch.tensor(place), leaf.shape)]
        for poison in _POISONS:
            yield f"{poison} in {path}{index}", state.clone(), _replaced(batch, leaf, _with(leaf, place, poison))
    name = next(name for name, leaf in state.params.items() if leaf.is_floating_point() and leaf.numel())
    spoiled = state.clone()
    first = spoiled.params[name]
    first[(0,) * first.dim()] = math.nan
    yield f"nan in state.params[{name!r}]", spoiled, batch


def _replaced(batch: Any, leaf: Tensor, other: Tensor) -> Any:
    """Return the batch with another tensor in the place of one, in all places of it."""
    return pytree.tree_map_only(Tensor, lambda each: other if each is leaf else each, batch)


def _with(leaf: Tensor, place: int, value: float) -> Tensor:
    other = leaf.detach().clone(memory_format=torch.contiguous_format)
    other.view(-1)[place] = value
    return other


def _check_kept(name: str, before: TrainState, result: tuple[TrainState, Any]) -> bool:
    """Raise where a state took over what is not finite; return whether anything in the results is not finite."""
    after, metrics = result
    then, now = named_tensors(before, "state"), named_tensors(after, "state")
    changed = [p for p in now if not p.startswith(_MAY_CHANGE) and not (p in then and same_bits(now[p], then[p]))]
    spoiled = [p for p in changed if _wrong(now[p]) > (_wrong(then[p]) if p in then else 0)]
    loss = metrics.get("loss") if hasattr(metrics, "get") else None
    value = loss if isinstance(loss, Tensor) or loss is None else loss.value()
    lost = value is not None and bool(_wrong(value))
    if changed and (spoiled or lost):
        wrong, total = sum(_wrong(now[p]) for p in spoiled), sum(now[p].numel() for p in changed)
        says = f"{wrong} of the {total} entries that it changed are not finite" if wrong else "the loss is not finite"
        raise LawViolation(
            f"{_LAW}: with {name} the step goes on, and {', '.join((spoiled or changed)[:4])} changed: {says}; raise, "
            "or return the old state (ps.update_step has both policies)",
            by=says,
            on=name,
        )
    return bool(changed and spoiled) or lost


def _wrong(leaf: Tensor) -> int:
    return int((~torch.isfinite(leaf)).sum())
