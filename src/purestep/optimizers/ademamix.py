"""Adam with a second, slow average of the gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from purestep import _checks, updates
from purestep.optimizers._leafwise import After, DecayMask, Part, leafwise, zeros
from purestep.transforms._leaves import check_betas
from purestep.updates import Hyperparameter, Optimizer


@updates.recorded
def ademamix(
    rate: Hyperparameter,
    *,
    betas: tuple[Hyperparameter, Hyperparameter, Hyperparameter] = (0.9, 0.999, 0.9999),
    alpha: Hyperparameter = 5.0,
    warmup_steps: int | None = None,
    eps: float = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    maximize: bool = False,
) -> Optimizer:
    """AdamW with a fast and a slow average of the gradient.

    With g the gradient, γ the rate, λ the decay and t the count of updates, from 1::

        θ ← θ(1 - γλ)                           where decay_mask says so
        m₁ ← m₁ + (1 - β₁)(g - m₁)
        m₂ ← m₂ + (1 - β₃(t))(g - m₂)
        v ← β₂v + (1 - β₂)g²
        θ ← θ - γ (m₁ / (1 - β₁ᵗ) + α(t) m₂) / (√(v / (1 - β₂ᵗ)) + eps)

    With ``warmup_steps`` T and s = min(t / T, 1), α(t) = sα, and β₃(t) goes from β₁ to β₃ linearly in its half-life::

        1 / ln β₃(t) = (1 - s) / ln β₁ + s / ln β₃

    Source: Pagliardini et al., `The AdEMAMix optimizer: better, faster, older <https://arxiv.org/abs/2409.03137>`_
    (2024), algorithm 1; its warm-ups have one length here. torch has no counterpart. Optax's ``contrib.ademamix`` is
    the same rule without warm-ups of its own (α and β₃ may be schedules, as here) and with α = 6 by default.

    State: ``exp_avg_fast`` (m₁), ``exp_avg_slow`` (m₂) and ``exp_avg_sq`` (v), as the parameters: three numbers a
    parameter; ``count`` (int64, 0-d). At v = 0 the derivative of the root is taken as zero. Smooth elsewhere.

    Args:
        rate, alpha, weight_decay: each a number of at least 0, a 0-d tensor, or a schedule.
        betas: β₁, β₂ and β₃: each a number in [0, 1), a 0-d tensor, or a schedule; β₃ above 0.
        warmup_steps: T, at least 1; ``None`` begins with α and β₃ as they are. The paper takes the run's length.
        eps, decay_mask, maximize: as in :func:`adamw`.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    updates.check_hyperparameter("alpha", alpha)
    check_betas(betas, count=3)
    updates.check_hyperparameter("betas[2]", betas[2], minimum=None, above=0, below=1)
    if warmup_steps is not None:
        _checks.integer("warmup_steps", warmup_steps, minimum=1)
    _checks.number("eps", eps, minimum=0)

    def advance(part: Part, h: Any) -> After:
        each, t = part.each, part.t
        share, beta3 = h.alpha, h.beta3
        if warmup_steps is not None:
            s = t / warmup_steps
            s = torch.clamp(s, max=1.0) if isinstance(s, Tensor) else min(s, 1.0)
            share = s * h.alpha
            beta3 = _exp(1 / ((1 - s) * _inverse_log(h.beta1) + s * _inverse_log(h.beta3)))
        fast, slow = part.mean("exp_avg_fast", h.beta1), part.mean("exp_avg_slow", beta3)
        v = part.mean_square("exp_avg_sq", h.beta2)
        direction = each.add_scaled_(each.div(fast, 1 - h.beta1**t), slow, share)
        denominator = each.add_(each.sqrt_(each.div(v, 1 - h.beta2**t)), eps)
        p = each.addcdiv(part.p, direction, denominator, -h.rate)
        return After(p, {"exp_avg_fast": fast, "exp_avg_slow": slow, "exp_avg_sq": v}, {})

    return leafwise(
        "ademamix",
        advance,
        hyperparameters={"rate": rate, "beta1": betas[0], "beta2": betas[1], "beta3": betas[2], "alpha": alpha},
        trees=dict.fromkeys(("exp_avg_fast", "exp_avg_slow", "exp_avg_sq"), zeros),
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        decay="parameter",
        maximize=maximize,
    )


def _inverse_log(beta: float | Tensor) -> float | Tensor:
    """Return ``1 / ln β``, which is 0 at β = 0."""
    if isinstance(beta, Tensor):
        return 1 / torch.log(beta)
    return 1 / math.log(beta) if beta > 0 else 0.0


def _exp(exponent: float | Tensor) -> float | Tensor:
    return torch.exp(exponent) if isinstance(exponent, Tensor) else math.exp(exponent)
