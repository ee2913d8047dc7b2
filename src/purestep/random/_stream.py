"""The words of a stream and the uniform numbers they make, outside graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from purestep.random import _eager
from purestep.random._philox import MASK, philox


def result_dtype(significand: int) -> torch.dtype:
    """``significand``: of the uniform numbers in bits, or 0 for the words themselves."""
    return {0: torch.int64, 32: torch.float64}.get(significand, torch.float32)


def draw(key: Tensor, start: int | Tensor, count: int, place: tuple[int, int], significand: int) -> Tensor:
    """Return words from ``start`` on, ``place`` being c2 and c3, or uniform numbers of ``significand`` bits; flat."""
    if _eager.available(key, start):
        return _in_place(key, int(start), count, place, significand)
    words = _written_out(key, start, count, place)
    if not significand:
        return words
    wide = result_dtype(significand)
    kept = words >> (32 - significand) if significand < 32 else words
    return kept.to(wide) * 2.0**-significand


def _in_place(key: Tensor, start: int, count: int, place: tuple[int, int], significand: int) -> Tensor:
    wide = result_dtype(significand)

    def use(words: Tensor, out: Tensor) -> None:
        if significand in (0, 32):
            integers = out if not significand else torch.empty(len(words), dtype=torch.int64)
            integers.copy_(words).bitwise_and_(MASK)
            if significand:
                out.copy_(integers).mul_(2.0**-32)
        else:
            words.bitwise_right_shift_(32 - significand).bitwise_and_((1 << significand) - 1)
            out.copy_(words).mul_(2.0**-significand)

    return _eager.fill(lambda: torch.empty(count, dtype=wide, device="cpu"), key, start, count, place, use)


def _written_out(key: Tensor, start: int | Tensor, count: int, place: tuple[int, int]) -> Tensor:
    """In operations that can be traced, transformed, and run on any device."""
    # Wherever in its block it starts: one block more than the words need.
    blocks = torch.arange((count + 3) // 4 + 1, dtype=torch.int64, device=key.device) + start // 4
    words = torch.stack(philox(key[..., 0], key[..., 1], blocks & MASK, blocks >> 32, *place), dim=-1).reshape(-1)
    if not isinstance(start, Tensor):
        return words[start % 4 :][:count]
    return words[torch.arange(count, dtype=torch.int64, device=key.device) + start % 4]


def derive(key: Tensor, data: Tensor, place: tuple[int, int]) -> Tensor:
    """Return the keys that the blocks of these numbers make, of shape ``data.shape + (2,)``."""
    words = philox(key[..., 0], key[..., 1], data & MASK, (data >> 32) & MASK, *place)
    return torch.stack(words[:2], dim=-1)
