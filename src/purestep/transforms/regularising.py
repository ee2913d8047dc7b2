"""Transformations that add something to a gradient, or take its mean away."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from purestep import _checks, _each, random, updates
from purestep.transforms._choosing import Mask, chosen_in
from purestep.transforms._leaves import without_state
from purestep.transforms.clipping import check_axes
from purestep.transforms.kinds import Axes, unit_axes
from purestep.updates import GradientTransformation, Hyperparameter, UpdateContext


@updates.recorded
def add_decayed_weights(weight_decay: Hyperparameter, *, mask: Mask | None = None) -> GradientTransformation:
    r"""Add the parameters, scaled: :math:`g \leftarrow g + \lambda \theta`, the gradient of
    :math:`\tfrac{\lambda}{2} \lVert \theta \rVert^2`.

    Before a rule that scales gradients it is L2 regularisation; behind ``scale_by_adam`` it is decoupled decay.
    ``chain(add_decayed_weights(λ), sgd(rate))`` is ``sgd(rate, weight_decay=λ)``, bit for bit. Linear, so smooth; no
    state.

    Args:
        weight_decay: λ, a number of at least 0, a 0-d tensor, or a schedule.
        mask: which parameters decay: a shell pattern over their names, several, or a function
            ``(name, parameter) -> bool`` such as :func:`purestep.matrices_only`; ``None`` is all.

    Raises:
        TypeError, ValueError: ``weight_decay`` out of its range, ``mask`` that is none or chooses nothing.
    """
    updates.check_hyperparameter("weight_decay", weight_decay)
    choose = None if mask is None else chosen_in("mask", mask)

    def decayed(names: list[str], g: list[Tensor], p: list[Tensor], context: UpdateContext) -> list[Tensor]:
        decay = updates.now(weight_decay, context)
        chosen = names if choose is None else choose(names, p)
        where = [position for position, name in enumerate(names) if name in set(chosen)]
        some, theirs = [g[i] for i in where], [p[i] for i in where]
        after = list(g)
        each = _each.arithmetic(some, theirs, decay)
        for position, leaf in zip(where, each.add_scaled(some, theirs, decay), strict=True):
            after[position] = leaf
        return after

    return without_state("add_decayed_weights", decayed)


@updates.recorded
def add_noise(eta: Hyperparameter, *, gamma: float = 0.55, site: int = 0) -> GradientTransformation:
    r"""Add normal noise whose variance falls with the step.

    .. math:: g \leftarrow g + \sigma_t \, \varepsilon, \qquad \varepsilon \sim \mathcal{N}(0, 1), \qquad
        \sigma_t^2 = \frac{\eta}{(1 + t)^\gamma}

    Source: Neelakantan et al., "Adding gradient noise improves learning for very deep networks", 2015,
    https://arxiv.org/abs/1511.06807, with η in {0.01, 0.3, 1} and γ = 0.55. ``t`` is ``context.step``.

    The noise of a leaf is a function of ``context.key``, of the leaf's name and of ``site``: another partition of the
    parameters, or a parameter more, changes none of it, and a skipped step is followed by other noise. No state. Smooth
    in the gradient; by η not at 0, where the derivative taken is zero.

    Args:
        eta: η, a number of at least 0, a 0-d tensor, or a schedule.
        gamma: γ, at least 0; 0 for a variance of ``eta`` throughout.
        site: an int of at least 0; two of these in one optimizer add the same noise unless they have two sites.

    Raises:
        TypeError, ValueError: a hyperparameter out of its range.
    """
    updates.check_hyperparameter("eta", eta)
    _checks.number("gamma", gamma, minimum=0)
    _checks.integer("site", site, minimum=0)

    def noisy(names: list[str], g: list[Tensor], p: list[Tensor], context: UpdateContext) -> list[Tensor]:
        key = random.fold_in(context.key, site)
        age = updates.as_tensor(1.0, context.step) + context.step
        deviation = updates.plain(updates.safe_sqrt(updates.resolve(eta, context) / age**gamma))
        noise = [
            random.normal(random.fold_in(key, _number(name)), leaf.shape, dtype=leaf.dtype)
            for name, leaf in zip(names, g, strict=True)
        ]
        return _each.arithmetic(g, noise, deviation).add_scaled(g, noise, deviation)

    return without_state("add_noise", noisy)


@updates.recorded
def centralize(*, axes: Axes = unit_axes) -> GradientTransformation:
    r"""Take the mean of each unit's gradient away, where a unit has one: weights of two dimensions or more.

    .. math:: g_i \leftarrow g_i - \operatorname{mean}(g_i) \quad \text{for each unit } i

    Source: Yong et al., "Gradient centralization: a new optimization technique for deep neural networks", 2020,
    https://arxiv.org/abs/2004.01461. Linear, so smooth; no state. Optax's ``centralize`` takes the same axes.

    Args:
        axes: ``(name, parameter) -> dimensions that a mean runs over``, as for :func:`adaptive_clip`; it is asked for
            parameters of two dimensions or more.

    Raises:
        TypeError: ``axes`` is no function.
    """
    check_axes(axes)

    def centred(names: list[str], g: list[Tensor], p: list[Tensor], context: UpdateContext) -> list[Tensor]:
        return [
            grad - grad.mean(axes(name, parameter), keepdim=True) if grad.dim() > 1 else grad
            for name, grad, parameter in zip(names, g, p, strict=True)
        ]

    return without_state("centralize", centred)


@torch.compiler.assume_constant_result  # a compiler cannot look into a hash, and need not
def _number(name: str) -> int:
    """Return a number of 63 bits that belongs to a name, in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
