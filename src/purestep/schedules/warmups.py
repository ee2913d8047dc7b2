"""Schedules that begin with a warm-up. A warm-up of length 0 is legal, and means none."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from purestep.schedules._curves import after_warmup, between, eased, half_cosine, like, or_one, progress, raised
from purestep.schedules._decorator import schedule
from purestep.schedules._hyperparameters import Number, Steps, above, at_least, ordered
from purestep.schedules._schedule import Schedule
from purestep.schedules.decays import check_exponential, decayed

Rise: TypeAlias = Literal["linear", "exponential", "constant", "cosine"]


def _check_warmup(inner: Schedule, steps: Steps, initial: Number, kind: Rise) -> None:
    at_least("steps", steps, 0)
    if kind != "exponential":
        return
    above("initial", initial, 0)
    if inner._constant and not torch.compiler.is_compiling():
        first = inner(0).item()
        if first <= 0:
            raise ValueError(f"inner must begin above 0 for an exponential warm-up, got {inner!r}, {first} at step 0")


def _check_warmup_cosine(
    peak: Number, warmup_steps: Steps, total_steps: Steps, initial: Number, floor: Number, power: Number
) -> None:
    _check_warmup_linear(peak, warmup_steps, total_steps, initial, floor)
    above("power", power, 0)


def _check_warmup_linear(peak: Number, warmup_steps: Steps, total_steps: Steps, initial: Number, floor: Number) -> None:
    at_least("warmup_steps", warmup_steps, 0)
    at_least("total_steps", total_steps, 1)
    ordered("warmup_steps", warmup_steps, "total_steps", total_steps, strictly=True)
    ordered("initial", initial, "peak", peak)
    ordered("floor", floor, "peak", peak)


def _check_warmup_exponential(
    peak: Number,
    warmup_steps: Steps,
    rate: Number,
    initial: Number,
    every: Steps,
    staircase: bool,
    floor: Number | None,
) -> None:
    at_least("warmup_steps", warmup_steps, 0)
    ordered("initial", initial, "peak", peak)
    check_exponential(peak, rate, every, staircase, floor)


def _check_warmup_constant(peak: Number, warmup_steps: Steps, initial: Number) -> None:
    at_least("warmup_steps", warmup_steps, 0)
    ordered("initial", initial, "peak", peak)


def _check_resnet_warmup(peak: Number, warmup_steps: Steps, warm: Number) -> None:
    at_least("warmup_steps", warmup_steps, 0)
    ordered("warm", warm, "peak", peak)


@schedule(check=_check_warmup)
def warmup(step: Tensor, inner: Schedule, steps: Steps, *, initial: Number = 0.0, kind: Rise = "linear") -> Tensor:
    r"""A way from ``initial`` to the first value of ``inner``, and then ``inner`` on steps counted from there.

    .. math:: s(t) = \begin{cases} r(t / W) & t < W \\ \text{inner}(t - W) & t \ge W \end{cases} \qquad
        W = \text{steps},\ a = \text{initial},\ b = \text{inner}(0)

    .. math:: r(p) = \begin{cases}
        a + (b - a)\, p & \text{"linear"} \\
        a\, (b / a)^p & \text{"exponential", for positive values} \\
        a & \text{"constant"} \\
        a + (b - a)\, (1 - \cos \pi p) / 2 & \text{"cosine"} \end{cases}

    Source of the linear one: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
    https://arxiv.org/abs/1706.02677.

    Endpoints: exactly ``initial`` at 0 (for ``steps`` of 1 or more), exactly ``inner(t - steps)`` from ``steps``.

    Equivalents: ``optax.join_schedules([linear_schedule(initial, b, steps), inner], [steps])``. timm's ``warmup_t`` and
    ``warmup_lr_init`` with ``warmup_prefix=True``; without it, timm's is ``inner.shift(-steps)`` warmed up.
    """
    after = inner(torch.clamp(step - steps, min=0.0))
    first = inner(like(step, 0.0))
    over = step / or_one(steps)
    if kind == "constant":
        rise = like(step, initial)
    elif kind == "exponential":
        rise = initial * raised(first / initial, torch.clamp(over, max=1.0))
    else:
        rise = torch.lerp(like(step, initial), first, eased(over, kind))
    return torch.where(step < steps, rise, after)


@schedule(check=_check_warmup_cosine)
def warmup_cosine(
    step: Tensor,
    peak: Number,
    warmup_steps: Steps,
    total_steps: Steps,
    *,
    initial: Number = 0.0,
    floor: Number = 0.0,
    power: Number = 1.0,
) -> Tensor:
    r"""A straight line from ``initial`` up to ``peak``, then half a cosine down to ``floor``.

    .. math:: s(t) = \begin{cases}
        \text{initial} + (\text{peak} - \text{initial})\, t / W & t < W \\
        \text{cosine}(\text{peak}, T - W, \text{floor}, \text{power})(t - W) & t \ge W
        \end{cases} \qquad W = \text{warmup\_steps},\ T = \text{total\_steps}

    It is ``linear(initial, peak, W).then(cosine(peak, T - W, floor=floor, power=power), at=W)``.

    Endpoints: exactly ``initial`` at 0, exactly ``peak`` at ``warmup_steps``, exactly ``floor`` from ``total_steps``,
    which counts the warm-up. Step 0 has the rate ``initial``: at its default, 0, the first update moves nothing.

    Equivalents: ``optax.warmup_cosine_decay_schedule(initial, peak, warmup_steps, total_steps, floor, power)``.
    transformers' ``get_cosine_schedule_with_warmup(optimizer, warmup_steps, total_steps)`` up to ``total_steps``, after
    which it rises again. In torch, a ``SequentialLR`` of ``LinearLR`` (whose first factor may not be 0) and
    ``CosineAnnealingLR``.
    """
    over = progress(step - warmup_steps, total_steps - warmup_steps)
    fall = between(floor, peak, raised(half_cosine(over), power))
    return after_warmup(step, warmup_steps, initial, peak, fall)


@schedule(check=_check_warmup_linear)
def warmup_linear(
    step: Tensor,
    peak: Number,
    warmup_steps: Steps,
    total_steps: Steps,
    *,
    initial: Number = 0.0,
    floor: Number = 0.0,
) -> Tensor:
    r"""A straight line from ``initial`` up to ``peak``, then a straight line down to ``floor``.

    .. math:: s(t) = \begin{cases}
        \text{initial} + (\text{peak} - \text{initial})\, t / W & t < W \\
        \text{peak} + (\text{floor} - \text{peak}) \min\left(\frac{t - W}{T - W}, 1\right) & t \ge W
        \end{cases} \qquad W = \text{warmup\_steps},\ T = \text{total\_steps}

    Endpoints: exactly ``initial`` at 0, exactly ``peak`` at ``warmup_steps``, exactly ``floor`` from ``total_steps``,
    which counts the warm-up.

    Equivalents: transformers' ``get_linear_schedule_with_warmup(optimizer, warmup_steps, total_steps)``.
    """
    fall = between(peak, floor, progress(step - warmup_steps, total_steps - warmup_steps))
    return after_warmup(step, warmup_steps, initial, peak, fall)


@schedule(check=_check_warmup_exponential)
def warmup_exponential(
    step: Tensor,
    peak: Number,
    warmup_steps: Steps,
    rate: Number,
    *,
    initial: Number = 0.0,
    every: Steps = 1,
    staircase: bool = False,
    floor: Number | None = None,
) -> Tensor:
    r"""A straight line from ``initial`` up to ``peak``, then ``exponential``.

    .. math:: s(t) = \begin{cases}
        \text{initial} + (\text{peak} - \text{initial})\, t / W & t < W \\
        \max(\text{peak} \cdot \text{rate}^{(t - W) / \text{every}},\ \text{floor}) & t \ge W
        \end{cases} \qquad W = \text{warmup\_steps}

    Endpoints: exactly ``initial`` at 0, exactly ``peak`` at ``warmup_steps``. It has no end. A warm-up that rises
    exponentially is ``warmup(..., kind="exponential")``.

    Equivalents: ``optax.warmup_exponential_decay_schedule(initial, peak, warmup_steps, every, rate,
    staircase=staircase, end_value=floor)``.
    """
    since = torch.clamp(step - warmup_steps, min=0.0)
    fall = decayed(since, peak, rate, every, staircase, floor)
    return after_warmup(step, warmup_steps, initial, peak, fall)


@schedule(check=_check_warmup_constant)
def warmup_constant(step: Tensor, peak: Number, warmup_steps: Steps, *, initial: Number = 0.0) -> Tensor:
    r"""A straight line from ``initial`` up to ``peak``, held from there on.

    .. math:: s(t) = \text{initial} + (\text{peak} - \text{initial}) \min(t / W, 1), \qquad W = \text{warmup\_steps}

    It is ``linear(initial, peak, warmup_steps)``, except that without steps it is ``peak``.

    Endpoints: exactly ``initial`` at 0, exactly ``peak`` from ``warmup_steps``.

    Equivalents: ``optax.warmup_constant_schedule(initial, peak, warmup_steps)``, which without steps is ``initial`` for
    ever. transformers' ``get_constant_schedule_with_warmup``.
    """
    return between(initial, peak, progress(step, warmup_steps))


@schedule(check=_check_resnet_warmup)
def resnet_warmup(step: Tensor, peak: Number, warmup_steps: Steps, *, warm: Number = 0.01) -> Tensor:
    r"""A small rate until the training has taken hold, and then ``peak``.

    .. math:: s(t) = \begin{cases} \text{warm} & t < W \\ \text{peak} & t \ge W \end{cases} \qquad
        W = \text{warmup\_steps}

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385,
    section 4.2: the ResNet of 110 layers begins with 0.01 for some 400 steps and goes on with 0.1, which is divided by
    10 at 32,000 and at 48,000 steps: ``resnet_warmup(0.1, 400) * multi_step(1.0, [32_000, 48_000])``.

    Endpoints: exactly ``warm`` up to ``warmup_steps - 1``, exactly ``peak`` from ``warmup_steps``.
    """
    return torch.where(step < warmup_steps, like(step, warm), like(step, peak))
