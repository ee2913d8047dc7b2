"""Initialising a module from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from purestep import random
from purestep.draws import Draws, unread_generators

M = TypeVar("M", bound=nn.Module)


def init_params(make: Callable[[], M], seed: int) -> M:
    """Return ``make()``, every random number in it drawn from ``seed``: the same module in every process, whatever ran
    before, and no global generator is read or advanced.

    With it a state is a pure function of its seeds::

        model = ps.init_params(lambda: Net(width=64), seed=0)
        state = ps.init_state(model, optimizer, seed=0)

    The draws are those of ``make`` in their order: a layer added at its end changes no value of those before it.

    Args:
        make: a module's class, or a function without arguments that builds a module.
        seed: an int from 0 to 2^64 - 1.

    Raises:
        TypeError: ``make`` is no function, or does not return a module.
        UnkeyedDrawError: it draws from Python's or NumPy's generator, or by an operation that purestep does not know.
    """
    if isinstance(make, nn.Module) or not callable(make):
        raise TypeError(
            f"make must be a module's class or a function that builds a module, got {make!r} of type "
            f"{type(make).__name__}"
        )
    key = random.key(seed)

    def build(watch: bool = False) -> M:
        with Draws(key, torch.zeros((), dtype=torch.int64), watch=watch):
            return make()

    with unread_generators(lambda: build(watch=True), thorough=True):
        model = build()
    if not isinstance(model, nn.Module):
        raise TypeError(f"make must return a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    return model
