"""Distributions over integers, each a function of the words of a key."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from purestep import _checks
from purestep.random._philox import MASK
from purestep.random.distributions import gumbel
from purestep.random.words import bits, check_place


def randint(
    key: Tensor, shape: Sequence[int], low: int, high: int, *, start: int | Tensor = 0, site: int = 0
) -> Tensor:
    r"""Return integers from ``low`` to ``high - 1``, int64 of ``shape``.

    .. math:: x = \text{low} + \Big\lfloor \frac{W r}{2^{b}} \Big\rfloor, \qquad r = \text{high} - \text{low}

    for an integer :math:`W` of :math:`b` random bits: 64 (two words an entry) where :math:`r \le 2^{32}`, else 128
    (four). No integer is more or less likely than another by more than a share of :math:`r / 2^b \le 2^{-32}`: some
    :math:`10^{18}` draws would be needed to see it.

    Source: Lemire, "Fast random integer generation in an interval", 2019, https://arxiv.org/abs/1805.10941, without
    the rejection, so that each entry takes a fixed number of words. ``start`` and ``site`` are those of :func:`bits`.

    Raises:
        ValueError: ``low`` is not below ``high``, either does not fit int64, or they are more than 2^63 apart.
    """
    for name, bound in (("low", low), ("high", high)):
        _checks.integer(name, bound)
    if not -(1 << 63) <= low < high <= 1 << 63:
        raise ValueError(f"low must be below high, and both from -2**63 to 2**63, got {low} and {high}")
    size = high - low
    if size > 1 << 63:
        raise ValueError(f"low and high must be at most 2**63 apart, got {low} and {high}")
    check_place(shape, start, site)
    each = 2 if size <= 1 << 32 else 4
    words = bits(key, (*shape, each), start=start * each, site=site)
    # Word by word from the lowest: t ← ⌊(t + w r) / 2^32⌋, which stays below r, with w r in two halves.
    upper, lower = size >> 32, size & MASK
    total = torch.zeros_like(words[..., 0])
    for place in reversed(range(each)):
        word = words[..., place]
        product = word * lower  # wraps at 2^64, and has the right bits
        carried = (product & MASK) + (total & MASK)
        total = (total >> 32) + word * upper + ((product >> 32) & MASK) + (carried >> 32)
    return total + low if low else total


def permutation(key: Tensor, n: int, *, site: int = 0) -> Tensor:
    """Return a random permutation of 0, ..., ``n`` - 1, int64 of shape ``(n,)``: the order of ``n`` 63-bit numbers.

    Two of them are equal with a probability below n² 2^-64; they stay in their order then. For an order of more
    than fits into memory, or one that is entered anywhere, see :func:`purestep.data.shuffled`.
    """
    _checks.integer("n", n, minimum=0)
    words = bits(key, (n, 2), site=site)
    return torch.argsort(words[:, 0] << 31 | words[:, 1] >> 1, stable=True)


def categorical(
    key: Tensor, logits: Tensor, *, shape: Sequence[int] = (), start: int | Tensor = 0, site: int = 0
) -> Tensor:
    r"""Return indices of categories, each with the probability that ``softmax(logits)`` along the last dimension gives.

    .. math:: \arg\max_i \, (\text{logits}_i + g_i)

    for independent standard Gumbel numbers :math:`g`; source: Gumbel, "Statistical theory of extreme values and some
    practical applications", 1954. A logit of minus infinity is never chosen beside a finite one.

    Args:
        key: shape ``(2,)``.
        logits: floating, shape ``(*batch, categories)``.
        shape: how many draws for each row of the batch.
        start: draws of the result to pass over, each of ``categories`` words; see :func:`bits`.
        site: that of :func:`bits`.

    Returns:
        int64, shape ``(*shape, *batch)``. It has no derivative.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"logits must be a floating tensor, got {getattr(logits, 'dtype', type(logits).__name__)}")
    if not logits.dim() or not logits.shape[-1]:
        raise ValueError(f"logits must have a last dimension of at least one category, got {tuple(logits.shape)}")
    check_place(shape, start, site)
    noise = gumbel(key, (*shape, *logits.shape), dtype=torch.float64, start=start * logits.shape[-1], site=site)
    return torch.argmax(logits.detach().to(torch.float64) + noise, dim=-1)
