"""Schedules given by their values at boundaries, or by their factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from purestep.schedules._curves import between, eased, filled, like, passed
from purestep.schedules._decorator import schedule
from purestep.schedules._hyperparameters import Number, Steps, at_least, fraction, increasing, one_more


def _check_multi_step(peak: Number, boundaries: Sequence[Steps], rate: Number) -> None:
    increasing("boundaries", boundaries)
    fraction("rate", rate, maximum=1)


def _check_pieces(values: Sequence[Number], boundaries: Sequence[Steps], kind: str = "") -> None:
    one_more("values", values, "boundaries", boundaries)
    increasing("boundaries", boundaries)


def _check_multiplicative(peak: Number, factors: Sequence[Number]) -> None:
    if not factors:
        raise ValueError("factors must hold at least one factor, got ()")
    for n, factor in enumerate(factors):
        at_least(f"factors[{n}]", factor, 0)


@schedule(check=_check_multi_step)
def multi_step(step: Tensor, peak: Number, boundaries: Sequence[Steps], *, rate: Number = 0.1) -> Tensor:
    r"""``peak``, multiplied by ``rate`` at each of ``boundaries``.

    .. math:: s(t) = \text{peak} \cdot \text{rate}^{\#\{b \in \text{boundaries}:\ t \ge b\}}

    Endpoints: exactly ``peak`` before the first boundary, and the last value from the last boundary on. A value
    changes at the step of its boundary.

    Equivalents: ``torch.optim.lr_scheduler.MultiStepLR(optimizer, boundaries, gamma=rate)``.
    ``optax.piecewise_constant_schedule`` with the same scale at each boundary. timm's ``MultiStepLRScheduler`` changes
    one step earlier.
    """
    return peak * rate ** passed(step, boundaries)


@schedule(check=_check_pieces)
def piecewise_constant(step: Tensor, values: Sequence[Number], boundaries: Sequence[Steps]) -> Tensor:
    r"""``values[i]`` from ``boundaries[i - 1]`` on, up to the step before ``boundaries[i]``.

    .. math:: s(t) = \text{values}_{i}, \qquad i = \#\{b \in \text{boundaries}:\ t \ge b\}

    There is one value more than boundaries. Endpoints: each value exactly, the last for ever.

    Equivalents: ``optax.piecewise_constant_schedule(init, boundaries_and_scales)``, where the values are products of
    the scales. ``torch.optim.lr_scheduler.ConstantLR(optimizer, factor, total_iters)`` is
    ``piecewise_constant((base * factor, base), (total_iters,))``; torch's factor may not be 0.
    """
    # Where nobody differentiates by the step, the choice among the values is enough of a function of it.
    value = like(step, values[0]) if boundaries and not step.requires_grad else filled(step, values[0])
    for boundary, following in zip(boundaries, values[1:], strict=True):
        value = torch.where(step < boundary, value, like(step, following))
    return value


@schedule(check=_check_pieces)
def piecewise_interpolate(
    step: Tensor,
    values: Sequence[Number],
    boundaries: Sequence[Steps],
    *,
    kind: Literal["linear", "cosine"] = "linear",
) -> Tensor:
    r"""``values[0]`` at step 0, ``values[i]`` at ``boundaries[i - 1]``, and between them a line or half a cosine.

    .. math:: s(t) = v_i + (v_{i+1} - v_i)\, e\!\left(\frac{t - b_i}{b_{i+1} - b_i}\right), \quad b_i \le t < b_{i+1},
        \qquad e(p) = p \ \text{or}\ \frac{1 - \cos \pi p}{2}

    with ``b_0 = 0``. There is one value more than boundaries. Endpoints: each value exactly, the last for ever.

    Equivalents: ``optax.piecewise_interpolate_schedule(kind, init, boundaries_and_scales)``, where the values are
    products of the scales.
    """
    # Each line is finite everywhere, so it needs no steps held back where another value is chosen; a length that is a
    # tensor may be zero.
    held = any(isinstance(boundary, Tensor) for boundary in boundaries)
    value: Tensor = like(step, values[-1])
    for i in reversed(range(len(boundaries))):
        start = boundaries[i - 1] if i else 0
        over = (step - start if i else step) / (boundaries[i] - start)
        over = torch.clamp(over, min=0.0, max=1.0) if held else over
        value = torch.where(step < boundaries[i], between(values[i], values[i + 1], eased(over, kind)), value)
    return value if boundaries else filled(step, values[0])


@schedule(check=_check_multiplicative)
def multiplicative(step: Tensor, peak: Number, factors: Sequence[Number]) -> Tensor:
    r"""``peak`` times the first factors, one more at each step; after the last, the product of them all.

    .. math:: s(t) = \text{peak} \prod_{i=1}^{\min(t, n)} f_i, \qquad \text{factors} = (f_1, \ldots, f_n)

    A product of ``t`` factors that a function gives would take ``t`` calls at step ``t``, up to 2^62. So the factors
    are given as a list, whose products are a table. For one factor over and over there is ``exponential``; for another
    rule, the product's own closed form under the decorator ``schedule``.

    Endpoints: exactly ``peak`` at 0; the whole product from step ``len(factors)`` on.

    Equivalents: ``torch.optim.lr_scheduler.MultiplicativeLR(optimizer, f)`` with ``factors = [f(1), f(2), ...]``, as
    long as the list goes.
    """
    if any(isinstance(factor, Tensor) for factor in factors):
        products = torch.cumprod(torch.stack([like(step, f) for f in (1.0, *factors)]), dim=0)
    else:  # a table, and no product, in a compiled graph
        table: list[Number] = [1.0]
        for factor in factors:
            table.append(table[-1] * factor)
        products = torch.tensor(table, dtype=step.dtype, device=step.device)
    place = torch.clamp(step.detach(), max=len(factors)).long()
    # Not `products[place]`, which for a single place asks the device for its value.
    return peak * torch.index_select(products, 0, place.reshape(-1)).reshape(step.shape)
