"""Optimizers that scale each parameter's step to the parameter's own norm, for large batches."""

from __future__ import annotations

from typing import Any

from purestep import _checks, updates
from purestep.optimizers._leafwise import After, DecayMask, Part, leafwise, zeros
from purestep.transforms._leaves import check_betas
from purestep.transforms.clipping import norm_over
from purestep.transforms.scaling import trust_ratio
from purestep.updates import Hyperparameter, Optimizer


@updates.recorded
def lamb(
    rate: Hyperparameter,
    *,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: Hyperparameter = 0.01,
    decay_mask: DecayMask = None,
    trust_mask: DecayMask = None,
    maximize: bool = False,
) -> Optimizer:
    """Adam with decoupled decay, each parameter's step as long as the parameter times the rate.

    With g the gradient, γ the rate, λ the decay and t the count of updates, from 1; norms are of one parameter, all of
    its entries::

        m ← m + (1 - β₁)(g - m)
        v ← β₂v + (1 - β₂)g²
        u = m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + eps) + λθ       the decay where decay_mask says so
        θ ← θ - γ ‖θ‖ / ‖u‖ · u                                 the ratio where trust_mask says so

    and the ratio is 1 where either norm is zero. Source: You et al., `Large batch optimization for deep learning
    <https://arxiv.org/abs/1904.00962>`_ (2020), algorithm 2 with φ the identity. torch has no counterpart; Optax's
    ``lamb`` is the same rule without decay by default.

    State: ``exp_avg`` (m) and ``exp_avg_sq`` (v), as the parameters: two numbers a parameter; ``count`` (int64, 0-d).
    Not smooth where v = 0 (the derivative of the root is taken as zero), and where a norm is zero, at which the ratio
    jumps to 1: the derivative is that of the ratio held at 1.

    Args:
        rate, weight_decay: each a number of at least 0, a 0-d tensor, or a schedule.
        betas: each a number in [0, 1), a 0-d tensor, or a schedule.
        decay_mask, trust_mask: ``(name, parameter) -> bool``, such as :func:`matrices_only`; ``None`` is all. It is
            usual to leave biases and norms out of both.
        eps, maximize: as in :func:`adamw`.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    check_betas(betas)
    _checks.number("eps", eps, minimum=0)
    _check_trust_mask(trust_mask)

    def advance(part: Part, h: Any) -> After:
        each, t = part.each, part.t
        m, v = part.mean("exp_avg", h.beta1), part.mean_square("exp_avg_sq", h.beta2)
        denominator = each.add_(each.sqrt_(each.div(v, 1 - h.beta2**t)), eps)
        u = each.quotient_(each.div(m, 1 - h.beta1**t), denominator)
        u = part.with_decay(u, h.weight_decay)
        p = []
        for leaf, step, trusts in zip(part.p, u, _trusting(trust_mask, part), strict=True):
            scale = h.rate * trust_ratio(norm_over(leaf), norm_over(step)) if trusts else h.rate
            p.append(updates.add_scaled(leaf, step, -scale))
        return After(p, {"exp_avg": m, "exp_avg_sq": v}, {})

    return leafwise(
        "lamb",
        advance,
        hyperparameters={"rate": rate, "beta1": betas[0], "beta2": betas[1]},
        trees=dict.fromkeys(("exp_avg", "exp_avg_sq"), zeros),
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        decay="own",
        maximize=maximize,
    )


@updates.recorded
def lars(
    rate: Hyperparameter,
    *,
    momentum: Hyperparameter = 0.9,
    trust_coefficient: Hyperparameter = 1e-3,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    trust_mask: DecayMask = None,
    maximize: bool = False,
) -> Optimizer:
    """Gradient descent with momentum, each parameter's gradient scaled to a share of the parameter's norm.

    With g the gradient, γ the rate, λ the decay, μ the momentum and η the trust coefficient; norms are of one
    parameter, all of its entries::

        l = η ‖θ‖ / (‖g‖ + λ‖θ‖)                where trust_mask says so, and 1 elsewhere
        b ← μb + γ l (g + λθ)                   λ where decay_mask says so, and 0 elsewhere
        θ ← θ - b

    and l is 1 where ‖θ‖ or the denominator is zero: a bias that begins at zero would never move. Source: You et al.,
    `Large batch training of convolutional networks <https://arxiv.org/abs/1708.03888>`_ (2017), algorithm 1, with the
    rate inside the velocity as there. torch has no counterpart; Optax's ``lars`` divides by ‖g + λθ‖ instead, and has
    Nesterov's momentum as an option.

    State: ``momentum_buffer`` (b), as the parameters: one number a parameter. Not smooth where ‖θ‖ or ‖g‖ is zero: the
    derivative of the norm is taken as zero there, and that of l where it jumps to 1 as well.

    Args:
        rate, momentum, trust_coefficient, weight_decay: each a number of at least 0, a 0-d tensor, or a schedule.
        decay_mask, trust_mask: as in :func:`lamb`.
        maximize: ascend instead.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    hyperparameters = {"rate": rate, "momentum": momentum, "trust_coefficient": trust_coefficient}
    for name, value in hyperparameters.items():
        updates.check_hyperparameter(name, value)
    _check_trust_mask(trust_mask)

    def advance(part: Part, h: Any) -> After:
        decays, trusts = part.decays, _trusting(trust_mask, part)
        g = part.with_decay(part.g, h.weight_decay)
        b = part.each.mul(part.kept["momentum_buffer"], h.momentum)
        for i, p in enumerate(part.p):
            scale = h.rate
            if trusts[i]:
                size, length = norm_over(p), norm_over(part.g[i])
                if decays[i]:
                    length = length + h.weight_decay * size
                scale = h.rate * trust_ratio(size, length, h.trust_coefficient)
            b[i] = updates.add_scaled(b[i], g[i], scale)
        return After(part.each.add_scaled(part.p, b, -1.0), {"momentum_buffer": b}, {})

    return leafwise(
        "lars",
        advance,
        hyperparameters=hyperparameters,
        trees={"momentum_buffer": zeros},
        counts=False,
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        decay="own",
        maximize=maximize,
    )


def _trusting(mask: DecayMask, part: Part) -> list[bool]:
    """Return, for each parameter, whether its step is scaled to its norm."""
    return [mask is None or bool(mask(name, leaf)) for name, leaf in zip(part.names, part.p, strict=True)]


def _check_trust_mask(mask: Any) -> None:
    if mask is not None and not callable(mask):
        raise TypeError(f"trust_mask must be a function (name, parameter) -> bool or None, got {mask!r}")
