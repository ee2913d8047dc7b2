"""Schedules of one phase, that hold their last value after it."""

from __future__ import annotations

from torch import Tensor

from purestep.schedules._curves import between, filled, half_cosine, progress, raised
from purestep.schedules._decorator import schedule
from purestep.schedules._hyperparameters import Number, Steps, above, at_least, ordered


def _check_linear(start: Number, end: Number, steps: Steps) -> None:
    at_least("steps", steps, 1)


def _check_polynomial(peak: Number, total_steps: Steps, floor: Number, power: Number, k_decay: Number) -> None:
    at_least("total_steps", total_steps, 1)
    above("power", power, 0)
    above("k_decay", k_decay, 0)
    ordered("floor", floor, "peak", peak)


def _check_cosine(peak: Number, total_steps: Steps, floor: Number, power: Number) -> None:
    at_least("total_steps", total_steps, 1)
    above("power", power, 0)
    ordered("floor", floor, "peak", peak)


@schedule
def constant(step: Tensor, value: Number) -> Tensor:
    r"""The same value at every step.

    .. math:: s(t) = \text{value}

    Equivalents: ``optax.constant_schedule(value)``; transformers' ``get_constant_schedule``; in torch, no scheduler.
    """
    return filled(step, value)


@schedule(check=_check_linear)
def linear(step: Tensor, start: Number, end: Number, steps: Steps) -> Tensor:
    r"""A straight line from ``start`` at step 0 to ``end`` at step ``steps``, and ``end`` from there on.

    .. math:: s(t) = \text{start} + (\text{end} - \text{start}) \min(t / N, 1), \qquad N = \text{steps}

    Endpoints: exactly ``start`` at 0, exactly ``end`` from ``steps``. It may rise or fall, and lie below 0.

    Equivalents: ``torch.optim.lr_scheduler.LinearLR(optimizer, start_factor, end_factor, total_iters)`` is
    ``linear(base * start_factor, base * end_factor, total_iters)``. ``optax.linear_schedule(start, end, steps)``; its
    ``transition_begin=n`` is ``.shift(n)`` here, and its ``transition_steps=0``, a constant, is an error here.
    """
    return between(start, end, progress(step, steps))


@schedule(check=_check_polynomial)
def polynomial(
    step: Tensor,
    peak: Number,
    total_steps: Steps,
    *,
    floor: Number = 0.0,
    power: Number = 1.0,
    k_decay: Number = 1.0,
) -> Tensor:
    r"""A power of what remains: from ``peak`` at step 0 down to ``floor`` at step ``total_steps``, held from there on.

    .. math:: s(t) = \text{floor} + (\text{peak} - \text{floor})
        \left(1 - \min(t / T, 1)^{k}\right)^{\text{power}}, \qquad T = \text{total\_steps},\ k = \text{k\_decay}

    Source of ``k_decay``: Zhang and Li, "k-decay: A New Method For Learning Rate Schedule", 2020,
    https://arxiv.org/abs/2004.05909. Above 1 it holds the rate up for longer and lets it fall faster at the end.

    Endpoints: exactly ``peak`` at 0, exactly ``floor`` from ``total_steps``. For a ``power`` below 1 the slope at the
    end is infinite, for a ``k_decay`` below 1 the slope at the start: the derivatives there are taken to be 0.

    Equivalents: ``torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters, power)``.
    ``optax.polynomial_schedule(peak, floor, power, total_steps)``, its ``transition_begin=n`` being ``.shift(n)`` here.
    timm's ``PolyLRScheduler``, whose ``power`` is 0.5 by default. transformers'
    ``get_polynomial_decay_schedule_with_warmup`` after its warm-up, whose ``lr_end`` is 1e-7 by default.
    """
    remaining = 1 - raised(progress(step, total_steps), k_decay)
    return between(floor, peak, raised(remaining, power))


@schedule(check=_check_cosine)
def cosine(step: Tensor, peak: Number, total_steps: Steps, *, floor: Number = 0.0, power: Number = 1.0) -> Tensor:
    r"""Half a cosine from ``peak`` at step 0 down to ``floor`` at step ``total_steps``, and ``floor`` from there on.

    .. math:: s(t) = \text{floor} + (\text{peak} - \text{floor})
        \left(\frac{1 + \cos(\pi \min(t / T, 1))}{2}\right)^{\text{power}}, \qquad T = \text{total\_steps}

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
    https://arxiv.org/abs/1608.03983, equation 5, without restarts (with them: ``warm_restarts``).

    Endpoints: exactly ``peak`` at 0, exactly ``floor`` from ``total_steps``. For a ``power`` below 1/2 the slope at
    the end is infinite; the derivative at ``total_steps`` and after is taken to be 0.

    Equivalents: ``torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max, eta_min)`` up to ``T_max``, after which
    torch's rises again. ``optax.cosine_decay_schedule(peak, total_steps, alpha, exponent)``, with ``floor`` for
    ``alpha * peak`` and ``power`` for ``exponent``. transformers' ``get_cosine_schedule_with_warmup`` without a
    warm-up, which rises again as torch's does.
    """
    return between(floor, peak, raised(half_cosine(progress(step, total_steps)), power))
