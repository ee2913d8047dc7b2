"""Schedules that fall: by a factor, along a sigmoid, along a root."""

from __future__ import annotations

import torch
from torch import Tensor

from purestep.schedules._curves import between, periods, progress, raised
from purestep.schedules._decorator import schedule
from purestep.schedules._hyperparameters import Number, Steps, above, at_least, fraction, ordered


def check_exponential(peak: Number, rate: Number, every: Steps, staircase: bool, floor: Number | None) -> None:
    fraction("rate", rate, maximum=1)
    at_least("every", every, 1)
    if floor is not None:
        ordered("floor", floor, "peak", peak)


def _check_step_decay(peak: Number, every: Steps, rate: Number) -> None:
    at_least("every", every, 1)
    fraction("rate", rate, maximum=1)


def _check_tanh_decay(peak: Number, total_steps: Steps, floor: Number, lower: Number, upper: Number) -> None:
    at_least("total_steps", total_steps, 1)
    ordered("lower", lower, "upper", upper, strictly=True)
    ordered("floor", floor, "peak", peak)


def _check_sigmoid_decay(peak: Number, total_steps: Steps, floor: Number, steepness: Number, midpoint: Number) -> None:
    at_least("total_steps", total_steps, 1)
    above("steepness", steepness, 0)
    ordered("floor", floor, "peak", peak)


def _check_one_minus_sqrt(peak: Number, total_steps: Steps, floor: Number) -> None:
    at_least("total_steps", total_steps, 1)
    ordered("floor", floor, "peak", peak)


@schedule(check=check_exponential)
def exponential(
    step: Tensor,
    peak: Number,
    rate: Number,
    *,
    every: Steps = 1,
    staircase: bool = False,
    floor: Number | None = None,
) -> Tensor:
    r"""``peak`` times ``rate`` for each ``every`` steps, not below ``floor``.

    .. math:: s(t) = \max(\text{peak} \cdot \text{rate}^{t / \text{every}},\ \text{floor})

    With ``staircase`` the exponent is rounded down, and the value falls at whole multiples of ``every``.

    Endpoints: exactly ``peak`` at 0. It has no end: it falls for ever, towards 0 or down to ``floor``. ``rate`` is at
    most 1, as a value that grows for ever is not finite at every step: a rise has an end, ``warmup_exponential``.

    Equivalents: ``torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=rate)``, with ``every=1``.
    ``optax.exponential_decay(peak, every, rate, staircase=staircase, end_value=floor)``, its ``transition_begin=n``
    being ``.shift(n)`` here.
    """
    return decayed(step, peak, rate, every, staircase, floor)


def decayed(step: Tensor, peak: Number, rate: Number, every: Steps, staircase: bool, floor: Number | None) -> Tensor:
    """The formula of ``exponential``."""
    value = peak * rate ** (periods(step, every) if staircase else step / every)
    return value if floor is None else torch.clamp(value, min=floor)


@schedule(check=_check_step_decay)
def step_decay(step: Tensor, peak: Number, every: Steps, *, rate: Number = 0.1) -> Tensor:
    r"""``peak``, multiplied by ``rate`` after each ``every`` steps.

    .. math:: s(t) = \text{peak} \cdot \text{rate}^{\lfloor t / \text{every} \rfloor}

    Endpoints: exactly ``peak`` up to step ``every - 1``. It has no end.

    Equivalents: ``torch.optim.lr_scheduler.StepLR(optimizer, every, gamma=rate)``; timm's ``StepLRScheduler`` without
    its warm-up; ``exponential(peak, rate, every=every, staircase=True)``.
    """
    return peak * rate ** periods(step, every)


@schedule(check=_check_tanh_decay)
def tanh_decay(
    step: Tensor, peak: Number, total_steps: Steps, *, floor: Number = 0.0, lower: Number = -7.0, upper: Number = 3.0
) -> Tensor:
    r"""A hyperbolic tangent, read from ``lower`` to ``upper``: high for long, then quickly down.

    .. math:: s(t) = \text{floor} + \frac{\text{peak} - \text{floor}}{2}
        \left(1 - \tanh\left(\text{lower} + (\text{upper} - \text{lower}) \min(t / T, 1)\right)\right),
        \qquad T = \text{total\_steps}

    Source: Hsueh, Li and Wu, "Stochastic Gradient Descent with Hyperbolic-Tangent Decay on Classification", WACV 2019,
    https://arxiv.org/abs/1806.01593.

    Endpoints: near ``peak`` at 0 and near ``floor`` at ``total_steps``, held from there on: with the default bounds a
    share of 8.3e-7 below the one and of 2.5e-3 above the other. ``sigmoid_decay`` reaches both.

    Equivalents: timm's ``TanhLRScheduler`` of one cycle before ``total_steps``, from where timm's is ``lr_min``.
    """
    reading = between(lower, upper, progress(step, total_steps))
    return between(floor, peak, (1 - torch.tanh(reading)) / 2)


@schedule(check=_check_sigmoid_decay)
def sigmoid_decay(
    step: Tensor,
    peak: Number,
    total_steps: Steps,
    *,
    floor: Number = 0.0,
    steepness: Number = 10.0,
    midpoint: Number = 0.5,
) -> Tensor:
    r"""A falling sigmoid, stretched so that it begins at ``peak`` and ends at ``floor``.

    .. math:: s(t) = \text{floor} + (\text{peak} - \text{floor}) \frac{g(p) - g(1)}{g(0) - g(1)}, \qquad
        g(p) = \frac{1}{1 + e^{k (p - m)}},\ p = \min(t / T, 1)

    with ``T = total_steps``, ``k = steepness`` and ``m = midpoint``, the share of the steps where it falls fastest.
    ``tanh_decay`` is the same curve without the stretch, with ``lower = -k m / 2`` and ``upper = k (1 - m) / 2``.

    Endpoints: ``peak`` at 0 (to rounding), exactly ``floor`` from ``total_steps``.
    """
    over = progress(step, total_steps)
    # The quotient above with its differences taken by hand, so that nothing overflows or cancels:
    # 1 - exp(-k (1 - p)) over 1 - exp(-k), times g(p) / g(0).
    scaled = steepness * over
    rest = torch.expm1(scaled - steepness) * torch.sigmoid(steepness * midpoint - scaled)
    start = torch.zeros((), dtype=step.dtype, device=step.device)
    whole = torch.expm1(start - steepness) * torch.sigmoid(start + steepness * midpoint)
    return between(floor, peak, torch.clamp(rest / whole, max=1.0))


@schedule(check=_check_one_minus_sqrt)
def one_minus_sqrt(step: Tensor, peak: Number, total_steps: Steps, *, floor: Number = 0.0) -> Tensor:
    r"""A root: from ``peak`` at step 0, steeply at first, down to ``floor`` at ``total_steps``, held from there on.

    .. math:: s(t) = \text{floor} + (\text{peak} - \text{floor}) \left(1 - \sqrt{\min(t / T, 1)}\right),
        \qquad T = \text{total\_steps}

    Source: Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", NeurIPS 2024,
    https://arxiv.org/abs/2405.18392, where it is the decay of ``wsd``.

    Endpoints: exactly ``peak`` at 0, exactly ``floor`` from ``total_steps``. The slope at step 0 is infinite; the
    derivatives there are taken to be 0.
    """
    return between(peak, floor, raised(progress(step, total_steps), 0.5))
