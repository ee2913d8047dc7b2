"""Distributions over the reals, each a function of the words of a key.

Every entry takes a fixed number of words, so each distribution can be entered anywhere: ``start`` counts entries of the
result, and ``normal(key, (n,), start=s)`` is ``normal(key, (s + n,))[s:]``. The mathematics is in float64 (float32 on
MPS, which has no other), rounded to ``dtype`` at the end, and never infinite: a uniform number in the open interval is

.. math:: u = (w + 1/2) \\, 2^{-32}
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from purestep import _checks
from purestep.random import _eager
from purestep.random._philox import FOR_BITS, site_words
from purestep.random.words import bits, check_place, float_dtype, uniform


def bernoulli(
    key: Tensor, p: float | Tensor, shape: Sequence[int], *, start: int | Tensor = 0, site: int = 0
) -> Tensor:
    """Return a bool tensor of ``shape``, each entry true with probability ``p`` (to 2^-24).

    ``p``: a number from 0 to 1, or a tensor that broadcasts to ``shape`` (whose values are not checked). ``start`` and
    ``site`` are those of :func:`bits`. A bool has no derivative by ``p``.
    """
    if not isinstance(p, Tensor):
        _checks.number("p", p, minimum=0, maximum=1)
    return uniform(key, shape, dtype=torch.float32, start=start, site=site) < p


def normal(
    key: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    start: int | Tensor = 0,
    site: int = 0,
) -> Tensor:
    r"""Return standard normal numbers of ``shape``: two from two words, within 6.77 of 0.

    .. math:: z_{2j} = \sqrt{-2 \ln u_{2j}} \, \cos(2 \pi v), \qquad z_{2j+1} = \sqrt{-2 \ln u_{2j}} \, \sin(2 \pi v),
        \qquad v = w_{2j+1} \, 2^{-32}

    Source: Box and Muller, "A note on the generation of random normal deviates", 1958,
    https://doi.org/10.1214/aoms/1177706645. ``start`` and ``site`` are those of :func:`bits`.
    """
    dtype = float_dtype(dtype)
    check_place(shape, start, site)
    count = math.prod(shape)
    # A pair begins at an even entry; the one before the first and the one after the last may be cut.
    if _eager.available(key, start):
        start = int(start)
        pairs = (start % 2 + count + 1) // 2
        return _in_pieces(key, start - start % 2, pairs, site, dtype)[start % 2 :][:count].reshape(tuple(shape))
    pairs = count // 2 + 1 if isinstance(start, Tensor) else (start % 2 + count + 1) // 2
    words = bits(key, (pairs, 2), start=start - start % 2, site=site)
    flat = _box_muller(words.to(_wide(key))).to(dtype).reshape(-1)
    if isinstance(start, Tensor):
        return flat[torch.arange(count, device=key.device) + start % 2].reshape(tuple(shape))
    return flat[start % 2 :][:count].reshape(tuple(shape))


def _in_pieces(key: Tensor, start: int, pairs: int, site: int, dtype: torch.dtype) -> Tensor:
    """Return the normal numbers of so many pairs, flat, piece by piece: what is on the way stays in cache."""

    def use(words: Tensor, out: Tensor) -> None:
        # The unsigned words in float64: with the sign bit turned over they are less by 2^31, as signed ones.
        unsigned = words.bitwise_xor_(-(1 << 31)).to(torch.float64).add_(2.0**31)
        out.view(-1, 2).copy_(_box_muller(unsigned.view(-1, 2)))

    place = site_words(site, FOR_BITS)
    return _eager.fill(lambda: torch.empty(2 * pairs, dtype=dtype, device="cpu"), key, start, 2 * pairs, place, use)


def _box_muller(words: Tensor) -> Tensor:
    """Return the pairs that pairs of words make, ``(pairs, 2)`` in floating point."""
    radius = torch.sqrt(-2.0 * torch.log(_open(words[:, :1])))
    # The sine is the cosine a quarter turn later.
    angle = words[:, 1:] - torch.tensor([0.0, 2.0**30], dtype=words.dtype, device=words.device)
    return radius * torch.cos(angle * (2.0 * math.pi * 2.0**-32))


def exponential(
    key: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    start: int | Tensor = 0,
    site: int = 0,
) -> Tensor:
    r"""Return exponential numbers of mean 1, in (0, 23), of ``shape``.

    .. math:: x = -\ln u

    ``start`` and ``site`` are those of :func:`bits`.
    """
    dtype = float_dtype(dtype)
    return (-torch.log(_open(bits(key, shape, start=start, site=site)))).to(dtype)


def gumbel(
    key: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    start: int | Tensor = 0,
    site: int = 0,
) -> Tensor:
    r"""Return standard Gumbel numbers, in (-3.2, 22.9), of ``shape``.

    .. math:: g = -\ln(-\ln u)

    ``start`` and ``site`` are those of :func:`bits`.
    """
    dtype = float_dtype(dtype)
    return (-torch.log(-torch.log(_open(bits(key, shape, start=start, site=site))))).to(dtype)


def truncated_normal(
    key: Tensor,
    lower: float,
    upper: float,
    shape: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    start: int | Tensor = 0,
    site: int = 0,
) -> Tensor:
    r"""Return standard normal numbers of ``shape``, given that they lie between ``lower`` and ``upper``.

    .. math:: z = \Phi^{-1}\big(\Phi(\text{lower}) + u \, (\Phi(\text{upper}) - \Phi(\text{lower}))\big)

    with the interval's mirror image where it is above 0, since :math:`\Phi` is exact in the lower tail. The bounds are
    numbers, infinite ones included, that hold in float64, before the result is rounded to ``dtype``. ``start`` and
    ``site`` are those of :func:`bits`.

    Raises:
        ValueError: ``lower`` is not below ``upper``, or what lies between is less likely than float64 can say.
    """
    dtype = float_dtype(dtype)
    for name, bound in (("lower", lower), ("upper", upper)):
        if isinstance(bound, bool) or not isinstance(bound, (int, float)):
            raise TypeError(f"{name} must be a number, got {bound!r} of type {type(bound).__name__}")
    if not lower < upper:
        raise ValueError(f"lower must be below upper, got {lower!r} and {upper!r}")
    mirrored = lower > 0
    low, high = (-upper, -lower) if mirrored else (lower, upper)
    least, most = (math.erfc(-bound / math.sqrt(2.0)) / 2.0 for bound in (low, high))
    if not most - least > 1e-300:
        raise ValueError(f"lower and upper must have numbers between them that occur, got {lower!r} and {upper!r}")
    share = least + _open(bits(key, shape, start=start, site=site)) * (most - least)
    numbers = torch.special.ndtri(share).clamp(low, high)
    return (-numbers if mirrored else numbers).to(dtype)


def _open(words: Tensor) -> Tensor:
    """Uniform numbers of the open interval (0, 1) from words."""
    return (words.to(_wide(words)) + 0.5) * 2.0**-32


def _wide(like: Tensor) -> torch.dtype:
    return torch.float32 if like.device.type == "mps" else torch.float64
