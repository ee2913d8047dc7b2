"""The generators that code draws from without saying so: torch's on the CPU, Python's, and NumPy's."""

from __future__ import annotations

import random
import sys
from hashlib import blake2b
from typing import Any

import torch


def number_of(*parts: int) -> int:
    """Return 64 bits that are a cryptographic hash of some ints, to seed with."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def seed_globals(number: int) -> None:
    """Seed them all with 64 bits."""
    torch.default_generator.manual_seed(number)
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number & 0xFFFFFFFF)


class OwnGenerators:
    """Inside ``with``, the global generators are seeded with a number, and go on from there in the next ``with``.

    Outside they are as they were.
    """

    def __init__(self, number: int | None = None) -> None:
        """``number`` None: whoever enters seeds them."""
        self._number = number
        self._inside: Any = None
        self._outside: Any = None

    def __enter__(self) -> None:
        self._outside = _taken()
        if self._inside is not None:
            _put(self._inside)
        elif self._number is not None:
            seed_globals(self._number)

    def __exit__(self, *error: object) -> None:
        self._inside = _taken()
        _put(self._outside)


def _taken() -> tuple[Any, Any, Any]:
    numpy = sys.modules.get("numpy")
    theirs = None if numpy is None else numpy.random.get_state()
    return torch.default_generator.get_state(), random.getstate(), theirs


def _put(state: tuple[Any, Any, Any]) -> None:
    torch.default_generator.set_state(state[0])
    random.setstate(state[1])
    if state[2] is not None:
        sys.modules["numpy"].random.set_state(state[2])
