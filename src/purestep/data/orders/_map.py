"""What every order is: a checked pure map from (epoch, position) to index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from hashlib import blake2b
from typing import ClassVar, overload

import torch
from torch import Tensor

from purestep._checks import integer

LONGEST = 2**62
"""The longest order: beyond it the arithmetic of a shuffle would leave int64."""


class IndexMap(ABC):
    """The map itself, without the algebra that :class:`~purestep.data.IndexOrder` adds to it."""

    revision: ClassVar[int] = 1
    """Part of the fingerprint. A change of the indices that an order gives raises it, so old states are refused."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _indices(self, epoch: int, positions: Tensor) -> Tensor:
        """Return a new tensor of the indices at ``positions`` (int64, any shape, in range: it was checked)."""

    def _weights(self, epoch: int, positions: Tensor) -> Tensor:
        """Return the weights at ``positions``, as :meth:`weight` does."""
        return torch.ones(positions.shape, device=positions.device, dtype=torch.float32)

    def __bool__(self) -> bool:
        return True  # an empty order is an order

    @property
    def bound(self) -> int:
        """Every index is below this number: what a source must hold at least."""
        return len(self)

    @property
    def distinct(self) -> bool:
        """Whether no index stands at two positions of an epoch (those of weight zero aside)."""
        return True

    @property
    def padded(self) -> bool:
        """Whether there are positions of weight zero: on this rank, or on another one of the same shards."""
        return False

    @overload
    def __call__(self, epoch: int, positions: int) -> int: ...
    @overload
    def __call__(self, epoch: int, positions: Tensor) -> Tensor: ...
    def __call__(self, epoch: int, positions: int | Tensor) -> int | Tensor:
        """Return the indices of the examples at ``positions`` of ``epoch``.

        Args:
            epoch: from 0 on.
            positions: an int, or an int64 tensor of any shape on any device; each from 0 to ``len(order) - 1``.

        Returns:
            An int for an int; for a tensor, int64 indices of its shape on its device.

        Raises:
            TypeError: ``epoch`` is not an int, ``positions`` neither an int nor an int64 tensor.
            ValueError: ``epoch`` is negative, or a position is out of range.
        """
        check_place(self, epoch, positions)
        if isinstance(positions, Tensor):
            return self._indices(epoch, positions)
        return int(self._indices(epoch, torch.tensor([positions])))

    @overload
    def weight(self, epoch: int, positions: int) -> float: ...
    @overload
    def weight(self, epoch: int, positions: Tensor) -> Tensor: ...
    def weight(self, epoch: int, positions: int | Tensor) -> float | Tensor:
        """Return how much the examples at ``positions`` count: 1, or 0 where a shard or a batch was only filled up.

        ``ps.mean(values, weight=weight)`` leaves the latter out exactly. Where ``padded`` is False all are 1.

        Args, Raises: as for the indices.

        Returns:
            A float for an int; for a tensor, float32 of its shape on its device.
        """
        check_place(self, epoch, positions)
        if isinstance(positions, Tensor):
            return self._weights(epoch, positions)
        return float(self._weights(epoch, torch.tensor([positions])))

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that identify this order in any process, for a check at resume.

        They are a hash of ``repr(self)``: an order whose ``repr`` does not say everything overrides this.
        """
        if type(self).__repr__ is object.__repr__:
            raise TypeError(f"{type(self).__name__} needs a __repr__ that identifies it, or a fingerprint() of its own")
        return hashed(repr(self), self.revision)


def hashed(name: str, revision: int) -> str:
    """Return the fingerprint of what ``name`` and ``revision`` identify."""
    return blake2b(f"{name} revision {revision}".encode(), digest_size=8).hexdigest()


def check_place(order: IndexMap, epoch: int, positions: int | Tensor) -> None:
    """Raise unless ``epoch`` is one, and ``positions`` are positions of ``order``."""
    integer("epoch", epoch, minimum=0)
    if isinstance(positions, Tensor):
        if positions.dtype != torch.int64:
            raise TypeError(f"positions must be an int or an int64 tensor, got a tensor of {positions.dtype}")
        if positions.numel() == 0:
            return
        low, high = (int(end) for end in torch.aminmax(positions))
    elif isinstance(positions, bool) or not isinstance(positions, int):
        kind = type(positions).__name__
        raise TypeError(f"positions must be an int or an int64 tensor, got {positions!r} of type {kind}")
    else:
        low = high = positions
    n = len(order)
    if low < 0 or high >= n:
        value = low if low < 0 else high
        right = f"from 0 to {n - 1}" if n else "none, for the order is empty"
        raise ValueError(f"positions must be {right}, got {value} in {order!r}")


def wrapped(places: Tensor, n: int) -> Tensor:
    """Return places beyond the end, ``n``, counted from the start."""
    return torch.where(places < n, places, places % max(n, 1))


def checked_length(name: str, n: int) -> int:
    """Return ``n`` if it is a length that an order may have; raise otherwise."""
    if integer(name, n, minimum=0) > LONGEST:
        raise ValueError(f"{name} must be at most 2^62, got {n}")
    return n
