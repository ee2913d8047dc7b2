"""The curves that torch's schedulers follow where no other constructor has them: what ``from_torch`` is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from purestep.schedules._curves import between, half_cosine, like, or_one
from purestep.schedules._decorator import schedule
from purestep.schedules._hyperparameters import Number, Steps, at_least
from purestep.schedules._schedule import Schedule
from purestep.schedules._steps import is_concrete

_LONGEST_PRODUCT = 10_000_000


def _check_period(peak: Number, period: Steps, floor: Number) -> None:
    at_least("period", period, 1)


def _check_every(peak: Number, rate: Number, every: Steps) -> None:
    at_least("every", every, 1)


def _check_one_cycle(values: tuple[Number, ...], times: tuple[Number, ...], total_steps: Steps, anneal: str) -> None:
    if len(values) != len(times) or len(values) < 2:
        raise ValueError(f"values must be as many as times, and two or more, got {len(values)} and {len(times)}")
    at_least("total_steps", total_steps, 1)


@schedule(check=_check_period)
def torch_cosine(step: Tensor, peak: Number, period: Steps, *, floor: Number = 0.0) -> Tensor:
    r"""A cosine from ``peak`` down to ``floor`` at step ``period``, up again to ``peak`` at twice that, and so on.

    .. math:: s(t) = \text{floor} + (\text{peak} - \text{floor}) \frac{1 + \cos(\pi t / \text{period})}{2}

    It is what ``torch.optim.lr_scheduler.CosineAnnealingLR`` does past its ``T_max``. ``cosine`` holds its floor.
    """
    return between(floor, peak, _half_wave(step, period))


@schedule(check=_check_every)
def torch_powers(step: Tensor, peak: Number, rate: Number, *, every: Steps = 1) -> Tensor:
    r"""``peak`` times ``rate`` for each whole ``every`` steps, whatever the sign of ``rate``.

    .. math:: s(t) = \text{peak} \cdot \text{rate}^{\lfloor t / \text{every} \rfloor}

    It is what torch's ``ExponentialLR`` and ``StepLR`` do with a ``gamma`` that ``exponential`` and ``step_decay``
    refuse: above 1 it overflows in the end, as in torch.
    """
    return peak * like(step, rate) ** torch.floor(step / every)


@schedule(check=_check_one_cycle)
def torch_one_cycle(
    step: Tensor,
    values: tuple[Number, ...],
    times: tuple[Number, ...],
    total_steps: Steps,
    *,
    anneal: Literal["cosine", "linear"] = "cosine",
) -> Tensor:
    r"""From one value to the next, each at its time, which may be a fraction of a step.

    .. math:: s(t) = v_i + (v_{i+1} - v_i)\, e\!\left(\frac{t - \tau_i}{\tau_{i+1} - \tau_i}\right),
        \quad \tau_i < t \le \tau_{i+1}, \qquad e(p) = \frac{1 - \cos \pi p}{2} \ \text{or}\ p

    It is what ``torch.optim.lr_scheduler.OneCycleLR`` does: a peak between two steps is passed by, and at step
    ``total_steps``, one past the last time, the last piece goes on beyond its end. torch raises after that step; here
    the last value is held.
    """
    value = like(step, values[-1]) + 0.0 * step
    for i in reversed(range(len(times) - 1)):
        start, end, over = values[i], values[i + 1], (step - times[i]) / (times[i + 1] - times[i])
        # In torch's order: a last value that is a millionth of the first would show another rounding.
        piece = (end - start) * over + start if anneal == "linear" else end + (start - end) * half_cosine(over)
        value = torch.where(step <= (total_steps if i == len(times) - 2 else times[i + 1]), piece, value)
    return value


@schedule
def torch_lambda(step: Tensor, f: Callable[[int], float]) -> Tensor:
    """``f(step)``, for a Python function of an int as ``torch.optim.lr_scheduler.LambdaLR`` takes it.

    It is asked step by step, with ints (with floats between two steps). Where the steps' values cannot be read, as
    inside ``compile``, ``vmap`` and ``grad``, it is called with the float64 tensor itself, which a function made of
    arithmetic can take as well.
    """
    if not _readable(step):
        return f(step) + 0.0 * step  # type: ignore[arg-type]
    values = [float(f(int(t) if t.is_integer() else t)) for t in step.reshape(-1).tolist()]
    return torch.tensor(values, dtype=step.dtype, device=step.device).reshape(step.shape)


@schedule
def torch_products(step: Tensor, f: Callable[[int], float]) -> Tensor:
    r"""The product of a Python function's values, as ``torch.optim.lr_scheduler.MultiplicativeLR`` takes it.

    .. math:: s(t) = \prod_{i=1}^{t} f(i)

    It takes as many calls as there are steps, so it can be asked for the first ten million steps only, and not inside
    ``compile``, ``vmap`` or ``grad``: ``multiplicative(peak, [f(1), f(2), ...])`` is a table of the same.
    """
    if not _readable(step):
        raise TypeError(
            "the factors of a MultiplicativeLR are asked for one by one, which compile, vmap and grad cannot do: "
            "multiplicative(peak, [f(1), f(2), ...]) is a table of them"
        )
    steps = [int(t) for t in step.reshape(-1).tolist()]
    if max(steps, default=0) > _LONGEST_PRODUCT:
        raise ValueError(
            f"step must be at most {_LONGEST_PRODUCT} for a product of a function's values, got {max(steps)}"
        )
    products = [1.0]
    for i in range(1, max(steps, default=0) + 1):
        products.append(products[-1] * float(f(i)))
    return torch.tensor([products[t] for t in steps], dtype=step.dtype, device=step.device).reshape(step.shape)


@schedule(check=lambda peak, period, before, after: at_least("period", period, 1))
def torch_rebound(step: Tensor, peak: Number, period: Steps, before: Schedule, after: Schedule) -> Tensor:
    r"""A cosine times other schedules, up to the cosine's first zero; after it, what torch's chain makes of them.

    .. math:: s(t) = \text{peak} \cdot c(t) \cdot \begin{cases} b(t)\, a(t) & t \le T \\
        \dfrac{b(t)\, a(t)}{b(M + 1)\, a(M)} & t > T \end{cases} \qquad c(t) = \frac{1 + \cos(\pi t / T)}{2}

    with ``T = period``, ``b = before``, ``a = after`` and ``M`` the last zero of ``c`` before t. It is what
    ``torch.optim.lr_scheduler.ChainedScheduler`` does with a ``CosineAnnealingLR`` between other schedulers: from each
    zero the cosine rises on the base rate, without what the others had made of it.
    """
    arch, zero = _last_zero(step, period)
    lost = torch.where(arch > 0, before(zero + 1) * after(zero), 1.0 + 0.0 * step)
    return peak * _half_wave(step, period) * before(step) * after(step) / or_one(lost)


def _half_wave(step: Tensor, period: Number) -> Tensor:
    """``(1 + cos(pi * step / period)) / 2`` for any step, as torch rounds it: it multiplies from each zero on."""
    # Further on than anybody compares, whole waves are taken off first, without which the step would be lost.
    place = torch.where(step < 2.0**20, step, torch.remainder(step, 2 * period))
    arch, zero = _last_zero(place, period)
    rise = (1 - torch.cos(torch.pi / like(step, period))) / 2
    gained = torch.where(arch > 0, rise / or_one(_cosine(zero + 1, period)), 1.0 + 0.0 * step)
    return _cosine(place, period) * gained


def _cosine(step: Tensor, period: Number) -> Tensor:
    return (1 + torch.cos(torch.pi * step / period)) / 2


def _last_zero(step: Tensor, period: Number) -> tuple[Tensor, Tensor]:
    """Return how many times a cosine was at its lowest before ``step``, and when last, or 0."""
    arch = torch.clamp(torch.floor((step - period - 1) / (2 * period)) + 1, min=0.0)
    return arch, torch.clamp((2 * arch - 1) * period, min=0.0)


def _readable(step: Tensor) -> bool:
    return not torch.compiler.is_compiling() and is_concrete(step) and not step.requires_grad
