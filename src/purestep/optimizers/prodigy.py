"""Adam that finds its rate: an estimate of the distance to a solution that only grows."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from purestep import _checks, _each, updates
from purestep.optimizers._leafwise import After, DecayMask, Part, leafwise, rate_used, zeros
from purestep.transforms._leaves import check_betas
from purestep.updates import Hyperparameter, Optimizer, Tree, UpdateContext


@updates.recorded
def prodigy(
    rate: Hyperparameter = 1.0,
    *,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: float = 1e-8,
    initial_distance: float = 1e-6,
    distance_factor: Hyperparameter = 1.0,
    bias_correction: bool = False,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    maximize: bool = False,
) -> Optimizer:
    """Adam whose rate is γd, with d an estimate of the distance from the first parameters θ₀ to a solution.

    With g the gradient, γ the rate (1, or a schedule that decays from it), λ the decay, d₀ the initial distance, t the
    count of updates, from 1, and sums over all parameters::

        m ← β₁m + (1 - β₁) d g
        v ← β₂v + (1 - β₂) d²g²
        r ← √β₂ r + (1 - √β₂) γ (d / d₀)² ⟨g, θ₀ - θ⟩
        s ← √β₂ s + (1 - √β₂) γ (d / d₀)² g
        θ ← θ(1 - γdλ)                                  where decay_mask says so
        θ ← θ - γ d m / (√v + d·eps)                    times √(1 - β₂ᵗ) / (1 - β₁ᵗ) with bias_correction
        d ← max(d, f r / ‖s‖₁)                          f is distance_factor

    Source: Mishchenko & Defazio, `Prodigy: an expeditiously adaptive parameter-free learner
    <https://arxiv.org/abs/2306.06101>`_ (2023), algorithm 4; r and s are divided by d₀² both, which changes nothing but
    keeps them from vanishing in float32. The authors' program and Optax's ``contrib.prodigy`` leave (1 - √β₂) out of
    both, and multiply r and s by the bias correction where there is one. torch has no counterpart.

    State: ``first_params`` (θ₀), ``exp_avg`` (m), ``exp_avg_sq`` (v) and ``grad_sum`` (s), as the parameters: four
    numbers a parameter; ``distance`` (d) and ``inner_product`` (r) (0-d, float64; float32 on MPS), ``count`` (int64,
    0-d). ``distance`` is reported in the metrics.

    Not smooth where v = 0 or an entry of s is 0 (the derivatives of the root and of the absolute value are taken as
    zero), and where the maximum ties (half for each side).

    Args:
        rate, distance_factor, weight_decay: each a number of at least 0, a 0-d tensor, or a schedule.
        betas: each a number in [0, 1), a 0-d tensor, or a schedule.
        eps: above 0.
        initial_distance: d₀, above 0: an underestimate. The first steps are of its size.
        bias_correction: as said; the paper has none.
        decay_mask, maximize: as in :func:`adamw`.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    updates.check_flag("bias_correction", bias_correction)
    check_betas(betas)
    _checks.number("eps", eps, above=0)
    _checks.number("initial_distance", initial_distance, above=0)
    updates.check_hyperparameter("distance_factor", distance_factor)

    def advance(part: Part, h: Any) -> After:
        each, kept, p, g = part.each, part.kept, part.p, part.g
        distance, root = _each.number(part.scalars["distance"]), h.beta2**0.5
        weight = (1 - root) * h.rate * (distance / initial_distance) ** 2
        along = _inner(g, kept["first_params"], p, like=_each.number(part.scalars["inner_product"]))
        product = root * _each.number(part.scalars["inner_product"]) + weight * along
        s = each.add_scaled_(each.mul(kept["grad_sum"], root), g, weight)
        m = each.add_scaled_(each.mul(kept["exp_avg"], h.beta1), g, (1 - h.beta1) * distance)
        v = each.addcmul_(each.mul(kept["exp_avg_sq"], h.beta2), g, g, (1 - h.beta2) * distance**2)
        step = h.rate * distance
        if not updates.is_zero(h.weight_decay):
            p = part.decayed(1 - step * h.weight_decay)
        if bias_correction:
            step = step * (1 - h.beta2**part.t) ** 0.5 / (1 - h.beta1**part.t)
        denominator = [(leaf + distance * eps).to(leaf.dtype) for leaf in each.sqrt(v)]
        p = each.addcdiv(p, m, denominator, -step)
        estimate = h.distance_factor * _over_sum(product, s)
        after = {"first_params": kept["first_params"], "exp_avg": m, "exp_avg_sq": v, "grad_sum": s}
        return After(p, after, {"distance": _each.larger(distance, estimate), "inner_product": product})

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        return {**rate_used(rate, context), "distance": state["distance"]}

    optimizer = leafwise(
        "prodigy",
        advance,
        hyperparameters={
            "rate": rate,
            "beta1": betas[0],
            "beta2": betas[1],
            "distance_factor": distance_factor,
        },
        trees={"first_params": torch.clone, **dict.fromkeys(("exp_avg", "exp_avg_sq", "grad_sum"), zeros)},
        scalars={"distance": initial_distance, "inner_product": 0.0},
        wide_scalars=True,
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        decay="own",
        maximize=maximize,
    )
    return dataclasses.replace(optimizer, hyperparams=hyperparams)


def _inner(grads: list[Tensor], starts: list[Tensor], params: list[Tensor], *, like: Any) -> float | Tensor:
    """Return ``⟨g, θ₀ - θ⟩`` over all parameters, summed in float32 at least."""
    sums = [
        (updates.wide(g) * (updates.wide(start) - updates.wide(p))).sum()
        for g, start, p in zip(grads, starts, params, strict=True)
    ]
    return updates.plain(_total(sums, like))


def _over_sum(product: float | Tensor, sums: list[Tensor]) -> float | Tensor:
    """Return ``r / ‖s‖₁``, and 0 where s is zero."""
    size = updates.plain(_total([updates.wide(leaf).abs().sum() for leaf in sums], product))
    if not isinstance(size, Tensor):
        return product / size if size else 0.0
    some = size != 0
    return torch.where(some, product / torch.where(some, size, torch.ones_like(size)), 0.0)


def _total(sums: list[Tensor], like: Any) -> Tensor:
    total = torch.stack(sums).sum()
    return total.to(like.dtype if isinstance(like, Tensor) else torch.float64)
