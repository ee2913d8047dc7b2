"""An objective seen at one state: its terms on any examples of a batch, and how they add up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from purestep import _batches, _checks, _tree
from purestep._forward import Forward, Objective
from purestep.functional import Trainable, trainable_names
from purestep.laws._compare import allowed
from purestep.objectives import Bare, Loss, Mean
from purestep.optimizers import sgd
from purestep.state import TrainState, init_state

TRIES = 8


class Term(NamedTuple):
    total: float
    weight: float


class Probe:
    """An objective at one state: its terms on any examples of a batch, each time on a copy of them."""

    def __init__(
        self, model: nn.Module, objective: Objective, batch: Any, state: Any, trainable: Trainable, tolerance: float
    ) -> None:
        self.model, self.batch, self.length = model, batch, _batches.batch_length(batch)
        if self.length < 2:
            raise ValueError(f"batch must have at least 2 examples, to be cut, got {self.length}")
        _checks.number("tolerance", tolerance, above=0)
        self.state = init_state(model, sgd(1.0), seed=0, trainable=trainable) if state is None else state
        self.is_bare = False
        self._forward = Forward(model, objective, training=True)
        self._forward.check(self.state)
        self._names = trainable_names(model, trainable)
        floating = [leaf.dtype for leaf in self.state.params.values() if leaf.is_floating_point()]
        self._tolerance, self._coarsest = tolerance, max(floating, key=lambda d: torch.finfo(d).eps)

    def _loss(self, batch: Any, params: dict[str, Tensor], state: TrainState, first: int) -> Loss | Mean:
        count = _batches.batch_length(batch)
        (loss, _), _ = self._forward(params, state.buffers, batch, state, bare=True, first=first, count=count)
        return loss

    def examples(self, rows: Sequence[int]) -> Any:
        """Return a copy of some examples, in this order."""
        index: Any = torch.tensor(list(rows), dtype=torch.int64, device="cpu")
        return _batches.take(self.batch, index)

    def terms(self, rows: Sequence[int], *, first: int = 0, state: TrainState | None = None) -> list[Term]:
        """Return the terms on ``rows`` of the batch, which stand at ``first`` in it."""
        return self.terms_of(self.examples(rows), first=first, state=state)

    def terms_of(self, batch: Any, *, first: int = 0, state: TrainState | None = None) -> list[Term]:
        state = self.state if state is None else state
        with torch.no_grad():
            loss = self._loss(batch, _tree.as_dict(state.params), state, first)
        self.is_bare = isinstance(loss, Bare)
        return [Term(float(term.total), float(term.weight)) for term in loss.terms]

    def gradients(self, batch: Any, *, first: int = 0) -> list[dict[str, Tensor]]:
        """Return the gradient of each term's total, by parameter."""
        params = {name: leaf.detach() for name, leaf in _tree.as_dict(self.state.params).items()}
        with torch.enable_grad():
            wanted = {name: params[name].requires_grad_() for name in self._names}
            terms = self._loss(batch, params, self.state, first).terms
        found = []
        for term in terms:
            leaves: Any = [torch.zeros_like(leaf) for leaf in wanted.values()]
            if term.total.requires_grad:
                leaves = torch.autograd.grad(
                    term.total, list(wanted.values()), retain_graph=True, allow_unused=True, materialize_grads=True
                )
            found.append(dict(zip(wanted, leaves, strict=True)))
        return found

    def near(self, error: float, scale: float) -> bool:
        """Whether an error is rounding; not, where it is NaN."""
        return error <= allowed(self._tolerance, self._coarsest) * scale

    def split(self, start: int, lengths: Sequence[int]) -> Split:
        """Return the terms of consecutive examples, and of the parts they are cut into."""
        bounds = [start, *(start + end for end in itertools.accumulate(lengths))]
        whole = self.terms(range(start, bounds[-1]), first=start)
        return Split(start, tuple(lengths), whole, [self.terms(range(a, b), first=a) for a, b in pairwise(bounds)])

    def check_informative(self) -> None:
        for position, term in enumerate(self.terms(range(self.length))):
            if not (math.isfinite(term.total) and math.isfinite(term.weight) and term.weight):
                raise ValueError(
                    f"batch must give every term a finite total and a weight other than zero, or it shows nothing: "
                    f"term {position} has total {term.total} and weight {term.weight}"
                )


@dataclass(frozen=True)
class Split:
    """Consecutive examples from ``start``, cut into parts of ``lengths``; the terms of the whole and of each part."""

    start: int
    lengths: tuple[int, ...]
    whole: list[Term]
    parts: list[list[Term]]

    def of(self, term: int) -> tuple[Term, list[Term]]:
        return self.whole[term], [part[term] for part in self.parts]

    def adds_up(self, term: int, probe: Probe) -> bool:
        """Whether a term's parts add up to the whole, or each of them is the whole (an amount that is there once)."""
        whole, parts = self.of(term)
        added = once = True
        for right, *values in zip(whole, *parts, strict=True):
            scale = max(map(abs, (right, *values)))
            added &= probe.near(abs(sum(values) - right), scale)
            once &= all(probe.near(abs(value - right), scale) for value in values)
        return added or once

    def __str__(self) -> str:
        return f"on examples {self.start} to {self.start + sum(self.lengths) - 1} cut into {plus(self.lengths)}"


def spread(values: Sequence[int], most: int = TRIES) -> list[int]:
    """Return at most so many of the values, evenly apart."""
    step = max(1, math.ceil(len(values) / most))
    return list(values[::step])


def plus(lengths: Sequence[int]) -> str:
    return " + ".join(map(str, lengths))
