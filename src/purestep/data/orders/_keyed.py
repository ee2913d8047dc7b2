"""Keys for each (order, seed, epoch), and numbers drawn under them at any position."""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import TypeVar

from torch import Tensor

from purestep.random._philox import MASK, philox

Keys = tuple[int, ...]


def key_words(name: str, count: int = 16) -> Keys:
    """Return ``count`` (a multiple of 16) words of 32 bits: a cryptographic hash of ``name``.

    A name holds all that the keys depend on, as in ``"purestep shuffled 10 0 3"``, so no two of them meet.
    """
    blocks = [blake2b(name.encode(), digest_size=64, salt=bytes([i])).digest() for i in range(count // 16)]
    return struct.unpack(f"<{count}I", b"".join(blocks))


Number = TypeVar("Number", int, Tensor)


def draw(keys: Keys, positions: Number) -> Number:
    """Return a uniform integer of 62 bits for each position (int64, of their shape), or an int for one that is an int.

    Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) under the first two keys,
    with the position in its counter, so that a number can be had without those before it.
    """
    high, low, _, _ = philox(keys[0], keys[1], positions & MASK, positions >> 32, 0, 0)
    return (high << 30) | (low >> 2)


def below(draws: Number, n: int) -> Number:
    r"""Return :math:`\lfloor u\,n / 2^{62} \rfloor` for draws u of 62 bits: integers from 0 to n - 1, n up to 2^62.

    The chance of every set of them is within 2^-62 of its share. Halves of 31 bits keep the product within int64.
    """
    high, low = draws >> 31, draws & 0x7FFFFFFF
    n_high, n_low = n >> 31, n & 0x7FFFFFFF
    middle = high * n_low + low * n_high + (low * n_low >> 31)
    return high * n_high + (middle >> 31)
