"""What is refused: draws from global generators, found where no rule knows them, and arguments that cannot be."""

from __future__ import annotations

import contextlib
import random as python_random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from purestep import _tree


class UnkeyedDrawError(RuntimeError):
    """A pure step met a random operation that would draw from a global generator."""


def refusal(func: Any) -> UnkeyedDrawError:
    """Return the error for a function that draws and that no rule knows."""
    return UnkeyedDrawError(
        f"{name_of(func)} would draw from a global generator inside a pure step, and purestep does not draw it: take a "
        "third argument `context` in the objective and draw with purestep.random from context.key, or switch the "
        "random part off"
    )


def refuse_generator(func: Any, generator: Any) -> None:
    """Raise where a draw is given a generator of its own, whose state no step has."""
    if generator is not None:
        raise UnkeyedDrawError(
            f"{name_of(func)} is given a generator inside a pure step, whose randomness is the state's key: leave it "
            "out"
        )


def expect(holds: Any, func: Any, argument: str, right: str, value: Any) -> None:
    """Raise where an argument of a draw is not what it must be, as torch does: ``holds`` is whether, or a tensor of it
    for each entry, which is read on the CPU alone."""
    if isinstance(holds, Tensor):
        holds = not (_tree.readable(holds) and holds.device.type == "cpu") or bool(holds.all())
    if not holds:
        raise ValueError(f"{argument} of {name_of(func)} must be {right}, got {value!r}")


def name_of(func: Any) -> str:
    """Return what a function is called in a message."""
    return getattr(func, "__name__", str(func))


def refuse_checkpointing() -> None:
    """Raise under ``torch.utils.checkpoint``: it runs a block again during the backward pass, when neither values nor
    draws are bound. Its gradient would be wrong, and nothing would say so."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is not None and "_checkpoint_hook" in getattr(hooks[0], "__qualname__", ""):
        raise RuntimeError(
            "torch.utils.checkpoint cannot be used inside a pure step, since it runs its block again after the "
            "module's values and random draws are unbound: switch it off, and give the step "
            'ps.remat(model, "layers.*") instead'
        )


def generator_states() -> list[tuple[torch.Generator, Tensor]]:
    """Return torch's global generators, those of accelerators in use among them, each with its state."""
    generators = [torch.default_generator]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        generators.extend(torch.cuda.default_generators)
    return [(generator, generator.get_state()) for generator in generators]


def put_back(states: list[tuple[torch.Generator, Tensor]]) -> bool:
    """Give the generators the states they had; return whether one had drawn."""
    drawn = [(generator, state) for generator, state in states if not torch.equal(state, generator.get_state())]
    for generator, state in drawn:
        generator.set_state(state)
    return bool(drawn)


@contextlib.contextmanager
def unread_generators(again: Callable[[], Any], *, thorough: bool) -> Iterator[None]:
    """Refuse what draws from a global generator within the block without being seen, and put the generator back.

    While Dynamo traces, nothing draws; while tensors are fake, only what is not torch does.

    Args:
        again: runs the block once more under a mode that watches, to name what draws.
        thorough: look at Python's and NumPy's generators too, which takes as long as a few small operations.
    """
    if torch.compiler.is_compiling():
        yield
        return
    before = [] if torch._C._len_torch_dispatch_stack() else generator_states()
    others = _others() if thorough else []
    states = [read() for _, read, _ in others]
    yield
    read_from = []
    for (name, read, write), state in zip(others, states, strict=True):
        if not _same(read(), state):
            write(state)
            read_from.append(name)
    if read_from:
        put_back(before)
        raise UnkeyedDrawError(
            f"a pure function draws from {' and '.join(read_from)}, which a compiled step would read once and for all: "
            "draw with torch, or with purestep.random from context.key, the third argument of the objective"
        )
    if put_back(before):
        try:
            again()
        finally:
            put_back(before)
        raise UnkeyedDrawError(
            "a pure function draws from a global generator outside any torch function: draw with purestep.random from "
            "context.key, the third argument of the objective"
        )


def _others() -> list[tuple[str, Callable[[], Any], Callable[[Any], Any]]]:
    others: list[Any] = [("Python's random", python_random.getstate, python_random.setstate)]
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        others.append(("numpy.random", numpy.random.get_state, numpy.random.set_state))
    return others


def _same(first: Any, second: Any) -> bool:
    """Whether two states are equal; NumPy's is a tuple that holds an array."""
    return all(bool((a == b).all()) if hasattr(a, "all") else a == b for a, b in zip(first, second, strict=True))
