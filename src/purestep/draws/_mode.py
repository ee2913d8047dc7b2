"""The mode that draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purestep import random
from purestep.draws._refusals import UnkeyedDrawError, generator_states, put_back, refusal, refuse_checkpointing
from purestep.draws._sites import Call, SiteMode, current_mode
from purestep.random._examples import BY_SHAPE

Rule = Callable[..., Any]
# What to do instead of a function that draws; filled by the files of rules, through :func:`draws`.
RULES: dict[Any, Rule] = {}
# The same for methods of tensors, by name: Dynamo, where it traces a gradient, does not find a method among the keys.
METHODS: dict[str, Rule] = {}


def draws(*functions: Any) -> Callable[[Rule], Rule]:
    """Register a rule ``(mode, function, *its arguments) -> its result`` for functions, or for methods by name."""

    def register(rule: Rule) -> Rule:
        for function in functions:
            (METHODS if isinstance(function, str) else RULES)[function] = rule
        return rule

    return register


class Place(NamedTuple):
    """A call site of a forward, and what its draws are a function of."""

    key: Tensor
    calls: Tensor
    first: int | Tensor
    examples: int
    examples_dim: int | str | None
    module_call: int
    drawn: int


class Draws(SiteMode):
    """Draw every random operation under this mode from ``key``.

    Args:
        key: int64, ``(2,)``: the state's key.
        calls: int64, 0-d: the steps attempted so far; each draws anew.
        first: index, in the whole batch, of the first example of this micro-batch; an int or an int64 0-d tensor.
        count: examples in this micro-batch; 0 where the batch is whole.
        watch: compare the global generators around every call, to name the one that reads them.
    """

    def __init__(
        self, key: Tensor, calls: Tensor, *, first: int | Tensor = 0, count: int = 0, watch: bool = False
    ) -> None:
        super().__init__(Call(0))
        self._key, self._calls, self._first, self._count, self._watch = key, calls, first, count, watch
        self._call_key: Tensor | None = None
        self.examples_dim: Any = BY_SHAPE
        self._began = 0

    def place(self) -> Place:
        """Return where the next draw is, so that :meth:`at` can make the draws that follow once more."""
        call = self.trail[-1]
        return Place(self._key, self._calls, self._first, self._count, self.examples_dim, call.number, call.draws)

    @classmethod
    def at(cls, place: Place) -> Draws:
        """Return a mode whose first draw is the one at ``place``."""
        mode = cls(place.key, place.calls, first=place.first, count=place.examples)
        mode.trail, mode._began = [Call(place.module_call, place.drawn)], place.drawn
        mode.examples_dim = place.examples_dim
        return mode

    @property
    def used(self) -> int:
        """The number of draws made where the mode began, by no module of their own."""
        return self.trail[0].draws - self._began

    def advance(self, draws: int) -> None:
        """Pass over draws that were made elsewhere."""
        self.trail[-1].draws += draws

    def draw(self, generate: Callable[..., Tensor], shape: Any, *, along: int | None = None, **kwargs: Any) -> Tensor:
        """Return ``generate(key, shape, start=, site=, **kwargs)`` at the next call site.

        Args:
            generate: an elementwise generator of :mod:`purestep.random`.
            shape: of the result.
            along: a dimension that runs over the examples of the micro-batch, once or several times, if its length is a
                multiple of their number. Without it, dimension 0 does where it is as long as the micro-batch.
        """
        if self._call_key is None:
            self._call_key = random.call_key(self._key, self._calls)
        site, shape = self.trail[-1].next_site(), tuple(shape)
        dim = self._dim_of_examples(shape, along)
        if dim is None:
            return generate(self._call_key, shape, site=site, **kwargs)
        first = (shape[dim], *shape[:dim], *shape[dim + 1 :])
        start = self._first * (first[0] // self._count) * math.prod(first[1:]) if self._count else 0
        return generate(self._call_key, first, start=start, site=site, **kwargs).movedim(0, dim)

    def _dim_of_examples(self, shape: tuple[int, ...], along: int | None) -> int | None:
        """Return the dimension of a draw along which the examples of a batch follow each other, if one does."""
        if self.examples_dim != BY_SHAPE:
            return self._said_dim(shape)
        if along is not None:
            return along if along < len(shape) and self._fits(shape[along]) else None
        # (`torch.rand(1)` beside a micro-batch of one example is taken for shared.)
        follows = bool(shape) and shape[0] == self._count and (len(shape) > 1 or self._count > 1)
        return 0 if follows else None

    def _said_dim(self, shape: tuple[int, ...]) -> int | None:
        dim = self.examples_dim
        if dim is None:
            return None
        if not -len(shape) <= dim < len(shape) or not self._fits(shape[dim]):
            raise ValueError(
                f"purestep.random.examples(dim={dim}) says that the examples run over that dimension of each draw, got "
                f"one of shape {shape} beside {self._count or 'all'} examples: draw it outside, or under "
                "examples(dim=None)"
            )
        return dim % len(shape)

    def _fits(self, length: int) -> bool:
        return not self._count or length % self._count == 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.compiler.is_compiling():
            refuse_checkpointing()
        if func is Tensor.unflatten:
            # No draw: torch's own has a `super()` that Dynamo cannot trace under a mode.
            return torch.unflatten(*args, **kwargs)
        rule = RULES.get(func)
        if rule is None:
            name = getattr(func, "__name__", "")
            if name in METHODS and func is getattr(Tensor, name):
                rule = METHODS[name]
        if rule is not None:
            return rule(self, func, *args, **kwargs)
        if not self._watch:
            return func(*args, **kwargs)
        before = generator_states()
        result = func(*args, **kwargs)
        if put_back(before):
            raise refusal(func)
        return result


class Undrawn(Draws):
    """Refuse every draw: where a block runs twice and there is no key, the second run would draw anew."""

    def __init__(self) -> None:
        nothing = torch.empty(0)
        super().__init__(nothing, nothing)

    def draw(self, generate: Callable[..., Tensor], shape: Any, *, along: int | None = None, **kwargs: Any) -> Tensor:
        raise UnkeyedDrawError(
            "a rematerialised block draws outside a pure step, where there is no key to draw the same again when it "
            "runs again: call it inside one, or put the model into evaluation mode"
        )


def current_draws() -> Draws | None:
    """Return the innermost mode that draws here, or ``None`` outside a forward of a step."""
    mode: Draws | None = current_mode(Draws)
    return mode
