"""Rates of its own for each entry: Adagrad, Adadelta, RMSprop."""

from __future__ import annotations

from typing import Any

import torch

from purestep import _checks, updates
from purestep.optimizers._leafwise import After, DecayMask, Part, leafwise, zeros
from purestep.updates import Hyperparameter, Optimizer


@updates.recorded
def adagrad(
    rate: Hyperparameter,
    *,
    lr_decay: Hyperparameter = 0.0,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
) -> Optimizer:
    """Rates that fall with the gradients so far, bit for bit ``torch.optim.Adagrad(foreach=False)`` in eager mode on
    CPU.

    With g the gradient, γ the rate, δ the decay of the rate and t the count of updates, from 1::

        s ← s + g²
        θ ← θ - γ / (1 + (t - 1)δ) · g / (√s + eps)

    after g ← g + λθ. Source: Duchi et al., `Adaptive subgradient methods for online learning and stochastic
    optimization <https://jmlr.org/papers/v12/duchi11a.html>`_ (2011). Optax starts s at 0.1 and has its eps, 1e-7,
    inside the root.

    State: ``sum`` (s), as the parameters: one number a parameter; ``count`` (int64, 0-d). At s = 0 the derivative of
    the root is taken as zero. Smooth elsewhere.

    Args:
        rate, weight_decay: each a number of at least 0, a 0-d tensor, or a schedule.
        lr_decay: δ, likewise.
        decay_mask: ``(name, parameter) -> bool``, such as :func:`purestep.matrices_only`; ``None`` decays all.
        initial_accumulator_value: where s begins, at least 0.
        eps: at least 0.
        maximize: ascend instead.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    updates.check_hyperparameter("lr_decay", lr_decay)
    _checks.number("initial_accumulator_value", initial_accumulator_value, minimum=0)
    _checks.number("eps", eps, minimum=0)

    def advance(part: Part, h: Any) -> After:
        each = part.each
        total = each.addcmul(part.kept["sum"], part.g, part.g, 1.0)
        rate_now = h.rate / (1 + (part.t - 1) * h.lr_decay)
        return After(each.addcdiv(part.p, part.g, each.add_(each.sqrt(total), eps), -rate_now), {"sum": total}, {})

    return leafwise(
        "adagrad",
        advance,
        hyperparameters={"rate": rate, "lr_decay": lr_decay},
        trees={"sum": lambda parameter: torch.full_like(parameter, initial_accumulator_value)},
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        maximize=maximize,
    )


@updates.recorded
def adadelta(
    rate: Hyperparameter = 1.0,
    *,
    rho: Hyperparameter = 0.9,
    eps: float = 1e-6,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    maximize: bool = False,
) -> Optimizer:
    """Steps of the size of the steps so far, bit for bit ``torch.optim.Adadelta(foreach=False)`` in eager mode on CPU.

    With g the gradient and γ the rate::

        v ← ρv + (1 - ρ)g²
        d = √(u + eps) / √(v + eps) · g
        u ← ρu + (1 - ρ)d²
        θ ← θ - γd

    after g ← g + λθ. Source: Zeiler, `ADADELTA: an adaptive learning rate method <https://arxiv.org/abs/1212.5701>`_
    (2012), which has no rate (γ = 1).

    State: ``square_avg`` (v) and ``acc_delta`` (u), as the parameters: two numbers a parameter; ``count`` (int64, 0-d),
    which the formula does not need and torch has. Smooth everywhere with eps above 0.

    Args:
        rate, weight_decay: each a number of at least 0, a 0-d tensor, or a schedule.
        rho: a number in [0, 1], a 0-d tensor, or a schedule.
        eps: at least 0. With 0, an entry whose gradient is zero becomes NaN, as in torch.
        decay_mask, maximize: as in :func:`adagrad`.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    updates.check_hyperparameter("rho", rho, maximum=1)
    _checks.number("eps", eps, minimum=0)

    def advance(part: Part, h: Any) -> After:
        each = part.each
        v = part.mean_square("square_avg", h.rho)
        root = each.sqrt_(each.add(v, eps))
        delta = each.sqrt_(each.add(part.kept["acc_delta"], eps))
        delta = each.product_(each.quotient_(delta, root), part.g)
        u = each.addcmul_(each.mul(part.kept["acc_delta"], h.rho), delta, delta, 1 - h.rho)
        return After(each.add_scaled(part.p, delta, -h.rate), {"square_avg": v, "acc_delta": u}, {})

    return leafwise(
        "adadelta",
        advance,
        hyperparameters={"rate": rate, "rho": rho},
        trees=dict.fromkeys(("square_avg", "acc_delta"), zeros),
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        maximize=maximize,
    )


@updates.recorded
def rmsprop(
    rate: Hyperparameter,
    *,
    alpha: Hyperparameter = 0.99,
    eps: float = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    momentum: Hyperparameter = 0.0,
    centered: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """Steps over the root of a running mean square, bit for bit ``torch.optim.RMSprop(foreach=False)`` in eager mode on
    CPU.

    With g the gradient, γ the rate and μ the momentum::

        v ← αv + (1 - α)g²
        ḡ ← ḡ + (1 - α)(g - ḡ)                  with centered
        d = √(v - ḡ²) + eps with centered, √v + eps otherwise
        b ← μb + g / d                          with momentum
        θ ← θ - γb with momentum, θ - γg / d otherwise

    after g ← g + λθ. Source: Tieleman & Hinton, `lecture 6.5 of Neural networks for machine learning
    <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>`_ (2012); centered: Graves, `Generating
    sequences with recurrent neural networks <https://arxiv.org/abs/1308.0850>`_ (2013). Optax has its eps inside the
    root.

    State: ``square_avg`` (v), as the parameters: one number a parameter; ``grad_avg`` (ḡ) with centered and
    ``momentum_buffer`` (b) with momentum, one more each; ``count`` (int64, 0-d), which the formula does not need and
    torch has. At a root of zero its derivative is taken as zero. Smooth elsewhere. With centered, a gradient that
    stays the same lets v - ḡ² come to zero, and rounding may make it negative: NaN, as in torch.

    Args:
        rate, weight_decay, momentum: each a number of at least 0, a 0-d tensor, or a schedule. The number zero leaves
            its term out.
        alpha: a number in [0, 1], a 0-d tensor, or a schedule.
        eps: at least 0.
        decay_mask, maximize: as in :func:`adagrad`.
        centered: divide by the deviation.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    updates.check_flag("centered", centered)
    updates.check_hyperparameter("alpha", alpha, maximum=1)
    updates.check_hyperparameter("momentum", momentum)
    _checks.number("eps", eps, minimum=0)
    keeps_velocity = not updates.is_zero(momentum)

    def advance(part: Part, h: Any) -> After:
        each, g = part.each, part.g
        v = part.mean_square("square_avg", h.alpha)
        after = {"square_avg": v}
        if centered:
            mean = after["grad_avg"] = part.mean("grad_avg", h.alpha)
            root = each.sqrt_(each.addcmul(v, mean, mean, -1.0))
        else:
            root = each.sqrt(v)
        root = each.add_(root, eps)
        if not keeps_velocity:
            return After(each.addcdiv(part.p, g, root, -h.rate), after, {})
        velocity = each.addcdiv_(each.mul(part.kept["momentum_buffer"], h.momentum), g, root)
        return After(each.add_scaled(part.p, velocity, -h.rate), {**after, "momentum_buffer": velocity}, {})

    kept = ("square_avg", *(["grad_avg"] * centered), *(["momentum_buffer"] * keeps_velocity))
    return leafwise(
        "rmsprop",
        advance,
        hyperparameters={"rate": rate, "alpha": alpha, "momentum": momentum},
        trees=dict.fromkeys(kept, zeros),
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        maximize=maximize,
    )
