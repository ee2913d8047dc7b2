"""Random numbers as functions of a key: counter-based Philox 4x32-10, in integer operations of torch.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The same key gives the same bits on any
device and in any mode (eager, compiled, vmapped), and no generator is read or advanced. A key is an int64 tensor of
shape ``(2,)`` that holds two unsigned 32-bit words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from purestep import _checks, _tree

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
# The fourth counter word tells what a block is for, so that streams for different uses never meet.
_FOR_BITS, _FOR_FOLD, _FOR_SPLIT, _FOR_SITE = 0, 1, 2, 3
# The call site of an optimizer's own draws; those of a forward count from 0.
UPDATE_SITE = _MASK


def key(seed: int, *, device: torch.device | str | None = None) -> Tensor:
    """Return the key of a seed: int64, shape ``(2,)``, its low and high 32-bit words.

    Raises:
        TypeError, ValueError: ``seed`` is not an int from 0 to 2^64 - 1.
    """
    _checks.integer("seed", seed, minimum=0)
    if seed >= 1 << 64:
        raise ValueError(f"seed must be below 2**64, got {seed}")
    return torch.tensor([seed & _MASK, seed >> 32], dtype=torch.int64, device=device)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """Return the key that belongs to ``(key, data)``; different data give unrelated keys.

    Args:
        key: shape ``(2,)``.
        data: an int from 0 to 2^63 - 1, or an int64 tensor of any shape ``s``.

    Returns:
        int64, shape ``s + (2,)``.
    """
    data = torch.as_tensor(data, dtype=torch.int64, device=key.device)
    return _derived(key, data, 0, _FOR_FOLD)


def split(key: Tensor, count: int = 2) -> Tensor:
    """Return ``count`` unrelated keys, int64 of shape ``(count, 2)``, unlike any that :func:`fold_in` gives."""
    _checks.integer("count", count, minimum=1)
    index = torch.arange(count, dtype=torch.int64, device=key.device)
    words = _philox(key[..., 0], key[..., 1], index, 0, 0, _FOR_SPLIT)
    return torch.stack(words[:2], dim=-1)


def site_key(key: Tensor, calls: Tensor, site: int) -> Tensor:
    """Return the key of one call site in one call of a step, unlike any that :func:`fold_in` or :func:`split` gives."""
    return _derived(key, calls, site, _FOR_SITE)


def _derived(key: Tensor, data: Tensor, third: int, purpose: int) -> Tensor:
    """Return the key of ``(key, data, third word, purpose)``."""
    if _tree.is_transformed() or type(data) is not Tensor or data.dim() or key.device.type != "cpu":
        third_word = torch.full_like(data, third)
        words = _philox(key[..., 0], key[..., 1], data & _MASK, (data >> 32) & _MASK, third_word, purpose)
        return torch.stack(words[:2], dim=-1)
    # One key, readable: Python's integers take a tenth of the time of that many small tensors.
    number, (k0, k1) = int(data.item()), key.tolist()
    words = _philox(k0, k1, number & _MASK, (number >> 32) & _MASK, third, purpose)
    return torch.tensor(words[:2], dtype=torch.int64)


def bits(key: Tensor, shape: Sequence[int], *, start: int | Tensor = 0) -> Tensor:
    """Return uniform 32-bit words, int64 in [0, 2^32), of ``shape``; all four words of each block are used.

    Args:
        key: shape ``(2,)``.
        shape: of the result.
        start: how many words of the key's stream to pass over: what ``bits(key, (start + n,))[start:]`` would be,
            without computing the first. An int, or an int64 0-d tensor where it is known only at run time.
    """
    count = math.prod(shape)
    if isinstance(start, Tensor):
        blocks = torch.arange((count + 3) // 4 + 1, dtype=torch.int64, device=key.device) + start // 4
        words = _philox(key[..., 0], key[..., 1], blocks & _MASK, blocks >> 32, 0, _FOR_BITS)
        places = torch.arange(count, dtype=torch.int64, device=key.device) + start % 4
        return torch.stack(words, dim=-1).reshape(-1)[places].reshape(tuple(shape))
    blocks = torch.arange(start // 4, (start + count + 3) // 4, dtype=torch.int64, device=key.device)
    words = _philox(key[..., 0], key[..., 1], blocks & _MASK, blocks >> 32, 0, _FOR_BITS)
    return torch.stack(words, dim=-1).reshape(-1)[start % 4 :][:count].reshape(tuple(shape))


def uniform(key: Tensor, shape: Sequence[int], *, dtype: torch.dtype | None = None, start: int | Tensor = 0) -> Tensor:
    """Return uniform numbers in [0, 1) of ``shape``: as many random bits as the dtype holds exactly, at most 32.

    ``start`` is that of :func:`bits`.
    """
    dtype = dtype or torch.get_default_dtype()
    words = bits(key, shape, start=start)
    if dtype == torch.float64:
        return words.to(torch.float64) * 2.0**-32
    # More bits than the significand has would round up to 1.
    significand = {torch.float16: 11, torch.bfloat16: 8}.get(dtype, 24)
    return ((words >> (32 - significand)).to(torch.float32) * 2.0**-significand).to(dtype)


def bernoulli(key: Tensor, p: float | Tensor, shape: Sequence[int]) -> Tensor:
    """Return a bool tensor of ``shape``, each entry true with probability ``p`` (to 2^-24)."""
    return uniform(key, shape, dtype=torch.float32) < p


def normal(key: Tensor, shape: Sequence[int], *, dtype: torch.dtype | None = None) -> Tensor:
    """Return standard normal numbers of ``shape`` by the Box-Muller transform of two uniform words each."""
    dtype = dtype or torch.get_default_dtype()
    pair = bits(key, (2, *shape)).to(torch.float64 if key.device.type != "mps" else torch.float32)
    radius = torch.sqrt(-2.0 * torch.log((pair[0] + 0.5) * 2.0**-32))
    return (radius * torch.cos(pair[1] * (2.0 * math.pi * 2.0**-32))).to(dtype)


def _philox(k0: Any, k1: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> tuple[Any, Any, Any, Any]:
    """Ten rounds of Philox 4x32 over the key words ``k`` and the counter words ``c``: ints or int64 tensors, each below
    2^32."""
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(constant: int, word: Any) -> tuple[Any, Any]:
    """High and low 32 bits of a 32 x 32 bit product, without overflowing int64.

    Both multipliers are at least 2^31, so ``constant - 2^32`` is a negative number above -2^31 and its product with a
    word fits; ``word * 2^32``, which it lacks, belongs to the high half alone.
    """
    product = word * (constant - (1 << 32))
    return (product >> 32) + word, product & _MASK
