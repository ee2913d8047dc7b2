"""The few pieces that formulas are made of, each with finite derivatives everywhere.

A hyperparameter arrives as a Python number or as a 0-d tensor, and each piece is written for both. A branch that is not
taken still has a derivative, and zero times infinity is NaN; so what could be infinite is replaced *before* it is
computed, and chosen between afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from purestep import _tree
from purestep.schedules._hyperparameters import Number


def or_one(value: Number) -> Number:
    """``value``, or 1 where it is 0: a divisor for a branch that is not taken at 0."""
    return value + (value == 0)


def progress(step: Tensor, length: Number) -> Tensor:
    """The part of a phase that is over: ``min(step / length, 1)``, and 1 where the phase has no length."""
    if isinstance(length, Tensor):
        return torch.where(length > 0, torch.clamp(step / or_one(length), max=1.0), 1.0)
    return torch.clamp(step / length, max=1.0) if length > 0 else torch.ones_like(step)


def between(start: Number, end: Number, fraction: Tensor) -> Tensor:
    """``start + (end - start) * fraction``, exactly ``start`` at 0 and exactly ``end`` at 1."""
    return torch.lerp(like(fraction, start), like(fraction, end), fraction)


def after_warmup(step: Tensor, steps: Number, start: Number, end: Number, after: Tensor) -> Tensor:
    """A straight line from ``start`` to ``end`` in ``steps`` steps, and ``after`` from there on.

    The line is finite everywhere, so it needs no steps held back where ``after`` is chosen.
    """
    return torch.where(step < steps, between(start, end, step / or_one(steps)), after)


def half_cosine(fraction: Tensor) -> Tensor:
    """``(1 + cos(pi * fraction)) / 2``: from 1 at 0 down to 0 at 1, flat at both ends."""
    return (1 + torch.cos(torch.pi * fraction)) / 2


def eased(fraction: Tensor, kind: str) -> Tensor:
    """``fraction`` itself if ``kind`` is ``"linear"``, or the rising half of a cosine if it is ``"cosine"``."""
    return fraction if kind == "linear" else (1 - torch.cos(torch.pi * fraction)) / 2


def raised(base: Tensor, exponent: Number) -> Tensor:
    """``base ** exponent`` for ``base >= 0``; where its slope at 0 is infinite, it is taken to be 0."""
    if not isinstance(exponent, Tensor) and exponent >= 1:
        return base if exponent == 1 else base**exponent
    if not isinstance(exponent, Tensor) and exponent > 0 and _is_plain(base):
        return base**exponent
    positive = base > 0
    return torch.where(positive, torch.where(positive, base, 1.0) ** exponent, 0.0)


def _is_plain(tensor: Tensor) -> bool:
    """Whether nobody differentiates by it, so that a slope does not matter."""
    return not (tensor.requires_grad or _tree.is_transformed() or forward_ad._current_level >= 0)


def periods(step: Tensor, length: Number) -> Tensor:
    """How many whole periods of ``length`` are over."""
    return torch.floor(step / length)


def passed(step: Tensor, boundaries: Sequence[Number]) -> Tensor:
    """How many of ``boundaries`` are reached."""
    count = torch.zeros_like(step)
    for boundary in boundaries:
        count = count + (step >= boundary)
    return count


def like(reference: Tensor, value: Number) -> Tensor:
    """``value`` as a 0-d tensor like ``reference``: a branch of ``torch.where`` should be no Python number."""
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=reference.dtype, device=reference.device)


def filled(step: Tensor, value: Number) -> Tensor:
    """``value`` in the shape of ``step``, and a function of it."""
    if not isinstance(value, Tensor) and not step.requires_grad:
        return torch.full_like(step, value)
    return torch.add(like(step, value), step, alpha=0.0)
