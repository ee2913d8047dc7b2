"""The words of a stream and the uniform numbers they make, outside graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from purestep.random import _eager
from purestep.random._philox import MASK, philox


def traced() -> bool:
    """Whether operations are recorded here, or run on stand-ins without values: then the whole draw is to be one."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def result_dtype(significand: int, threshold: int | None = None) -> torch.dtype:
    """``significand``: of the uniform numbers in bits, or 0 for the words themselves. ``threshold``: of a mask."""
    if threshold is not None:
        return torch.bool
    return {0: torch.int64, 32: torch.float64}.get(significand, torch.float32)


def draw(
    key: Tensor,
    start: int | Tensor,
    count: int,
    place: tuple[int, int],
    significand: int,
    threshold: int | None = None,
) -> Tensor:
    """Return words from ``start`` on, ``place`` being c2 and c3; or uniform numbers of ``significand`` bits; or whether
    words are at least ``threshold``. Flat."""
    if _eager.available(key, start):
        return _in_place(key, int(start), count, place, significand, threshold)
    words = _written_out(key, start, count, place)
    if threshold is not None:
        return words >= threshold
    if not significand:
        return words
    wide = result_dtype(significand)
    kept = words >> (32 - significand) if significand < 32 else words
    return kept.to(wide) * 2.0**-significand


def _in_place(
    key: Tensor, start: int, count: int, place: tuple[int, int], significand: int, threshold: int | None = None
) -> Tensor:
    def use(words: Tensor, out: Tensor) -> None:
        if threshold is not None:
            # Unsigned words compare as signed ones do whose sign is changed.
            torch.ge(words.bitwise_xor_(-(1 << 31)), threshold - (1 << 31), out=out)
        elif significand in (0, 32):
            integers = out if not significand else torch.empty(len(words), dtype=torch.int64)
            integers.copy_(words).bitwise_and_(MASK)
            if significand:
                out.copy_(integers).mul_(2.0**-32)
        else:
            words.bitwise_right_shift_(32 - significand).bitwise_and_((1 << significand) - 1)
            out.copy_(words).mul_(2.0**-significand)

    dtype = result_dtype(significand, threshold)
    return _eager.fill(lambda: torch.empty(count, dtype=dtype, device="cpu"), key, start, count, place, use)


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
