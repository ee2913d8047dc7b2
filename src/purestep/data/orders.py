"""Orders: a sampler is a pure map from (epoch, position) to index.

An order holds no position, so nothing needs to be drawn, stored or replayed to know what stands at one: the state of
a run through the data is two integers, and neither workers nor ranks can change the order.

>>> order = shuffled(1_000_000_000_000, seed=0)
>>> order(3, 5)                          # the sixth example of the fourth epoch, without drawing the others
>>> order(3, torch.arange(128))          # the first 128 of them
"""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar, overload

import torch
from torch import Tensor

from purestep._checks import integer

LONGEST = 2**62
"""The longest order: beyond it the arithmetic of a shuffle would leave int64."""


class IndexOrder(ABC):
    """An immutable pure map ``(epoch, position) -> index`` with a length, vectorised over positions.

    ``len(order)`` is the number of positions of one epoch. Orders are equal when they give the same indices by
    construction (same kind, same arguments), and can be hashed and pickled. ``repr`` is the expression that makes one.

    An order of one's own is a frozen dataclass that derives from this class and gives ``__len__`` and ``_indices``;
    see ``docs/data.md``.
    """

    revision: ClassVar[int] = 1
    """Part of the fingerprint. A change of the indices that an order gives raises it, so old states are refused."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _indices(self, epoch: int, positions: Tensor) -> Tensor:
        """Return a new tensor of the indices at ``positions`` (int64, any shape, in range: it was checked)."""

    @property
    def bound(self) -> int:
        """Every index is below this number: what a source must hold at least."""
        return len(self)

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
        integer("epoch", epoch, minimum=0)
        if isinstance(positions, Tensor):
            if positions.dtype != torch.int64:
                raise TypeError(f"positions must be an int or an int64 tensor, got a tensor of {positions.dtype}")
            if positions.numel():
                low, high = torch.aminmax(positions)
                self._check_range(int(low), int(high))
            return self._indices(epoch, positions)
        if isinstance(positions, bool) or not isinstance(positions, int):
            kind = type(positions).__name__
            raise TypeError(f"positions must be an int or an int64 tensor, got {positions!r} of type {kind}")
        self._check_range(positions, positions)
        return int(self._indices(epoch, torch.tensor([positions])))

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that identify this order in any process, for a check at resume.

        They are a hash of ``repr(self)``: an order whose ``repr`` does not say everything overrides this.
        """
        if type(self).__repr__ is object.__repr__:
            raise TypeError(f"{type(self).__name__} needs a __repr__ that identifies it, or a fingerprint() of its own")
        return blake2b(f"{self!r} revision {self.revision}".encode(), digest_size=8).hexdigest()

    def _check_range(self, low: int, high: int) -> None:
        n = len(self)
        if low < 0 or high >= n:
            value = low if low < 0 else high
            right = f"from 0 to {n - 1}" if n else "none, for the order is empty"
            raise ValueError(f"positions must be {right}, got {value} in {self!r}")


def sequential(n: int) -> IndexOrder:
    """Return the order 0, 1, ..., n - 1 of every epoch (torch's ``SequentialSampler``).

    Raises:
        TypeError: ``n`` is not an int.
        ValueError: ``n`` is negative or above 2^62.
    """
    return _Sequential(_length(n))


def shuffled(n: int, seed: int) -> IndexOrder:
    """Return a new permutation of 0, ..., n - 1 for each epoch (torch's ``RandomSampler``), found in constant memory.

    Any position of any epoch costs the same, about 100 ns in blocks, at any ``n``. Distinct pairs (seed, epoch) give
    unrelated permutations: seed 0 at epoch 1 is not seed 1 at epoch 0.

    Up to 1024 the permutation sorts a keyed hash, which is uniform. Above, it is a Feistel network over mixed radices
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): with a = ⌈√n⌉, b = ⌈n/a⌉ and x = L·b + R,
    eight rounds in turn

        L ← (L + hash(R xor key)) mod a,    R ← (R + hash(L xor key)) mod b

    each of which can be undone, so that their composition is a permutation of 0, ..., a·b - 1; it is applied again
    while the result is n or more, which makes it one of 0, ..., n - 1. The keys are a cryptographic hash of (n, seed,
    epoch). The whole is for training, not for secrets.

    Raises:
        TypeError: ``n`` or ``seed`` is not an int.
        ValueError: either is negative, or ``n`` is above 2^62.
    """
    return _Shuffled(_length(n), integer("seed", seed, minimum=0))


@dataclass(frozen=True, repr=False)
class _Sequential(IndexOrder):
    n: int

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        return f"sequential({self.n})"

    def _indices(self, epoch: int, positions: Tensor) -> Tensor:
        return positions.clone()


@dataclass(frozen=True, repr=False)
class _Shuffled(IndexOrder):
    n: int
    seed: int

    # Over 4000 epochs at n = 1025, 4 rounds are 50 standard errors off in the serial correlation at lag b, 6 rounds 7
    # off in the differences at lag b; 8 cannot be told from randperm. Below about 1000 that takes ever more rounds,
    # while sorting costs nothing.
    rounds: ClassVar[int] = 8
    sorted_up_to: ClassVar[int] = 1024

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        return f"shuffled({self.n}, seed={self.seed})"

    def _indices(self, epoch: int, positions: Tensor) -> Tensor:
        keys = self._keys(epoch)
        if self.n <= self.sorted_up_to:
            everything = torch.arange(self.n, device=positions.device)
            # Two keys, since one of 32 bits would reach only 2^32 permutations. Neither hash ties.
            once = _hash(everything ^ keys[0]) & 0xFFFFFFFF
            return torch.argsort(_hash(once ^ keys[1]))[positions]
        indices = self._network(positions.reshape(-1), keys)
        outside = indices >= self.n
        while outside.any():  # seldom: less than 2/√n of the positions begin outside
            indices[outside] = self._network(indices[outside], keys)
            outside = indices >= self.n
        return indices.view(positions.shape)

    def _keys(self, epoch: int) -> tuple[int, ...]:
        """16 keys of 32 bits. n takes part, or the permutations of n and n + 1 would be nearly the same."""
        name = f"purestep shuffled {self.n} {self.seed} {epoch}"
        return struct.unpack("<16I", blake2b(name.encode(), digest_size=64).digest())

    def _network(self, x: Tensor, keys: tuple[int, ...]) -> Tensor:
        a = math.isqrt(self.n - 1) + 1
        b = -(-self.n // a)
        b += a & b & 1  # turning an odd circle is an even permutation: were both odd, no odd one would ever come out
        left = torch.div(x, b, rounding_mode="trunc")
        right = x - left * b
        for i in range(self.rounds):
            # The half that changes is always called left here: they trade places after each round. The low bits of a
            # hash are the weak ones.
            turned = _hash(right ^ keys[i]).bitwise_right_shift_(20).add_(left).remainder_(b if i % 2 else a)
            left, right = right, turned
        return left.mul_(b).add_(right)  # after an even number of rounds each half is at home again


def _hash(x: Tensor) -> Tensor:
    """Hash numbers of 32 bits to 63 bits, in place; distinct ones stay distinct, modulo 2^32 too.

    The multipliers are those of the best two-round function of C. Wellons' hash-prospector; both are below 2^31, so no
    product leaves int64. Its outer shifts are left out, since the inputs are keyed and the high bits are what is used.
    """
    x.mul_(0x21F0AAAD).bitwise_and_(0xFFFFFFFF)
    return x.bitwise_xor_(x >> 15).mul_(0x735A2D97)


def _length(n: int) -> int:
    if integer("n", n, minimum=0) > LONGEST:
        raise ValueError(f"n must be at most 2^62, got {n}")
    return n
