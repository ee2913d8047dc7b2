"""Schedules that begin with a warm-up. A warm-up of length 0 is legal, and means none."""

from __future__ import annotations

import torch
from torch import Tensor

from purestep.schedules._curves import between, half_cosine, or_one, progress, raised
from purestep.schedules._decorator import schedule
from purestep.schedules._hyperparameters import Number, Steps, above, at_least, ordered


def _check_warmup_cosine(
    peak: Number, warmup_steps: Steps, total_steps: Steps, initial: Number, floor: Number, power: Number
) -> None:
    at_least("warmup_steps", warmup_steps, 0)
    at_least("total_steps", total_steps, 1)
    ordered("warmup_steps", warmup_steps, "total_steps", total_steps, strictly=True)
    above("power", power, 0)
    ordered("initial", initial, "peak", peak)
    ordered("floor", floor, "peak", peak)


def _check_noam(d_model: Steps, warmup_steps: Steps, factor: Number) -> None:
    at_least("d_model", d_model, 1)
    at_least("warmup_steps", warmup_steps, 0)
    at_least("factor", factor, 0)


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
    # Both lines are finite where the other is chosen, so neither needs its steps held back.
    rise = between(initial, peak, step / or_one(warmup_steps))
    over = progress(step - warmup_steps, total_steps - warmup_steps)
    fall = between(floor, peak, raised(half_cosine(over), power))
    return torch.where(step < warmup_steps, rise, fall)


@schedule(check=_check_noam)
def noam(step: Tensor, d_model: Steps, warmup_steps: Steps, *, factor: Number = 1.0) -> Tensor:
    r"""A straight line up for ``warmup_steps``, then the inverse square root of the step.

    .. math:: s(t) = \text{factor} \cdot d_{\text{model}}^{-1/2} \min(n^{-1/2},\; n\, W^{-3/2}),
        \qquad n = t + 1,\ W = \text{warmup\_steps}

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, https://arxiv.org/abs/1706.03762, equation 3.
    The paper counts its steps from 1, purestep counts the updates already made, from 0. So the paper's step is
    ``n = t + 1``, the first update has the paper's first rate, and nothing is divided by zero.

    Endpoints: ``factor * (d_model * warmup_steps) ** -0.5``, the largest value, at step ``warmup_steps - 1``. It has no
    end: it falls for ever towards 0.

    Equivalents: a ``LambdaLR`` on a base rate of 1, which is how torch's, tensor2tensor's and the Annotated
    Transformer's users write it; not transformers' ``get_inverse_sqrt_schedule``, whose peak is the base rate, and not
    the "transformer" schedule of pytorch-lr-scheduler.
    """
    count = step + 1
    rise = count * or_one(warmup_steps) ** -1.5
    shape = torch.where(count < warmup_steps, rise, count**-0.5)
    return factor * d_model**-0.5 * shape
