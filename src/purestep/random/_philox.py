"""Philox 4x32-10 in integer operations of torch, or of Python.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
https://doi.org/10.1145/2063384.2063405. A block is four 32-bit words, a bijection (for each key) of a counter of four
words. What each word of the counter is for:

- c0, c1: the low and high 32 bits of the block's number, or of what a key is derived for;
- c2: the low 32 bits of the call site;
- c3: the other 29 bits of the call site, times 8, plus the purpose. Blocks of different purposes never meet.
"""

from __future__ import annotations

from typing import Any

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

FOR_BITS, FOR_FOLD, FOR_SPLIT, FOR_CALL = range(4)
SITE_BITS = 61


def site_words(site: int, purpose: int) -> tuple[int, int]:
    """Return the last two words of the counter."""
    return site & MASK, (site >> 32) << 3 | purpose


def philox(k0: Any, k1: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> tuple[Any, Any, Any, Any]:
    """Ten rounds over the key words ``k`` and the counter words ``c``: ints or int64 tensors, each below 2^32."""
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def _multiply(constant: int, word: Any) -> tuple[Any, Any]:
    """High and low 32 bits of a 32 x 32 bit product, without overflowing int64.

    Both multipliers are at least 2^31, so ``constant - 2^32`` is a negative number above -2^31 and its product with a
    word fits; ``word * 2^32``, which it lacks, belongs to the high half alone.
    """
    product = word * (constant - (1 << 32))
    return (product >> 32) + word, product & MASK
