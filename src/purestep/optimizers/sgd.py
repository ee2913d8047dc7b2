"""Stochastic gradient descent: with momentum, and averaged."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from purestep import _checks, _each, _tree, updates
from purestep.optimizers._leafwise import COUNT, After, DecayMask, Part, leafwise, zeros
from purestep.updates import Hyperparameter, Optimizer, Tree


@updates.recorded
def sgd(
    rate: Hyperparameter,
    *,
    momentum: Hyperparameter = 0.0,
    dampening: Hyperparameter = 0.0,
    nesterov: bool = False,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    maximize: bool = False,
) -> Optimizer:
    """Gradient descent with momentum, bit for bit ``torch.optim.SGD(foreach=False)`` in eager mode on CPU.

    With g the gradient, λ the weight decay, μ the momentum, τ the dampening, γ the rate and θ the parameter::

        g ← g + λθ
        b ← g at the first update, μb + (1 - τ)g after it
        θ ← θ - γ(g + μb) with Nesterov's momentum, θ - γb otherwise

    Source: Sutskever et al., `On the importance of initialization and momentum in deep learning
    <https://proceedings.mlr.press/v28/sutskever13.html>`_ (2013), in the form of torch, where the rate multiplies the
    whole velocity and the first velocity is the raw gradient, undamped.

    State: none without momentum; otherwise ``momentum_buffer`` (b, as the parameters: one number a parameter) and
    ``count`` (int64, 0-d). Smooth everywhere, so its derivatives need no convention.

    Args:
        rate, momentum, dampening, weight_decay: each a number of at least 0, a 0-d tensor, or a schedule. The number
            zero leaves its term out.
        nesterov: needs momentum above 0 and no dampening.
        decay_mask: ``(name, parameter) -> bool``, such as :func:`purestep.matrices_only`; ``None`` decays all.
        maximize: ascend instead.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    for name, value in (("momentum", momentum), ("dampening", dampening)):
        updates.check_hyperparameter(name, value)
    updates.check_flag("nesterov", nesterov)
    keeps_velocity, damped = (not updates.is_zero(value) for value in (momentum, dampening))
    if nesterov and (not keeps_velocity or damped):
        raise ValueError(
            f"nesterov=True needs momentum above 0 and dampening 0, got momentum={momentum} and dampening={dampening}"
        )

    def advance(part: Part, h: Any) -> After:
        each = part.each
        if not keeps_velocity:
            return After(each.add_scaled(part.p, part.g, -h.rate), {}, {})
        velocity = each.mul(part.kept["momentum_buffer"], h.momentum)
        velocity = each.add_scaled_(velocity, part.g, 1 - h.dampening)
        if damped:  # With none, a buffer of zeros gives the raw gradient by itself.
            velocity = _unless_first(part, velocity)
        direction = each.add_scaled(part.g, velocity, h.momentum) if nesterov else velocity
        return After(each.add_scaled(part.p, direction, -h.rate), {"momentum_buffer": velocity}, {})

    def _unless_first(part: Part, velocity: list[Tensor]) -> list[Tensor]:
        if isinstance(part.t, Tensor):
            return [torch.where(part.t == 1, g, v) for g, v in zip(part.g, velocity, strict=True)]
        return [leaf.clone() for leaf in part.g] if part.t == 1 else velocity

    return leafwise(
        "sgd",
        advance,
        hyperparameters={"rate": rate, "momentum": momentum, "dampening": dampening},
        trees={"momentum_buffer": zeros} if keeps_velocity else {},
        counts=keeps_velocity,
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        maximize=maximize,
    )


@updates.recorded
def asgd(
    rate: Hyperparameter,
    *,
    lambd: Hyperparameter = 1e-4,
    alpha: Hyperparameter = 0.75,
    t0: float = 1e6,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    maximize: bool = False,
) -> Optimizer:
    """Averaged gradient descent, bit for bit ``torch.optim.ASGD(foreach=False)`` in eager mode on CPU.

    With g the gradient, γ the rate, λ the decay towards zero ``lambd``, and t the count of updates, from 1::

        θ ← θ(1 - λη) - ηg
        a ← θ where μ = 1, a + μ(θ - a) elsewhere
        η ← γ / (1 + λγt)^α                     for the next update; at the first one η = γ
        μ ← 1 / max(1, t - t₀)                  likewise; at the first one μ = 1

    after g ← g + weight_decay · θ. Source: Polyak & Juditsky, `Acceleration of stochastic approximation by averaging
    <https://doi.org/10.1137/0330046>`_ (1992); Bottou, `Stochastic gradient descent tricks
    <https://doi.org/10.1007/978-3-642-35289-8_25>`_ (2012). A schedule's rate acts one update late, as in torch. The
    average a is what ``eval_params`` gives; torch leaves it in the state.

    State: ``ax`` (a), as the parameters: one number a parameter; ``count`` (int64, 0-d), ``eta`` (η) and ``mu`` (μ),
    0-d in torch's default dtype, as there. In float32 derivatives pass over the rounding of η and μ.
    Smooth where t₀ is not crossed.

    Args:
        rate, lambd, alpha, weight_decay: each a number of at least 0, a 0-d tensor, or a schedule.
        t0: the update after which averaging begins, at least 0.
        decay_mask, maximize: as in :func:`sgd`.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    for name, value in (("lambd", lambd), ("alpha", alpha)):
        updates.check_hyperparameter(name, value)
    _checks.number("t0", t0, minimum=0)

    def advance(part: Part, h: Any) -> After:
        each, t = part.each, part.t
        eta, mu = _each.number(_first(part, "eta", h.rate)), _each.number(part.scalars["mu"])
        p = each.add_scaled_(each.mul(part.p, 1 - h.lambd * eta), part.g, -eta)
        ax = part.kept["ax"]
        if isinstance(mu, Tensor):
            moved = each.add_into(each.mul(each.difference(p, ax), mu), ax)
            ax = [torch.where(mu == 1, leaf, average) for leaf, average in zip(p, moved, strict=True)]
        else:
            # A copy, since no two entries of a state share their storage.
            ax = [q.clone() for q in p] if mu == 1 else each.add_into(each.mul_(each.difference(p, ax), mu), ax)
        later = torch.clamp(t - t0, min=1) if isinstance(t, Tensor) else max(1, t - t0)
        return After(p, {"ax": ax}, {"eta": h.rate / ((1 + h.lambd * h.rate * t) ** h.alpha), "mu": 1 / later})

    def _first(part: Part, name: str, value: Any) -> Tensor:
        """The scalar, or at the first update this value as the state would keep it."""
        kept = part.scalars[name]
        first = torch.full_like(kept, value) if not isinstance(value, Tensor) else value.to(kept.dtype)
        return torch.where(part.t == 1, first, kept) if isinstance(part.t, Tensor) else first if part.t == 1 else kept

    rule = leafwise(
        "asgd",
        advance,
        hyperparameters={"rate": rate, "lambd": lambd, "alpha": alpha},
        trees={"ax": zeros},
        scalars={"eta": 0.0, "mu": 1.0},
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        maximize=maximize,
    )

    def eval_params(params: Tree, state: Tree) -> Tree:
        counts = state[COUNT]

        def average(name: str, ax: Tensor) -> Tensor:
            count = counts if isinstance(counts, Tensor) else counts[name]
            return torch.where(count == 0, params[name], ax)  # before the first update there is nothing to average

        averages = [average(*item) for item in state["ax"].items()]
        return _tree.overlay(params, _tree.named(list(state["ax"].keys()), averages, params))

    return dataclasses.replace(rule, eval_params=eval_params)
