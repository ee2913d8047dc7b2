"""The sign of an interpolated momentum."""

from __future__ import annotations

from typing import Any

from purestep import updates
from purestep.optimizers._leafwise import After, DecayMask, Part, leafwise, zeros
from purestep.transforms._leaves import check_betas
from purestep.updates import Hyperparameter, Optimizer


@updates.recorded
def lion(
    rate: Hyperparameter,
    *,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.99),
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    maximize: bool = False,
) -> Optimizer:
    """Steps of one size in each entry, by the sign of a momentum.

    With g the gradient, γ the rate and λ the decay::

        θ ← θ(1 - γλ)                           where decay_mask says so
        θ ← θ - γ sign(m + (1 - β₁)(g - m))
        m ← m + (1 - β₂)(g - m)

    Source: Chen et al., `Symbolic discovery of optimization algorithms <https://arxiv.org/abs/2302.06675>`_ (2023),
    algorithm 2. torch has no counterpart; Optax's ``lion`` is the same rule with ``weight_decay=1e-3`` by default. The
    paper takes rates 3 to 10 times smaller, and decays as much larger, than for AdamW.

    State: ``exp_avg`` (m), as the parameters: one number a parameter. Not smooth where the interpolated momentum is
    zero, and flat elsewhere: the derivative of the sign is taken as zero, so a step depends on the rate, the decay and
    the parameter before it, and not on the gradient or on the betas. The sign of zero is zero.

    Args:
        rate, weight_decay: each a number of at least 0, a 0-d tensor, or a schedule.
        betas: each a number in [0, 1), a 0-d tensor, or a schedule.
        decay_mask: ``(name, parameter) -> bool``, such as :func:`matrices_only`; ``None`` decays all.
        maximize: ascend instead.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    check_betas(betas)

    def advance(part: Part, h: Any) -> After:
        signs = [leaf.sign() for leaf in part.mean("exp_avg", h.beta1)]
        p = part.each.add_scaled(part.p, signs, -h.rate)
        return After(p, {"exp_avg": part.mean("exp_avg", h.beta2)}, {})

    return leafwise(
        "lion",
        advance,
        hyperparameters={"rate": rate, "beta1": betas[0], "beta2": betas[1]},
        trees={"exp_avg": zeros},
        counts=False,
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        decay="parameter",
        maximize=maximize,
    )
