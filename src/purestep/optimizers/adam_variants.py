"""Adam's relatives in torch: Adamax, NAdam, RAdam."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purestep import _checks, _each, updates
from purestep.optimizers._leafwise import After, DecayMask, Part, leafwise, rounded_product, zeros
from purestep.transforms._leaves import check_betas
from purestep.updates import Hyperparameter, Optimizer

_MOMENTS = dict.fromkeys(("exp_avg", "exp_avg_sq"), zeros)


@updates.recorded
def adamax(
    rate: Hyperparameter,
    *,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    maximize: bool = False,
) -> Optimizer:
    """Adam by the infinity norm, bit for bit ``torch.optim.Adamax(foreach=False)`` in eager mode on CPU.

    With g the gradient, γ the rate, λ the decay and t the count of updates, from 1::

        g ← g + λθ
        m ← m + (1 - β₁)(g - m)
        u ← max(β₂u, |g| + eps)
        θ ← θ - γ / (1 - β₁ᵗ) · m / u

    Source: Kingma & Ba, `Adam: a method for stochastic optimization <https://arxiv.org/abs/1412.6980>`_, section 7.1.
    eps is inside the maximum as in torch; the paper has none, and Optax's is there too.

    State: ``exp_avg`` (m) and ``exp_inf`` (u), as the parameters: two numbers a parameter; ``count`` (int64, 0-d).
    Not smooth where g = 0 (the derivative of |g| is taken as 0 there) and where the maximum ties (half for each side).

    Args:
        rate, betas, eps, weight_decay, decay_mask, maximize: as in :func:`adamw`, without decay by default, and with
            the decay in the gradient. With ``eps=0`` an entry whose gradient has always been zero becomes NaN, as in
            torch.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    check_betas(betas)
    _checks.number("eps", eps, minimum=0)

    def advance(part: Part, h: Any) -> After:
        each, m = part.each, part.mean("exp_avg", h.beta1)
        u = each.maximum(each.mul(part.kept["exp_inf"], h.beta2), each.add_(each.abs(part.g), eps))
        step_size = h.rate / (1 - h.beta1**part.t)
        return After(each.addcdiv(part.p, m, u, -step_size), {"exp_avg": m, "exp_inf": u}, {})

    return leafwise(
        "adamax",
        advance,
        hyperparameters={"rate": rate, "beta1": betas[0], "beta2": betas[1]},
        trees=dict.fromkeys(("exp_avg", "exp_inf"), zeros),
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        maximize=maximize,
    )


@updates.recorded
def nadam(
    rate: Hyperparameter,
    *,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    momentum_decay: Hyperparameter = 4e-3,
    decoupled: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """Adam with Nesterov's momentum, bit for bit ``torch.optim.NAdam(foreach=False)`` in eager mode on CPU.

    With g the gradient, γ the rate, ψ the momentum decay and t the count of updates, from 1::

        μₜ = β₁(1 - 0.96^(tψ) / 2)              and likewise μₜ₊₁
        Π ← Π · μₜ
        m ← m + (1 - β₁)(g - m)
        v ← β₂v + (1 - β₂)g²
        d = √(v / (1 - β₂ᵗ)) + eps
        θ ← θ - γ(1 - μₜ) / (1 - Π) · g / d - γμₜ₊₁ / (1 - Πμₜ₊₁) · m / d

    after g ← g + λθ, or with ``decoupled`` θ ← θ(1 - γλ). Source: Dozat, `Incorporating Nesterov momentum into Adam
    <https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ>`_ (2016). Optax's ``nadam`` is another rule, without Π.
    torch's own foreach path rounds otherwise than its loop: about one entry in five differs in its last bit.

    State: ``exp_avg`` (m) and ``exp_avg_sq`` (v), as the parameters: two numbers a parameter; ``count`` (int64, 0-d)
    and ``mu_product`` (Π, 0-d) in torch's default dtype, as there. In float32 the rounding of Π is passed over by
    derivatives. At v = 0 the derivative of the root is taken as zero. Smooth elsewhere.

    Args:
        rate, betas, eps, weight_decay, decay_mask, maximize: as in :func:`adamw`, without decay by default.
        momentum_decay: ψ, a number of at least 0, a 0-d tensor, or a schedule.
        decoupled: torch's ``decoupled_weight_decay``.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    updates.check_flag("decoupled", decoupled)
    check_betas(betas)
    _checks.number("eps", eps, minimum=0)
    updates.check_hyperparameter("momentum_decay", momentum_decay)

    def advance(part: Part, h: Any) -> After:
        each, t = part.each, part.t
        mu, following = (h.beta1 * (1.0 - 0.5 * (0.96 ** (s * h.momentum_decay))) for s in (t, t + 1))
        kept = rounded_product(part.scalars["mu_product"], mu)
        product = _each.number(kept)
        m, v = part.mean("exp_avg", h.beta1), part.mean_square("exp_avg_sq", h.beta2)
        denominator = each.add_(each.sqrt_(each.div(v, 1 - h.beta2**t)), eps)
        p = each.addcdiv(part.p, part.g, denominator, -h.rate * (1.0 - mu) / (1.0 - product))
        p = each.addcdiv_(p, m, denominator, (-h.rate * following) / (1.0 - product * following))
        return After(p, {"exp_avg": m, "exp_avg_sq": v}, {"mu_product": kept})

    return leafwise(
        "nadam",
        advance,
        hyperparameters={"rate": rate, "beta1": betas[0], "beta2": betas[1], "momentum_decay": momentum_decay},
        trees=_MOMENTS,
        scalars={"mu_product": 1.0},
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        decay="parameter" if decoupled else "gradient",
        maximize=maximize,
    )


@updates.recorded
def radam(
    rate: Hyperparameter,
    *,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    decoupled: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """Adam whose step waits for its variance, bit for bit ``torch.optim.RAdam(foreach=False)`` in eager mode on CPU.

    With g the gradient, γ the rate and t the count of updates, from 1::

        m ← m + (1 - β₁)(g - m)
        v ← β₂v + (1 - β₂)g²
        ρ∞ = 2 / (1 - β₂) - 1
        ρ = ρ∞ - 2tβ₂ᵗ / (1 - β₂ᵗ)
        r = √((ρ - 4)(ρ - 2)ρ∞ / ((ρ∞ - 4)(ρ∞ - 2)ρ))
        θ ← θ - γ m / (1 - β₁ᵗ) · √(1 - β₂ᵗ) / (√v + eps) · r       where ρ > 5
        θ ← θ - γ m / (1 - β₁ᵗ)                                      elsewhere

    after g ← g + λθ, or with ``decoupled`` θ ← θ(1 - γλ). Source: Liu et al., `On the variance of the adaptive learning
    rate and beyond <https://arxiv.org/abs/1908.03265>`_ (2020), with the threshold of torch (Optax takes ρ ≥ 5) and
    eps added before the correction, as there. torch's own foreach path rounds otherwise than its loop.

    State: ``exp_avg`` (m) and ``exp_avg_sq`` (v), as the parameters: two numbers a parameter; ``count`` (int64, 0-d).
    At v = 0 the derivative of the root is taken as zero. Not continuous in β₂ where ρ = 5.

    Args:
        rate, betas, eps, weight_decay, decay_mask, maximize: as in :func:`adamw`, without decay by default.
        decoupled: torch's ``decoupled_weight_decay``.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    updates.check_flag("decoupled", decoupled)
    check_betas(betas)
    _checks.number("eps", eps, minimum=0)

    def advance(part: Part, h: Any) -> After:
        each, t = part.each, part.t
        m, v = part.mean("exp_avg", h.beta1), part.mean_square("exp_avg_sq", h.beta2)
        correction = 1 - h.beta2**t
        longest = 2 / (1 - h.beta2) - 1
        length = longest - 2 * t * (h.beta2**t) / correction
        moved = each.mul_(each.div(m, 1 - h.beta1**t), h.rate)
        if isinstance(length, Tensor):
            moved = _rectified_where(length > 5.0, moved, v, correction, longest, length)
        elif length > 5.0:
            adaptive = each.mul_(each.reciprocal_(each.add_(each.sqrt(v), eps)), correction**0.5)
            moved = each.mul_(each.product_(moved, adaptive), _rectification(longest, length))
        return After(each.add_scaled(part.p, moved, -1.0), {"exp_avg": m, "exp_avg_sq": v}, {})

    def _rectified_where(
        long: Tensor, moved: list[Tensor], v: list[Tensor], correction: Any, longest: Any, length: Tensor
    ) -> list[Tensor]:
        """The same where the length of the average cannot be read. What is not chosen has a finite derivative too."""
        some = torch.full_like(length, 6.0)
        factor = _rectification(torch.where(long, longest, some), torch.where(long, length, some))
        results = []
        for direction, square in zip(moved, v, strict=True):
            root = torch.where(long, updates.safe_sqrt(square) + eps, torch.ones_like(square))
            adaptive = (root.reciprocal() * correction**0.5).to(root.dtype)
            results.append(torch.where(long, (direction * adaptive * factor).to(direction.dtype), direction))
        return results

    return leafwise(
        "radam",
        advance,
        hyperparameters={"rate": rate, "beta1": betas[0], "beta2": betas[1]},
        trees=_MOMENTS,
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        decay="parameter" if decoupled else "gradient",
        maximize=maximize,
    )


def _rectification(longest: Any, length: Any) -> Any:
    return ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)) ** 0.5
