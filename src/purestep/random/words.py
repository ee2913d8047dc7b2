"""Streams of 32-bit words, and the uniform numbers they make."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from purestep import _checks
from purestep.random._philox import FOR_BITS, MASK, SITE_BITS, site_words
from purestep.random._stream import draw, traced
from purestep.random.keys import checked

# More bits than the significand has would round up to 1.
_SIGNIFICANDS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 32}


def bits(key: Tensor, shape: Sequence[int], *, start: int | Tensor = 0, site: int = 0) -> Tensor:
    """Return uniform 32-bit words, int64 in [0, 2^32), of ``shape``; all four words of each block are used.

    Args:
        key: shape ``(2,)``.
        shape: of the result.
        start: how many words of the key's stream to pass over, from 0 to 2^63 - 1: what
            ``bits(key, (start + n,))[start:]`` would be, without computing the first. An int, or an int64 0-d tensor
            where it is known only at run time.
        site: an int from 0 to 2^61 - 1: which of the key's streams. No two of them share a block.

    Raises:
        TypeError, ValueError: an argument is of another kind.
    """
    return stream(key, shape, start, site, 0)


def uniform(
    key: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    start: int | Tensor = 0,
    site: int = 0,
) -> Tensor:
    r"""Return uniform numbers in [0, 1) of ``shape``: as many random bits as the dtype holds exactly, at most 32.

    .. math:: u = \lfloor w / 2^{32 - b} \rfloor \, 2^{-b}, \qquad
        b = 8\ (\text{bfloat16}),\ 11\ (\text{float16}),\ 24\ (\text{float32}),\ 32\ (\text{float64})

    for the word :math:`w` of each entry. ``dtype``: torch's default if None. ``start`` and ``site`` are those of
    :func:`bits`.
    """
    dtype = float_dtype(dtype)
    return stream(key, shape, start, site, _SIGNIFICANDS[dtype]).to(dtype)


def at_least(key: Tensor, shape: Sequence[int], *, threshold: int, start: int | Tensor = 0, site: int = 0) -> Tensor:
    """Return ``bits(key, shape, start=start, site=site) >= threshold``, without the words: bool.

    ``threshold``: an int from 0 to 2^32. Each entry is true with probability 1 - threshold / 2^32.
    """
    if threshold > MASK:
        return torch.zeros(tuple(shape), dtype=torch.bool, device=key.device)
    return stream(key, shape, start, site, 0, threshold)


def stream(
    key: Tensor,
    shape: Sequence[int],
    start: int | Tensor,
    site: int,
    significand: int,
    threshold: int | None = None,
) -> Tensor:
    """Return a key's words (``significand`` 0), or uniform numbers of so many bits (float32 up to 24, else float64), or
    whether its words are at least a threshold."""
    checked(key)
    check_place(shape, start, site)
    count = math.prod(shape)
    if traced():
        offset, start = (start, 0) if isinstance(start, Tensor) else (None, start)
        made = torch.ops.purestep.philox(key, offset, start, count, site, FOR_BITS, significand, threshold)
    else:
        made = draw(key, start, count, site_words(site, FOR_BITS), significand, threshold)
    return made.reshape(tuple(shape))


def float_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype of a result, torch's default for None; raise if it is none of those that there are."""
    dtype = dtype or torch.get_default_dtype()
    if dtype not in _SIGNIFICANDS:
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}")
    return dtype


def check_place(shape: Sequence[int], start: int | Tensor, site: int) -> None:
    """Raise where one of them is none."""
    if isinstance(shape, int):
        raise TypeError(f"shape must be a sequence of ints such as ({shape},), got {shape}")
    _checks.integer("site", site, minimum=0)
    if site >= 1 << SITE_BITS:
        raise ValueError(f"site must be below 2**{SITE_BITS}, got {site}")
    if isinstance(start, Tensor):
        if start.dtype != torch.int64 or start.dim():
            raise ValueError(
                f"start must be an int or a 0-d int64 tensor, got {start.dtype} of shape {tuple(start.shape)}"
            )
    elif not isinstance(start, torch.SymInt):
        _checks.integer("start", start, minimum=0)
        if start >= 1 << 63:
            raise ValueError(f"start must be below 2**63, got {start}")
