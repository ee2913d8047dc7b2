"""Adam that normalises by what it knew before the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purestep import _checks, updates
from purestep.optimizers._leafwise import After, DecayMask, Part, leafwise, zeros
from purestep.transforms._leaves import check_betas
from purestep.updates import Hyperparameter, Optimizer


@updates.recorded
def adopt(
    rate: Hyperparameter,
    *,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.9999),
    eps: float = 1e-6,
    clip_exponent: Hyperparameter | None = 0.25,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    maximize: bool = False,
) -> Optimizer:
    """Adam whose gradient is divided by the second moment of those before it, and averaged afterwards.

    With g the gradient, γ the rate, λ the decay and t the count of updates, from 0::

        θ ← θ(1 - γλ)                                       where decay_mask says so
        t = 0:   v ← g²                                     and nothing else
        t ≥ 1:   u = clip(g / max(√v, eps), -tᵠ, tᵠ)        φ is clip_exponent
                 m ← m + (1 - β₁)(u - m)
                 θ ← θ - γm
                 v ← β₂v + (1 - β₂)g²

    Source: Taniguchi et al., `ADOPT: modified Adam can converge with any β₂ with the optimal rate
    <https://arxiv.org/abs/2411.02853>`_ (2024), algorithms 1 (``clip_exponent=None``) and 2. The first update only
    looks. torch has no counterpart; in Optax's ``contrib.adopt`` the clipping is the same.

    State: ``exp_avg`` (m) and ``exp_avg_sq`` (v), as the parameters: two numbers a parameter; ``count`` (int64, 0-d).
    Not smooth where √v = eps and where the clip begins: the derivative there is that of √v and of the identity. At
    v = 0 it is zero.

    Args:
        rate, weight_decay: each a number of at least 0, a 0-d tensor, or a schedule.
        betas: each a number in [0, 1), a 0-d tensor, or a schedule.
        eps: above 0.
        clip_exponent: a number of at least 0, a 0-d tensor, or a schedule; ``None`` clips nothing.
        decay_mask, maximize: as in :func:`adamw`.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    check_betas(betas)
    _checks.number("eps", eps, above=0)
    if clip_exponent is not None:
        updates.check_hyperparameter("clip_exponent", clip_exponent)

    def advance(part: Part, h: Any) -> After:
        each, kept, g = part.each, part.kept, part.g
        first = part.t == 1
        if first is True:
            return After(part.p, {"exp_avg": kept["exp_avg"], "exp_avg_sq": each.product(g, g)}, {})
        u = each.quotient(g, [root.clamp(min=eps) for root in each.sqrt(kept["exp_avg_sq"])])
        if clip_exponent is not None:
            u = _clipped(u, (part.t - 1) ** h.clip_exponent)
        m = each.lerp(kept["exp_avg"], u, 1 - h.beta1)
        v = part.mean_square("exp_avg_sq", h.beta2)
        p = each.add_scaled(part.p, m, -h.rate)
        if isinstance(first, Tensor):  # it could not be read
            p, m = _where(first, part.p, p), _where(first, kept["exp_avg"], m)
            v = _where(first, each.product(g, g), v)
        return After(p, {"exp_avg": m, "exp_avg_sq": v}, {})

    return leafwise(
        "adopt",
        advance,
        hyperparameters={
            "rate": rate,
            "beta1": betas[0],
            "beta2": betas[1],
            **({} if clip_exponent is None else {"clip_exponent": clip_exponent}),
        },
        trees=dict.fromkeys(("exp_avg", "exp_avg_sq"), zeros),
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        decay="parameter",
        maximize=maximize,
    )


def _clipped(leaves: list[Tensor], bound: float | Tensor) -> list[Tensor]:
    if not isinstance(bound, Tensor):
        return [leaf.clamp(-bound, bound) for leaf in leaves]
    bounds = [bound.to(leaf.device, leaf.dtype) for leaf in leaves]
    return [leaf.clamp(-b, b) for leaf, b in zip(leaves, bounds, strict=True)]


def _where(condition: Tensor, these: list[Tensor], those: list[Tensor]) -> list[Tensor]:
    return [torch.where(condition, a, b) for a, b in zip(these, those, strict=True)]
