"""What some orders hold: tensors as values, and the last epoch that took long to make."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

_WRITTEN_OUT = 64


class Table:
    """A tensor as a value: it is never written, equal to its equals, and can be hashed and pickled.

    It prints as the list of its numbers, or, beyond 64 of them, as their count and a hash.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.detach().cpu().contiguous()
        self._elsewhere: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def on(self, device: torch.device) -> Tensor:
        """Return the numbers on a device, where a copy is kept."""
        if device == self._numbers.device:
            return self._numbers
        if device not in self._elsewhere:
            self._elsewhere[device] = self._numbers.to(device)
        return self._elsewhere[device]

    @property
    def numbers(self) -> Tensor:
        """The numbers on the CPU."""
        return self._numbers

    @cached_property
    def _digest(self) -> str:
        return blake2b(self._numbers.numpy().tobytes(), digest_size=8).hexdigest()

    def __repr__(self) -> str:
        if len(self) <= _WRITTEN_OUT:
            return repr(self._numbers.tolist())
        return f"<{len(self)} numbers, {self._digest}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table) or self._numbers.dtype != other._numbers.dtype:
            return False
        return torch.equal(self._numbers, other._numbers)

    def __hash__(self) -> int:
        return hash((len(self), self._digest))

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (self._numbers,)


class Memory:
    """Keeps the last value that was made, for its key. It is no part of what holds it: all are equal, none travels."""

    def __init__(self) -> None:
        self._kept: tuple[Hashable, Any] | None = None

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the value for ``key``: the kept one, or a new one. Threads that meet here make it twice."""
        kept = self._kept
        if kept is None or kept[0] != key:
            kept = self._kept = (key, make())
        return kept[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return Memory, ()


def real_numbers(name: str, values: Any) -> Tensor:
    """Return a new float64 vector of the numbers in a tensor, an array or a sequence; raise if they are none."""
    vector = _vector(name, values, "real numbers")
    if vector.dtype == torch.bool or vector.is_complex():
        raise TypeError(f"{name} must be real numbers, got {vector.dtype}")
    return vector.to(torch.float64, copy=True)


def whole_numbers(name: str, values: Any) -> Tensor:
    """Return a new int64 vector of the integers in a tensor, an array or a sequence; raise if they are none."""
    vector = _vector(name, values, "integers")
    if vector.numel() and (vector.dtype == torch.bool or vector.is_floating_point() or vector.is_complex()):
        raise TypeError(f"{name} must be integers, got {vector.dtype}")
    return vector.to(torch.int64, copy=True)


def _vector(name: str, values: Any, what: str) -> Tensor:
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        values = list(values)
    try:
        vector = torch.as_tensor(values, dtype=_widest(values), device=None if isinstance(values, Tensor) else "cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be {what}, got {values!r:.60} of type {type(values).__name__}") from error
    if vector.dim() != 1:
        raise ValueError(f"{name} must have one dimension, got shape {tuple(vector.shape)}")
    return vector.cpu()


def _widest(values: Any) -> torch.dtype | None:
    """A list of Python floats is float64 here, whatever torch's default dtype."""
    return torch.float64 if isinstance(values, list) and any(isinstance(value, float) for value in values) else None
