"""Law 9: nothing that is not finite is applied silently. A policy decides before the first write.

A gradient is not finite where the loss is not, or where the sum of its squares is not (which also overflows, in
float32, for a norm above 1e19). Eagerly that is known at once. In a compiled step the new state is chosen on the
device: the old one stays where the gradient is not finite, and under ``"raise"`` a :class:`NonFinite` travels out with
the metrics, for whoever called the graph to raise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from tensordict import TensorDict
from torch import Tensor

from purestep import _checks, _tree, updates
from purestep.objectives import Loss, Mean
from purestep.precision import LOSS_SCALE, DynamicLossScale, scale_of
from purestep.state import SKIPPED, TrainState
from purestep.updates import Tree

PENDING = "nonfinite"


class NonFiniteError(ArithmeticError):
    """A step's loss or gradient is NaN or infinite; the state that was given is whole and unchanged."""


@dataclass(frozen=True, eq=False)
class NonFinite:
    """What a step found out that could not raise, because it was traced or vmapped; a metric like another.

    Attributes:
        found: bool, 0-d: whether something was not finite. The state did not change then.
        loss: 0-d, the loss's value.
        squares: for each trainable parameter, the sum of the squares of its gradient.
        names: those parameters.
    """

    found: Tensor
    loss: Tensor
    squares: Tensor
    names: tuple[str, ...]

    def merge(self, other: NonFinite) -> NonFinite:
        loss = torch.where(self.found, self.loss, other.loss)
        return NonFinite(self.found | other.found, loss, self.squares + other.squares, self.names)

    def value(self) -> Tensor:
        """Return 1 where something was not finite, else 0."""
        return self.found.to(torch.float32)

    def raise_if_found(self) -> None:
        """Raise :class:`NonFiniteError` where something was not finite, in any of several replicas. Waits for the
        device."""
        if not bool(self.found if self.found.dim() == 0 else self.found.any()):
            return
        squares = self.squares.reshape(-1, len(self.names))
        wrong = (~torch.isfinite(squares)).any(0).tolist()
        why = ""
        if bool(torch.isfinite(self.loss).all()):
            why = "; where weights= are given, look whether they are what the objective counts"
        raise NonFiniteError(_message(self.loss, [n for n, w in zip(self.names, wrong, strict=True) if w], why))


pytree.register_pytree_node(
    NonFinite,
    lambda found: ([found.found, found.loss, found.squares], found.names),
    lambda children, names: NonFinite(*(*children, names)),
    serialized_type_name="purestep.NonFinite",
)


class Guard:
    """The policy of an update: what becomes of a new state whose gradient was not finite.

    Args:
        on_nonfinite: ``"raise"`` or ``"skip"``.
        loss_scale: the machine whose state is in ``aux["loss_scale"]``, or ``None``.
    """

    def __init__(self, on_nonfinite: str, loss_scale: DynamicLossScale | None) -> None:
        if on_nonfinite not in ("raise", "skip"):
            raise ValueError(f"on_nonfinite must be one of 'raise', 'skip', got {on_nonfinite!r}")
        if loss_scale is not None and not isinstance(loss_scale, DynamicLossScale):
            raise TypeError(f"loss_scale must be a ps.DynamicLossScale or None, got {loss_scale!r}")
        self._raises, self._scale = on_nonfinite == "raise", loss_scale
        self._counts = not self._raises or loss_scale is not None

    def check(self, state: TrainState) -> None:
        """Raise ``ValueError`` where ``state.aux`` lacks what is counted there."""
        if not self._counts:
            return
        if SKIPPED not in state.aux.keys():  # noqa: SIM118 (a TensorDict refuses `in`)
            raise ValueError(f"state.aux lacks {SKIPPED!r}, the count of skipped steps: ps.init_state makes it")
        if self._scale is not None:
            scale_of(state.aux)

    def decide(
        self, state: TrainState, after: TrainState, grads: Tree, loss: Loss | Mean
    ) -> tuple[TrainState, dict[str, Any]]:
        """Return the state that a step ends in, and what to report.

        Args:
            state, after: before and after the update.
            grads: divided.
            loss: not divided.
        """
        value = loss.value()
        waits = self._raises and self._scale is None  # for the device, which is the price of raising
        if (waits or value.device.type == "cpu") and _tree.readable(value) and _tree.readable(_first(grads)):
            finite = math.isfinite(value.item()) and _all_finite(grads)
            if not finite and self._raises and not (self._scale and scale_of(state.aux)["scale"] > self._scale.minimum):
                raise explain(look(grads, value), loss)
            if self._counts:
                aux = self._counted(state, torch.tensor(not finite))
                after = after.replace(aux=aux) if finite else state.replace(calls=after.calls, aux=aux)
            return after, self._report(after)
        found = look(grads, value)
        if self._counts:
            after = _kept(state, after.replace(aux=self._counted(state, found.found)), found.found)
        if not self._raises:
            return after, self._report(after)
        if self._scale is not None:
            found = replace(found, found=found.found & (scale_of(state.aux)["scale"] <= self._scale.minimum))
        after = _kept(state, after, found.found, "calls", "aux")
        return after, {PENDING: found, **self._report(after)}

    def _counted(self, state: TrainState, found: Tensor) -> TensorDict:
        aux = {**_tree.as_dict(state.aux), SKIPPED: state.aux[SKIPPED] + found.to(torch.int64)}
        if self._scale is not None:
            aux[LOSS_SCALE] = self._scale.update(scale_of(state.aux), ~found)
        return TensorDict(aux, batch_size=state.aux.batch_size)

    def _report(self, after: TrainState) -> dict[str, Tensor]:
        if not self._counts:
            return {}
        report = {SKIPPED: after.aux[SKIPPED]}
        return report if self._scale is None else {**report, LOSS_SCALE: after.aux[LOSS_SCALE]["scale"]}


def _kept(state: TrainState, after: TrainState, found: Tensor, *also: str) -> TrainState:
    """Return ``after``, with what an update changes, and ``also``, as in ``state`` where ``found``."""
    kept: dict[str, Any] = {}
    for name in ("params", "buffers", "opt_state", "step", *also):
        old, new = getattr(state, name), getattr(after, name)
        kept[name] = torch.where(found, old, new) if isinstance(new, Tensor) else _tree.choose(found, old, new)
    return after.replace(**kept)


def look(grads: Tree, loss: Tensor) -> NonFinite:
    """Return whether a loss and its gradient are finite."""
    squares = updates.squares(grads)  # as clipping has them, which a compiled graph then computes once
    finite = torch.isfinite(squares.sum()) & torch.isfinite(loss)
    return NonFinite(~finite, loss, squares, tuple(grads.keys()))


def _all_finite(grads: Tree) -> bool:
    """As :func:`look`, read at once."""
    if _tree.is_transformed():
        return bool(torch.isfinite(updates.squares(grads).sum()))
    leaves = [updates.wide(leaf) for leaf in _tree.as_dict(grads).values()]
    with torch.no_grad():
        return math.isfinite(torch.stack(torch._foreach_norm(leaves)).square().sum().item())


def _first(grads: Tree) -> Tensor:
    return next(iter(_tree.as_dict(grads).values()))


def explain(found: NonFinite, loss: Loss | Mean) -> NonFiniteError:
    """Return the error for a finding whose values can be read."""
    wrong = [n for n, s in zip(found.names, torch.isfinite(found.squares).tolist(), strict=True) if not s]
    empty = [i for i, term in enumerate(loss.terms) if _tree.readable(term.weight) and not bool(term.weight)]
    why = ""
    if empty:
        which = "the loss" if len(loss.terms) == 1 else f"term {empty[0]} of the loss"
        why = f"; {which} has weight zero: nothing in the batch counts for it"
    return NonFiniteError(_message(found.loss, wrong, why))


def _message(loss: Tensor, wrong: list[str], why: str) -> str:
    values = loss.tolist()
    where = f", its gradient not finite in {_checks.listed(wrong)}" if wrong else ""
    return (
        f"the loss is {values}{where}{why}. The state is unchanged: pass over such batches with "
        'on_nonfinite="skip", or look for where it began with torch.autograd.set_detect_anomaly(True)'
    )


def findings(results: Any) -> Iterator[NonFinite]:
    """Yield each :class:`NonFinite` in a step's results; what a state holds is not looked into."""
    if isinstance(results, NonFinite):
        yield results
    elif isinstance(results, (dict, tuple, list)):
        for value in results.values() if isinstance(results, dict) else results:
            yield from findings(value)


def raise_pending(results: Any) -> Any:
    """Return a compiled graph's results without the :class:`NonFinite` in their dicts; raise what one of them found."""
    for found in findings(results):
        found.raise_if_found()
    return _without(results)


def _without(results: Any) -> Any:
    if isinstance(results, dict):
        kept = {name: _without(value) for name, value in results.items() if type(value) is not NonFinite}
        return kept if type(results) is dict else type(results)(kept)
    if type(results) in (tuple, list):
        return type(results)(_without(value) for value in results)
    return results
