"""Schedules that rise and fall: restarts, one cycle, many cycles, and their momentum."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from purestep.schedules._curves import between, eased, half_cosine, like, or_one, periods, progress
from purestep.schedules._decorator import schedule
from purestep.schedules._hyperparameters import Number, Steps, above, at_least, fraction, ordered

Ease: TypeAlias = Literal["cosine", "linear"]
Mode: TypeAlias = Literal["triangular", "triangular2", "exp_range"]


def _check_warm_restarts(
    peak: Number, period: Steps, multiplier: Number, decay: Number, floor: Number, cycles: Steps | None
) -> None:
    at_least("period", period, 1)
    at_least("multiplier", multiplier, 1)
    fraction("decay", decay, maximum=1)
    ordered("floor", floor, "peak", peak)
    if cycles is not None:
        at_least("cycles", cycles, 1)


def _check_phases(total_steps: Steps, warmup_fraction: Number, three_phase: bool) -> None:
    at_least("total_steps", total_steps, 2)
    fraction("warmup_fraction", warmup_fraction, below=0.5 if three_phase else 1)
    if isinstance(total_steps, Tensor) or isinstance(warmup_fraction, Tensor):
        return
    rise = round(warmup_fraction * total_steps)
    if not 0 < rise * (2 if three_phase else 1) < total_steps:
        raise ValueError(
            f"warmup_fraction must leave a step or more to each phase of total_steps ({total_steps}), "
            f"got {warmup_fraction!r}, whose warm-up has {rise}"
        )


def _check_one_cycle(
    peak: Number,
    total_steps: Steps,
    warmup_fraction: Number,
    start_divisor: Number,
    end_divisor: Number,
    anneal: Ease,
    three_phase: bool,
) -> None:
    _check_phases(total_steps, warmup_fraction, three_phase)
    above("peak", peak, 0)
    at_least("start_divisor", start_divisor, 1)
    at_least("end_divisor", end_divisor, 1)


def _check_one_cycle_momentum(
    low: Number, high: Number, total_steps: Steps, warmup_fraction: Number, anneal: Ease, three_phase: bool
) -> None:
    _check_phases(total_steps, warmup_fraction, three_phase)
    ordered("low", low, "high", high)


def _check_cyclic(
    low: Number, high: Number, up_steps: Steps, down_steps: Steps | None, mode: Mode, gamma: Number
) -> None:
    at_least("up_steps", up_steps, 1)
    if down_steps is not None:
        at_least("down_steps", down_steps, 1)
    fraction("gamma", gamma, maximum=1)
    ordered("low", low, "high", high)


@schedule(check=_check_warm_restarts)
def warm_restarts(
    step: Tensor,
    peak: Number,
    period: Steps,
    *,
    multiplier: Number = 1.0,
    decay: Number = 1.0,
    floor: Number = 0.0,
    cycles: Steps | None = None,
) -> Tensor:
    r"""Half cosines from a peak down to ``floor``, over and over; each ``multiplier`` times as long as the one before.

    .. math:: s(t) = \text{floor} + (\text{peak}_i - \text{floor}) \frac{1 + \cos(\pi (t - S_i) / T_i)}{2},
        \qquad S_i \le t < S_{i+1}

    .. math:: T_i = \text{period} \cdot m^i, \qquad S_i = \text{period}\, \frac{m^i - 1}{m - 1}
        \ (\text{period} \cdot i \text{ for } m = 1), \qquad
        \text{peak}_i = \max(\text{peak} \cdot \text{decay}^i,\ \text{floor})

    with ``m = multiplier``, at least 1. After ``cycles`` cycles, if that is given, the value is ``floor``.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
    https://arxiv.org/abs/1608.03983, equation 5.

    Endpoints: exactly the cycle's peak at the step where it begins, which is found without error also where torch's
    logarithm misses it. ``floor`` itself is reached only after ``cycles``: the step at which a cycle would reach it is
    the first of the next. With a whole multiplier every cycle begins at a whole step; with another, where ``S_i`` says.

    Equivalents: ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0, T_mult, eta_min)``. timm's
    ``CosineLRScheduler`` with ``cycle_mul``, ``cycle_decay``, ``cycle_limit``. transformers'
    ``get_cosine_with_hard_restarts_schedule_with_warmup`` after its warm-up, with ``cycles`` for its ``num_cycles``.
    """
    cycle, start, length = _cycle_at(step, period, multiplier)
    over = torch.clamp((step - start) / length, min=0.0, max=1.0)
    falls = isinstance(decay, Tensor) or decay != 1
    top = torch.clamp(peak * decay**cycle, min=floor) if falls else like(step, peak)
    value = torch.lerp(like(step, floor), top, half_cosine(over))
    return value if cycles is None else torch.where(cycle < cycles, value, like(step, floor))


def _cycle_at(step: Tensor, period: Steps, multiplier: Number) -> tuple[Tensor, Tensor, Number]:
    """The cycle that ``step`` lies in: its index, a whole number without a derivative; its start; and its length."""
    at = step.detach()
    if not isinstance(multiplier, Tensor) and multiplier == 1:
        cycle = torch.floor(at / like(step, period).detach())
        return cycle, period * cycle, period
    # Rounding may put the solution on the wrong side of a start: so the nearest whole number is taken, and it is seen
    # whether its start is reached.
    nearest = torch.round(_terms(at / like(step, period).detach(), multiplier).detach())
    power = multiplier**nearest
    start, length = _whole(period * _series(nearest, multiplier, power)), period * power
    later = at < start.detach()
    length = torch.where(later, length / multiplier, length)
    return nearest - later.to(step.dtype), torch.where(later, start - length, start), length


def _whole(steps: Tensor) -> Tensor:
    """``steps``, made whole where rounding alone keeps them from it; with the derivative that they have."""
    error = torch.round(steps.detach()) - steps.detach()
    return steps + torch.where(error.abs() <= 1e-12 * steps.detach(), error, 0.0)


def _series(count: Tensor, ratio: Number, power: Tensor) -> Tensor:
    """``1 + ratio + ... + ratio ** (count - 1)``, for a ratio of at least 1, with ``power`` its ``count``-th power."""
    if isinstance(ratio, Tensor):
        safe = torch.where(ratio == 1, 1e-20, ratio - 1)
        near_one = torch.expm1(count * torch.log1p(safe)) / safe
        sum_ = torch.where(ratio > 1.5, (power - 1) / safe, near_one)
        # To first order at a ratio of 1, which gives the derivative there too.
        return torch.where(ratio == 1, count + (ratio - 1) * count * (count - 1) / 2, sum_)
    # The power is right to the last whole number, but cancels for a ratio near 1.
    growth = ratio - 1
    return (power - 1) / growth if ratio > 1.5 else torch.expm1(count * torch.log1p(like(count, growth))) / growth


def _terms(sum_: Tensor, ratio: Number) -> Tensor:
    """The ``count`` for which ``_series`` is ``sum_``."""
    growth = like(sum_, ratio) - 1
    safe = torch.where(growth == 0, 1.0, growth)
    return torch.where(growth == 0, sum_, torch.log1p(sum_ * safe) / torch.log1p(safe))


@schedule(check=_check_one_cycle)
def one_cycle(
    step: Tensor,
    peak: Number,
    total_steps: Steps,
    *,
    warmup_fraction: Number = 0.3,
    start_divisor: Number = 25.0,
    end_divisor: Number = 1e4,
    anneal: Ease = "cosine",
    three_phase: bool = False,
) -> Tensor:
    r"""Up from ``peak / start_divisor`` to ``peak``, and down to a small fraction of where it began.

    .. math:: s(t) = \begin{cases}
        \text{start} \to \text{peak} & 0 \le t < W \\
        \text{peak} \to \text{end} & W \le t < T \\
        \text{end} & t \ge T \end{cases} \qquad
        \text{start} = \frac{\text{peak}}{\text{start\_divisor}},\ \text{end} = \frac{\text{start}}{\text{end\_divisor}}

    where ``T = total_steps``, ``W`` is ``warmup_fraction * T`` rounded to a whole step, and an arrow is half a cosine,
    or a line if ``anneal`` is ``"linear"``. With ``three_phase`` it goes from ``peak`` back to ``start`` in another
    ``W`` steps, and from there to ``end``.

    Source: Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates",
    https://arxiv.org/abs/1708.07120.

    Endpoints: exactly ``start`` at 0, exactly ``peak`` at ``W``, exactly ``end`` from ``total_steps``. The derivative
    by ``warmup_fraction`` is 0, as ``W`` moves in whole steps.

    Equivalents: ``torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr, total_steps=n, pct_start=p)`` counts its
    phases by one step less: it is ``one_cycle(max_lr, n - 1, warmup_fraction=(p * n - 1) / (n - 1))`` where ``p * n``
    is whole; elsewhere torch's passes its peak by. ``optax.cosine_onecycle_schedule(total_steps, peak, warmup_fraction,
    start_divisor, end_divisor)``, which rounds ``W`` down.
    """
    start = peak / start_divisor
    return _phases(step, start, peak, start / end_divisor, total_steps, warmup_fraction, anneal, three_phase)


@schedule(check=_check_one_cycle_momentum)
def one_cycle_momentum(
    step: Tensor,
    low: Number,
    high: Number,
    total_steps: Steps,
    *,
    warmup_fraction: Number = 0.3,
    anneal: Ease = "cosine",
    three_phase: bool = False,
) -> Tensor:
    r"""The momentum beside ``one_cycle``: from ``high`` down to ``low`` while the rate rises, and back while it falls.

    .. math:: s(t) = \begin{cases}
        \text{high} \to \text{low} & 0 \le t < W \\
        \text{low} \to \text{high} & W \le t < T \\
        \text{high} & t \ge T \end{cases}

    with the phases of ``one_cycle``; in three phases, it is back at ``high`` after ``2 W`` steps and stays there.

    Endpoints: exactly ``high`` at 0, exactly ``low`` at ``W``, exactly ``high`` from ``total_steps``.

    Equivalents: ``OneCycleLR(..., base_momentum=low, max_momentum=high)``, whose defaults are 0.85 and 0.95.
    """
    return _phases(step, high, low, high, total_steps, warmup_fraction, anneal, three_phase)


def _phases(
    step: Tensor,
    start: Number,
    middle: Number,
    end: Number,
    total_steps: Steps,
    warmup_fraction: Number,
    anneal: Ease,
    three_phase: bool,
) -> Tensor:
    """From ``start`` to ``middle`` to ``end``, by way of ``start`` in three phases."""
    share = warmup_fraction * total_steps
    turn = torch.round(share) if isinstance(share, Tensor) else round(share)
    value = between(start, middle, eased(step / or_one(turn), anneal))
    stops = (
        [(turn, middle), (2 * turn, start), (total_steps, end)] if three_phase else [(turn, middle), (total_steps, end)]
    )
    for (since, before), (until, after) in pairwise(stops):
        over = torch.clamp(progress(step - since, until - since), min=0.0)
        value = torch.where(step < since, value, between(before, after, eased(over, anneal)))
    return value


@schedule(check=_check_cyclic)
def cyclic(
    step: Tensor,
    low: Number,
    high: Number,
    up_steps: Steps,
    *,
    down_steps: Steps | None = None,
    mode: Mode = "triangular",
    gamma: Number = 1.0,
) -> Tensor:
    r"""Straight up from ``low`` to ``high`` and down again, over and over.

    .. math:: s(t) = \text{low} + (\text{high} - \text{low})\, \Lambda(t)\, h(t), \qquad
        \Lambda(t) = \begin{cases} p / U & p < U \\ (U + D - p) / D & p \ge U \end{cases},\
        p = t \bmod (U + D)

    with ``U = up_steps`` and ``D = down_steps`` (``up_steps`` where not given). The height ``h`` is 1 in the mode
    ``"triangular"``, halves with each cycle in ``"triangular2"``, and is ``gamma ** t`` in ``"exp_range"``.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, https://arxiv.org/abs/1506.01186.

    Endpoints: exactly ``low`` at the start of each cycle; exactly ``high`` at its top while the height is 1. It repeats
    for ever.

    Equivalents: ``torch.optim.lr_scheduler.CyclicLR(optimizer, low, high, up_steps, down_steps, mode, gamma)``.
    """
    return between(low, high, _triangle(step, up_steps, down_steps, mode, gamma))


@schedule(check=_check_cyclic)
def cyclic_momentum(
    step: Tensor,
    low: Number,
    high: Number,
    up_steps: Steps,
    *,
    down_steps: Steps | None = None,
    mode: Mode = "triangular",
    gamma: Number = 1.0,
) -> Tensor:
    r"""The momentum beside ``cyclic``: ``high`` where the rate is low, and down towards ``low`` where it is high.

    .. math:: s(t) = \text{high} - (\text{high} - \text{low})\, \Lambda(t)\, h(t)

    with the triangles and heights of ``cyclic``.

    Endpoints: exactly ``high`` at the start of each cycle; exactly ``low`` at its top while the height is 1.

    Equivalents: ``CyclicLR(..., cycle_momentum=True, base_momentum=low, max_momentum=high)``.
    """
    return between(high, low, _triangle(step, up_steps, down_steps, mode, gamma))


def _triangle(step: Tensor, up: Steps, down: Steps | None, mode: Mode, gamma: Number) -> Tensor:
    down = up if down is None else down
    place = torch.remainder(step, up + down)
    triangle = torch.where(place < up, place / up, (up + down - place) / down)
    if mode == "triangular":
        return triangle
    return triangle * (0.5 ** periods(step, up + down) if mode == "triangular2" else gamma**step)
