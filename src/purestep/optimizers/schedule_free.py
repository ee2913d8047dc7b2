"""Optimizers without a schedule: an average of the iterates takes the place of a decaying rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purestep import _checks, _each, _tree, updates
from purestep.optimizers._leafwise import After, DecayMask, Part, leafwise, zeros
from purestep.updates import Hyperparameter, Optimizer, Tree


@updates.recorded
def schedule_free_sgd(
    rate: Hyperparameter,
    *,
    momentum: Hyperparameter = 0.9,
    weight_power: Hyperparameter = 0.0,
    weight_rate_power: Hyperparameter = 2.0,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    maximize: bool = False,
) -> Optimizer:
    """Gradient descent whose iterates are averaged as they come; no schedule but a warm-up is needed.

    The parameters that are trained are y, where the gradient g is taken; x, their average, is what ``eval_params``
    gives, and what to evaluate and to keep. With γ the rate, λ the decay, β the momentum and t the count of updates,
    from 1::

        z ← z - γ(g + λy)                       the decay where decay_mask says so
        w = tʳ · max(γ₁, ..., γₜ)ᵖ              r is weight_power, p is weight_rate_power
        c = w / (w₁ + ... + wₜ)                 0 while the sum is
        x ← (1 - c)x + cz
        y ← (1 - β)z + βx

    Source: Defazio et al., `The road less scheduled <https://arxiv.org/abs/2405.15682>`_ (2024), equations 3 to 5, with
    the weights of the authors' program. A warm-up is a schedule given as the rate, which the program has as an argument
    of its own. Optax's ``contrib.schedule_free`` is the same, and keeps z as well.

    State: ``z``, as the parameters: one number a parameter (x is found from y and z); ``momentum`` (β of the last
    update), ``largest_rate`` and ``weight_sum`` (0-d, float64; float32 on MPS), ``count`` (int64, 0-d). Smooth, but
    for the maximum of the rates where they tie: each side has half of the derivative, which is right for a rate that
    stays the same.

    Args:
        rate: a number of at least 0, a 0-d tensor, or a schedule; larger than for plain SGD.
        momentum: β, a number above 0 and at most 1, a 0-d tensor, or a schedule.
        weight_power, weight_rate_power, weight_decay: each a number of at least 0, a 0-d tensor, or a schedule.
        decay_mask, maximize: as in :func:`adamw`.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """

    def direction(part: Part, h: Any) -> tuple[list[Tensor], Any, dict[str, list[Tensor]]]:
        return part.g, h.rate, {}

    others = {"weight_power": weight_power, "weight_rate_power": weight_rate_power}
    decay = {"weight_decay": weight_decay, "decay_mask": decay_mask, "maximize": maximize}
    return _schedule_free("schedule_free_sgd", direction, rate, momentum, others, {}, decay)


@updates.recorded
def schedule_free_adamw(
    rate: Hyperparameter,
    *,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_power: Hyperparameter = 0.0,
    weight_rate_power: Hyperparameter = 2.0,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    maximize: bool = False,
) -> Optimizer:
    """AdamW without a schedule: :func:`schedule_free_sgd` with Adam's normalised gradient.

    With g the gradient at y, γ the rate, β₁ in the place of β there, and t the count of updates, from 1::

        v ← β₂v + (1 - β₂)g²
        γₜ = γ √(1 - β₂ᵗ)
        z ← z - γₜ(g / (√v + eps) + λy)         the decay where decay_mask says so

    and x, y, w and c as there, with γₜ in the place of γ. Source: Defazio et al., `The road less scheduled
    <https://arxiv.org/abs/2405.15682>`_ (2024), algorithm 1. Later versions of the authors' program divide v by its
    correction instead, so that neither the decay nor the weights have it.

    State: ``z`` and ``exp_avg_sq`` (v), as the parameters: two numbers a parameter, as AdamW; the scalars of
    :func:`schedule_free_sgd`. At v = 0 the derivative of the root is taken as zero.

    Args:
        betas: β₁, a number above 0 and at most 1, and β₂, in [0, 1); or 0-d tensors, or schedules.
        eps: at least 0.
        rate, weight_power, weight_rate_power, weight_decay, decay_mask, maximize: as in :func:`schedule_free_sgd`.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers, in (0, 1] and in [0, 1), got {betas!r}")
    updates.check_hyperparameter("betas[1]", betas[1], below=1)
    _checks.number("eps", eps, minimum=0)

    def direction(part: Part, h: Any) -> tuple[list[Tensor], Any, dict[str, list[Tensor]]]:
        each = part.each
        v = part.mean_square("exp_avg_sq", h.beta2)
        normalised = each.quotient(part.g, each.add_(each.sqrt(v), eps))
        return normalised, h.rate * (1 - h.beta2**part.t) ** 0.5, {"exp_avg_sq": v}

    others = {"weight_power": weight_power, "weight_rate_power": weight_rate_power, "beta2": betas[1]}
    decay = {"weight_decay": weight_decay, "decay_mask": decay_mask, "maximize": maximize}
    return _schedule_free(
        "schedule_free_adamw",
        direction,
        rate,
        betas[0],
        others,
        {"exp_avg_sq": zeros},
        decay,
        momentum_name="betas[0]",
    )


Direction = Callable[[Part, Any], tuple[list[Tensor], Any, dict[str, list[Tensor]]]]


def _schedule_free(
    owner: str,
    direction: Direction,
    rate: Hyperparameter,
    momentum: Hyperparameter,
    others: dict[str, Hyperparameter],
    trees: dict[str, Callable[[Tensor], Tensor]],
    decay: dict[str, Any],
    *,
    momentum_name: str = "momentum",
) -> Optimizer:
    """Return the optimizer whose z moves along ``direction``, which gives it, the rate, and new trees of the state."""
    # With 0, x could not be found from y and z.
    updates.check_hyperparameter(momentum_name, momentum, minimum=None, above=0, maximum=1)
    for name in ("weight_power", "weight_rate_power"):
        updates.check_hyperparameter(name, others[name])

    def advance(part: Part, h: Any) -> After:
        each, y, z = part.each, part.p, part.kept["z"]
        u, step_rate, after = direction(part, h)
        u = part.with_decay(u, h.weight_decay)
        x = _average(each, y, z, _each.number(part.scalars["momentum"]))
        z = each.add_scaled(z, u, -step_rate)
        largest = _each.larger(_each.number(part.scalars["largest_rate"]), step_rate)
        weight = part.t**h.weight_power * largest**h.weight_rate_power
        total = _each.number(part.scalars["weight_sum"]) + weight
        x = each.lerp(x, z, _share(weight, total))
        scalars = {"momentum": h.momentum, "largest_rate": largest, "weight_sum": total}
        return After(each.lerp(z, x, h.momentum), {"z": z, **after}, scalars)

    def eval_params(params: Tree, state: Tree) -> Tree:
        names, momentum = list(state["z"].keys()), updates.plain(state["momentum"])
        y, z = [params[name] for name in names], _tree.leaves(state["z"], names)
        x = _average(_each.arithmetic(y, z, momentum), y, z, momentum)
        return _tree.overlay(params, _tree.named(names, x, params))

    optimizer = leafwise(
        owner,
        advance,
        hyperparameters={"rate": rate, "momentum": momentum, **others},
        trees={"z": torch.clone, **trees},
        scalars={"momentum": 1.0, "largest_rate": 0.0, "weight_sum": 0.0},
        wide_scalars=True,
        decay="own",
        **decay,
    )
    return dataclasses.replace(optimizer, eval_params=eval_params)


def _average(each: _each.Loop, y: list[Tensor], z: list[Tensor], momentum: float | Tensor) -> list[Tensor]:
    """Return ``x = (y - (1 - β)z) / β``."""
    return each.lerp(y, z, 1 - 1 / momentum)


def _share(weight: float | Tensor, total: float | Tensor) -> float | Tensor:
    """Return ``weight / total``, and 0 where the total is zero: a rate that begins at zero gives no weight."""
    if not isinstance(total, Tensor):
        return weight / total if total else 0.0
    some = total != 0
    return torch.where(some, weight / torch.where(some, total, torch.ones_like(total)), 0.0)
