"""Transformations that scale a gradient, each leaf by a number or by its own norm, or take its sign."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purestep import _checks, _each, updates
from purestep.transforms._leaves import without_state
from purestep.transforms.clipping import norm_over, norms
from purestep.updates import GradientTransformation, Hyperparameter, UpdateContext


@updates.recorded
def scale(factor: Hyperparameter) -> GradientTransformation:
    r"""Multiply the gradient: :math:`g \leftarrow c \, g`. Linear, so smooth everywhere; no state.

    Args:
        factor: c, a number of either sign, a 0-d tensor, or a schedule.

    Raises:
        TypeError, ValueError: ``factor`` is none of these, or not finite.
    """
    updates.check_hyperparameter("factor", factor, minimum=None)

    def scaled(names: list[str], g: list[Tensor], p: list[Tensor], context: UpdateContext) -> list[Tensor]:
        c = updates.now(factor, context)
        return _each.arithmetic(g, c).mul(g, c)

    return without_state("scale", scaled)


@updates.recorded
def scale_by_schedule(schedule: Callable[[Any], Tensor]) -> GradientTransformation:
    r"""Multiply the gradient by a schedule of the step: :math:`g \leftarrow s(t) \, g`.

    ``t`` is ``context.step``, the updates applied so far, as for a schedule given as a rate. No state.

    Raises:
        TypeError: ``schedule`` is no function of the step.
    """
    if not callable(schedule):
        raise TypeError(f"schedule must be a function of the step, got {schedule!r}: for a number there is scale")
    return scale(schedule)


@updates.recorded
def scale_by_sign() -> GradientTransformation:
    r"""Take the sign of each entry, 0 at 0: :math:`g \leftarrow \operatorname{sign}(g)`.

    Source: Bernstein et al., "signSGD: compressed optimisation for non-convex problems", 2018,
    https://arxiv.org/abs/1802.04434. Not smooth at 0; its derivative is zero there as elsewhere. No state.
    """
    return without_state("scale_by_sign", lambda names, g, p, context: [torch.sign(leaf) for leaf in g])


@updates.recorded
def normalize(*, per_leaf: bool = False, eps: float = 0.0) -> GradientTransformation:
    r"""Divide the gradient by its norm, over all leaves or of each leaf.

    .. math:: g \leftarrow \frac{g}{\lVert g \rVert + \text{eps}}

    A gradient of norm zero stays as it is. Not smooth there; the derivative taken is the identity's (over ``eps``,
    where that is not zero). No state. Optax has it as ``normalize_by_update_norm``, with ``eps=1e-6``.

    Args:
        per_leaf: the norm of each leaf, instead of one over all of them.
        eps: at least 0.

    Raises:
        TypeError, ValueError: ``per_leaf`` is no bool, ``eps`` below 0.
    """
    updates.check_flag("per_leaf", per_leaf)
    _checks.number("eps", eps, minimum=0)

    def normalized(names: list[str], g: list[Tensor], p: list[Tensor], context: UpdateContext) -> list[Tensor]:
        pairs = zip(g, norms(g, per_leaf=per_leaf), strict=True)
        return [(leaf / _or_one(norm + eps)).to(leaf.dtype) for leaf, norm in pairs]

    return without_state("normalize", normalized)


@updates.recorded
def scale_by_trust_ratio(*, coefficient: Hyperparameter = 1.0, eps: float = 0.0) -> GradientTransformation:
    r"""Scale the update of each leaf to the size of its parameter, as LARS and LAMB do.

    .. math:: g \leftarrow \eta \, \frac{\lVert \theta \rVert}{\lVert g \rVert + \text{eps}} \, g
        \quad \text{where neither norm is zero, and } g \text{ as it is elsewhere}; \qquad \eta = \text{coefficient}

    Source: You et al., "Large batch training of convolutional networks", 2017, https://arxiv.org/abs/1708.03888; "Large
    batch optimization for deep learning", 2019, https://arxiv.org/abs/1904.00962. Where a norm is zero it jumps, and
    the derivative taken there is the identity's. No state. Equal to Optax's with ``min_norm=0``.

    Args:
        coefficient: η, a number above 0, a 0-d tensor, or a schedule.
        eps: at least 0.

    Raises:
        TypeError, ValueError: ``coefficient`` that is not above 0, ``eps`` below 0.
    """
    updates.check_hyperparameter("coefficient", coefficient, minimum=None, above=0)
    _checks.number("eps", eps, minimum=0)

    def scaled(names: list[str], g: list[Tensor], p: list[Tensor], context: UpdateContext) -> list[Tensor]:
        eta, after = updates.now(coefficient, context), []
        for grad, parameter in zip(g, p, strict=True):
            ratio = trust_ratio(norm_over(parameter), norm_over(grad), eta, eps=eps)
            after.append((grad * ratio).to(grad.dtype))
        return after

    return without_state("scale_by_trust_ratio", scaled)


def trust_ratio(size: Tensor, norm: Tensor, factor: float | Tensor = 1.0, *, eps: float = 0.0) -> Tensor:
    """Return ``factor · size / (norm + eps)``, and 1 where either of the two is zero."""
    both = (size > 0) & (norm > 0)
    # The inner `where` keeps the derivative of what is not chosen finite.
    return torch.where(both, factor * size / torch.where(both, norm + eps, torch.ones_like(norm)), 1.0)


def _or_one(norm: Tensor) -> Tensor:
    """Return the norm, or 1 where it is zero."""
    return torch.where(norm > 0, norm, torch.ones_like(norm))
