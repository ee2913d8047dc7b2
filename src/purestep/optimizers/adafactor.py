"""Adafactor: a second moment in rows and columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purestep import _checks, _each, updates
from purestep.optimizers._leafwise import After, DecayMask, Part, leafwise
from purestep.updates import Hyperparameter, Optimizer

_FACTORS = ("row_var", "col_var", "variance")


@updates.recorded
def adafactor(
    rate: Hyperparameter = 0.01,
    *,
    beta2_decay: Hyperparameter = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: float = 1.0,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    maximize: bool = False,
) -> Optimizer:
    """A second moment in the space of a row and a column, bit for bit ``torch.optim.Adafactor(foreach=False)`` in eager
    mode on CPU.

    With g the gradient, γ the rate, t the count of updates, from 1, and RMS(x) = ‖x‖₂ / √(entries of x)::

        ρ = min(γ, 1 / √t)
        α = max(ε₂, RMS(θ)) · ρ
        θ ← θ(1 - γλ)
        r ← r + t^β (mean of g² along rows - r)             for two dimensions or more, c for columns likewise
        v = r c / max(mean of r, ε₁)                        v ← v + t^β (g² - v) for fewer
        u = g / √max(v, ε₁²)
        θ ← θ - α / max(1, RMS(u) / d) · u

    Source: Shazeer & Stern, `Adafactor: adaptive learning rates with sublinear memory cost
    <https://arxiv.org/abs/1804.04235>`_ (2018), in torch's form. Optax's ``adafactor`` is another algorithm: it
    factors large dimensions alone, and clips by blocks. In a group of parameters of several dtypes torch takes ε₁
    of the first; here each has its own. torch divides by zero where a parameter is empty; here it stays as it is.

    State: for a parameter of shape (..., n, m), ``row_var`` (..., n, 1) and ``col_var`` (..., 1, m): n + m numbers
    instead of nm; for fewer dimensions ``variance``, as the parameter; ``count`` (int64, 0-d). Not smooth where one
    of the bounds is met, nor at θ = 0, where the derivative of the norm is taken as zero. The scale
    of a step depends on the gradients: where somebody differentiates by them it is a tensor, and the last bit may
    differ.

    Args:
        rate, weight_decay: each a number of at least 0, a 0-d tensor, or a schedule.
        beta2_decay: β, a number of at most 0, a 0-d tensor, or a schedule.
        eps: ε₁, at least 0, or ``None`` for that of the parameter's dtype; and ε₂, at least 0.
        d: at least 1.
        decay_mask: ``(name, parameter) -> bool``, such as :func:`purestep.matrices_only`; ``None`` decays all.
        maximize: ascend instead.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    updates.check_hyperparameter("beta2_decay", beta2_decay, minimum=None, maximum=0)
    if not isinstance(eps, (tuple, list)) or len(eps) != 2:
        raise TypeError(f"eps must be two numbers, the first of them or None, got {eps!r}")
    if eps[0] is not None:
        _checks.number("eps[0]", eps[0], minimum=0)
    _checks.number("eps[1]", eps[1], minimum=0)
    _checks.number("d", d, minimum=1)

    def advance(part: Part, h: Any) -> After:
        after = {key: list(leaves) for key, leaves in part.kept.items()}
        each, weight = part.each, part.t**h.beta2_decay
        ceiling = _least(h.rate, 1 / part.t**0.5)
        p = part.p if updates.is_zero(weight_decay) else part.decayed(1 - h.rate * h.weight_decay)
        moved = [leaf.clone() if leaf.numel() == 0 else leaf for leaf in p]
        for factored in (True, False):
            where = [i for i, g in enumerate(part.g) if g.numel() and (g.dim() > 1) is factored]
            if not where:
                continue
            g = [part.g[i] for i in where]
            eps1 = [torch.finfo(leaf.dtype).eps if eps[0] is None else eps[0] for leaf in g]
            keys = _FACTORS[:2] if factored else _FACTORS[2:]
            kept = [[part.kept[key][i] for i in where] for key in keys]
            moment = _by_factors if factored else _whole
            estimates, new = moment(each, g, kept, weight, eps1)
            for key, leaves in zip(keys, new, strict=True):
                for i, leaf in zip(where, leaves, strict=True):
                    after[key][i] = leaf
            floors = [bound * bound for bound in eps1]
            # The variance itself stays in the state.
            bounded = each.clamp_min_(estimates, floors) if factored else each.clamp_min(estimates, floors)
            direction = each.product_(each.rsqrt_(bounded), g)
            sizes = _rms(each, [part.p[i] for i in where])
            for i, leaf, size, length in zip(where, direction, sizes, _rms(each, direction, d), strict=True):
                alpha = _largest(eps[1], size) * ceiling
                moved[i] = updates.add_scaled(p[i], leaf, -alpha / _largest(1.0, length))
        return After(moved, after, {})

    return leafwise(
        "adafactor",
        advance,
        hyperparameters={"rate": rate, "beta2_decay": beta2_decay},
        trees={"row_var": _row, "col_var": _column, "variance": _variance},
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        decay="own",
        maximize=maximize,
    )


def _row(p: Tensor) -> Tensor | None:
    return p.new_zeros((*p.shape[:-1], 1)) if p.dim() > 1 else None


def _column(p: Tensor) -> Tensor | None:
    return p.new_zeros((*p.shape[:-2], 1, p.shape[-1])) if p.dim() > 1 else None


def _variance(p: Tensor) -> Tensor | None:
    return torch.zeros_like(p) if p.dim() <= 1 else None


def _by_factors(
    each: _each.Loop, g: list[Tensor], kept: list[list[Tensor]], weight: Any, eps1: list[float]
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Return estimates of the second moment, and the factors they are made of."""
    new = []
    for dim, factor in zip((-1, -2), kept, strict=True):
        norms = [torch.norm(leaf, dim=dim, keepdim=True) for leaf in g]
        means = [square.div(leaf.size(dim)) for square, leaf in zip(each.product(norms, norms), g, strict=True)]
        new.append(each.lerp(factor, means, weight))
    rows, columns = new
    means = each.clamp_min_([row.mean(dim=-2, keepdim=True) for row in rows], eps1)
    outer = [row @ column for row, column in zip(rows, columns, strict=True)]
    return each.quotient_(outer, means), new


def _whole(
    each: _each.Loop, g: list[Tensor], kept: list[list[Tensor]], weight: Any, eps1: list[float]
) -> tuple[list[Tensor], list[list[Tensor]]]:
    variance = each.lerp(kept[0], each.product(g, g), weight)
    return variance, [variance]


def _rms(each: _each.Loop, tensors: list[Tensor], divisor: float = 1.0) -> list[Any]:
    """Return ``‖x‖ / (√entries · divisor)`` of each, the norm in its dtype and the rest in float64."""
    return [norm / (x.numel() ** 0.5 * divisor) for norm, x in zip(each.norms(tensors), tensors, strict=True)]


def _largest(bound: float, value: Any) -> Any:
    return value.clamp(min=bound) if isinstance(value, Tensor) else max(bound, value)


def _least(value: Any, bound: Any) -> Any:
    if isinstance(value, Tensor) or isinstance(bound, Tensor):
        like = value if isinstance(value, Tensor) else bound
        return torch.minimum(updates.as_tensor(value, like), updates.as_tensor(bound, like))
    return min(value, bound)
