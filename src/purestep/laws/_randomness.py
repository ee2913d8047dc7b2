"""Laws of a step that draws: each step, call site and example has a stream of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from purestep import _tree
from purestep.laws._compare import LawViolation, named_result, same_bits
from purestep.laws._report import LawDoesNotApplyError
from purestep.random import fold_in
from purestep.state import TrainState

_ANEW = "law 1 (randomness is an argument)"
_STREAMS = "law 1 (a stream of its own)"
# Two masks that agree by less than this chance have one stream.
_CHANCE = 1e-9
_MOST_CALLS = 64
# The dimensions behind examples and channels, which a dropout drops together; alpha dropouts leave no zeros to see.
_TOGETHER: dict[type[nn.Module], int] = {nn.Dropout: 0, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}

Step = Callable[[TrainState, Any], Any]


@dataclass(frozen=True)
class Mask:
    """What one call of a dropout module dropped.

    Attributes:
        name: what a message calls the call.
        rate: the chance of an entry to be dropped.
        given: the module's input.
        kept: bool, ``(examples, ...)``: the entries that are not dropped.
        seen: bool: those whose input was not zero, where ``kept`` says something.
    """

    name: str
    rate: float
    given: Tensor
    kept: Tensor
    seen: Tensor

    def chance(self, other: Mask) -> float:
        """The chance that two independent masks agree where both say something."""
        alike = self.rate * other.rate + (1 - self.rate) * (1 - other.rate)
        return float(alike ** int((self.seen & other.seen).sum()))

    def agrees(self, other: Mask) -> bool:
        return not bool(((self.kept != other.kept) & self.seen & other.seen).any())

    def row(self, index: int) -> Mask:
        name = f"example {index} in {self.name}"
        return Mask(name, self.rate, self.given[index], self.kept[index], self.seen[index])


@contextmanager
def recorded_masks() -> Iterator[list[Mask]]:
    """Record what each dropout module drops that is called within the block, in a copy of a module too."""
    masks: list[Mask] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        together = next((_TOGETHER[kind] for kind in type(module).__mro__ if kind in _TOGETHER), None)
        if together is None or not (module.training and args and len(masks) < _MOST_CALLS):
            return
        given, rate = args[0], float(module.p)  # type: ignore[arg-type]
        if not (0 < rate < 1) or module.inplace or not (_tree.readable(output) and _tree.readable(given)):
            return
        kept, seen = (
            (leaf.detach() != 0).flatten(-together).any(-1) if together else leaf.detach() != 0
            for leaf in (output, given)
        )
        name = f"call {len(masks)} of a dropout, {module}"
        masks.append(Mask(name, rate, given.detach().clone(), kept, seen))

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        yield masks
    finally:
        handle.remove()


def check_own_streams(step: Step, state: TrainState, batch: Any) -> None:
    """Raise where two call sites of dropout modules, or two examples in one, drop the same entries.

    Modules of ``nn.Dropout``, ``Dropout1d``, ``2d`` and ``3d``, and of classes derived from them, are looked at where
    they do not work in place. Two calls with the same input are one call made again (a rematerialised block), and may
    agree.

    Raises:
        LawViolation: which two agree, and in how many entries.
        LawDoesNotApplyError: no such module is called, or they have too few entries to tell.
    """
    with recorded_masks() as masks:
        step(state.clone(), batch)
    looked = [_check_apart(one, other) for one, other in itertools.combinations(masks, 2)]
    for mask in masks:
        rows = range(1, len(mask.kept)) if mask.kept.dim() > 1 else range(0)
        looked += [_check_apart(mask.row(0), mask.row(i)) for i in rows]
    if not any(looked):
        why = "its dropouts drop too few entries to tell" if masks else "it calls no dropout module that can be seen"
        raise LawDoesNotApplyError(why)


def _check_apart(one: Mask, other: Mask) -> bool:
    """Raise where two masks agree beyond chance; return whether that could be told."""
    if one.kept.shape != other.kept.shape or one.chance(other) > _CHANCE or same_bits(one.given, other.given):
        return False
    if one.agrees(other):
        count = int((one.seen & other.seen).sum())
        raise LawViolation(
            f"{_STREAMS}: {one.name} and {other.name} drop the same entries: give each a key of its own "
            "(ps.random.split, ps.random.fold_in), and each example a place in its stream",
            by=f"all {count} entries agree",
            on=f"{one.name} and {other.name}",
        )
    return True


def check_draws_anew(step: Step, state: TrainState, batch: Any, *, draws: bool | None = None) -> None:
    """Raise where a step that draws gives at its next call the numbers of this one.

    A step draws where another key gives another result. The step is then called with the same parameters and the
    ``calls`` and ``key`` that it returned; as a whole, and in each call of a dropout module, something must differ.

    Args:
        draws: ``True``: it is a violation that nothing depends on the key.

    Raises:
        LawViolation: what stayed.
        LawDoesNotApplyError: another key changes nothing.
    """
    with recorded_masks() as before:
        result = step(state.clone(), batch)
    first = _outcome(result)
    if _equal(first, _outcome(step(state.clone().replace(key=fold_in(state.key, 1)), batch))):
        if draws:
            raise LawViolation(
                f"{_ANEW}: another key changes nothing in what the step returns, so it draws nothing from its state",
                by=f"0 of {_count(first)} entries differ",
            )
        raise LawDoesNotApplyError("another key changes nothing in what it returns, so it draws nothing")
    calls, key = state.calls + 1, state.key
    if isinstance(result, tuple) and isinstance(result[0], TrainState):
        calls, key = result[0].calls, result[0].key
    with recorded_masks() as after:
        again = _outcome(step(state.clone().replace(calls=calls.clone(), key=key.clone()), batch))
    advice = (
        f"calls is {int(calls)} after {int(state.calls)}: return state.replace(..., calls=state.calls + 1), and draw "
        "from ps.random.fold_in(state.key, state.calls) what is drawn outside of the model"
    )
    if _equal(first, again):
        raise LawViolation(
            f"{_ANEW}: the next step draws what this one drew, since with its calls and its key the result is the "
            f"same; {advice}",
            by=f"0 of {_count(first)} entries differ",
        )
    for one, other in zip(before, after, strict=False):
        if one.kept.shape == other.kept.shape and one.chance(other) <= _CHANCE and one.agrees(other):
            raise LawViolation(
                f"{_ANEW}: {one.name} drops the same entries at the next step; {advice}",
                by=f"all {int((one.seen & other.seen).sum())} entries agree",
                on=one.name,
            )


def _outcome(result: Any) -> dict[str, Any]:
    return {path: leaf for path, leaf in named_result(result).items() if path not in ("state.calls", "state.key")}


def _equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(same_bits(leaf, second[path]) for path, leaf in first.items())


def _count(leaves: dict[str, Any]) -> int:
    return sum(leaf.numel() for leaf in leaves.values() if isinstance(leaf, torch.Tensor))
