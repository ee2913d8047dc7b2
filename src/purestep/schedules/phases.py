"""Schedules of several phases: what trains transformers and speech models, and the end of an averaging run."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from purestep.schedules._curves import after_warmup, between, eased, like, or_one, progress, raised
from purestep.schedules._decorator import schedule
from purestep.schedules._hyperparameters import Number, Steps, above, at_least, ordered
from purestep.schedules._schedule import Schedule

Decay: TypeAlias = Literal["linear", "cosine", "one_minus_sqrt"]


def _check_noam(d_model: Steps, warmup_steps: Steps, factor: Number) -> None:
    at_least("d_model", d_model, 1)
    at_least("warmup_steps", warmup_steps, 0)
    at_least("factor", factor, 0)


def _check_inverse_sqrt(peak: Number, warmup_steps: Steps, timescale: Number | None) -> None:
    at_least("warmup_steps", warmup_steps, 0)
    if timescale is not None:
        above("timescale", timescale, 0)


def _check_wsd(
    peak: Number,
    warmup_steps: Steps,
    stable_steps: Steps,
    decay_steps: Steps,
    initial: Number,
    floor: Number,
    decay: Decay,
) -> None:
    at_least("warmup_steps", warmup_steps, 0)
    at_least("stable_steps", stable_steps, 0)
    at_least("decay_steps", decay_steps, 1)
    ordered("initial", initial, "peak", peak)
    ordered("floor", floor, "peak", peak)


def _check_tri_stage(
    peak: Number,
    warmup_steps: Steps,
    hold_steps: Steps,
    decay_steps: Steps,
    initial: Number | None,
    final: Number | None,
) -> None:
    above("peak", peak, 0)
    at_least("warmup_steps", warmup_steps, 0)
    at_least("hold_steps", hold_steps, 0)
    at_least("decay_steps", decay_steps, 1)
    if initial is not None:
        ordered("initial", initial, "peak", peak)
    if final is not None:
        above("final", final, 0)
        ordered("final", final, "peak", peak)


def _check_swa_anneal(inner: Schedule | Number, swa_rate: Number, start: Steps, steps: Steps, kind: str) -> None:
    at_least("start", start, 0)
    at_least("steps", steps, 0)


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


@schedule(check=_check_inverse_sqrt)
def inverse_sqrt(step: Tensor, peak: Number, warmup_steps: Steps, *, timescale: Number | None = None) -> Tensor:
    r"""A straight line from 0 up to ``peak``, then an inverse square root.

    .. math:: s(t) = \text{peak} \cdot \begin{cases} t / W & t < W \\
        \sqrt{\tau / (t - W + \tau)} & t \ge W \end{cases} \qquad W = \text{warmup\_steps},\ \tau = \text{timescale}

    ``timescale`` is ``warmup_steps`` where not given (10,000 where there is no warm-up): then the fall is that of
    ``sqrt(W / t)``.

    Source: Zhai et al., "Scaling Vision Transformers", CVPR 2022, https://arxiv.org/abs/2106.04560, section 3.5.

    Endpoints: exactly 0 at 0, exactly ``peak`` at ``warmup_steps``. It has no end.

    Equivalents: transformers' ``get_inverse_sqrt_schedule(optimizer, warmup_steps, timescale)``.
    """
    if timescale is not None:
        scale = timescale
    elif isinstance(warmup_steps, Tensor):
        scale = torch.where(warmup_steps > 0, warmup_steps, 10_000.0)
    else:
        scale = warmup_steps or 10_000
    fall = (1 + torch.clamp(step - warmup_steps, min=0.0) / scale) ** -0.5
    return peak * torch.where(step < warmup_steps, step / or_one(warmup_steps), fall)


@schedule(check=_check_wsd)
def wsd(
    step: Tensor,
    peak: Number,
    warmup_steps: Steps,
    stable_steps: Steps,
    decay_steps: Steps,
    *,
    initial: Number = 0.0,
    floor: Number = 0.0,
    decay: Decay = "linear",
) -> Tensor:
    r"""Warm-up, stable, decay: a line up to ``peak``, ``peak``, and down to ``floor``, held from there on.

    .. math:: s(t) = \begin{cases}
        \text{initial} + (\text{peak} - \text{initial})\, t / W & t < W \\
        \text{peak} & W \le t < W + S \\
        \text{peak} + (\text{floor} - \text{peak})\, e(p) & t \ge W + S \end{cases} \qquad
        p = \min\left(\frac{t - W - S}{D}, 1\right)

    with ``W = warmup_steps``, ``S = stable_steps``, ``D = decay_steps``, and ``e(p)`` is ``p`` for the decay
    ``"linear"``, ``(1 - cos(pi p)) / 2`` for ``"cosine"`` and ``sqrt(p)`` for ``"one_minus_sqrt"``.

    Source: Hu et al., "MiniCPM", 2024, https://arxiv.org/abs/2404.06395; the decay by a root: Hägele et al., NeurIPS
    2024, https://arxiv.org/abs/2405.18392.

    Endpoints: exactly ``initial`` at 0, exactly ``peak`` from ``W`` to ``W + S``, exactly ``floor`` from ``W + S + D``.
    Where the root begins its slope is infinite; the derivatives there are taken to be 0.

    Equivalents: transformers' ``get_wsd_schedule``, whose warm-up begins at its minimum (``initial=floor`` here) and
    whose decay is a cosine by default.
    """
    over = torch.clamp(progress(step - warmup_steps - stable_steps, decay_steps), min=0.0)
    fall = between(peak, floor, raised(over, 0.5) if decay == "one_minus_sqrt" else eased(over, decay))
    return after_warmup(step, warmup_steps, initial, peak, fall)


@schedule(check=_check_tri_stage)
def tri_stage(
    step: Tensor,
    peak: Number,
    warmup_steps: Steps,
    hold_steps: Steps,
    decay_steps: Steps,
    *,
    initial: Number | None = None,
    final: Number | None = None,
) -> Tensor:
    r"""A line up to ``peak``, ``peak``, and an exponential down to ``final``, held from there on.

    .. math:: s(t) = \begin{cases}
        \text{initial} + (\text{peak} - \text{initial})\, t / W & t < W \\
        \text{peak} & W \le t < W + H \\
        \text{peak} \left(\text{final} / \text{peak}\right)^{p} & t \ge W + H \end{cases} \qquad
        p = \min\left(\frac{t - W - H}{D}, 1\right)

    with ``W = warmup_steps``, ``H = hold_steps``, ``D = decay_steps``. ``initial`` and ``final`` are a hundredth of
    ``peak`` where not given.

    Source: Park et al., "SpecAugment", Interspeech 2019, https://arxiv.org/abs/1904.08779, section 3.2; as in fairseq.

    Endpoints: exactly ``initial`` at 0, exactly ``peak`` from ``W`` to ``W + H``, exactly ``final`` from ``W + H + D``.

    Equivalents: fairseq's ``tri_stage``; pytorch-lr-scheduler's ``TriStageLRScheduler``, and with ``hold_steps=0`` its
    ``TransformerLRScheduler``, which is not the schedule of "Attention is all you need" (that is ``noam``).
    """
    initial = peak / 100 if initial is None else initial
    final = peak / 100 if final is None else final
    over = torch.clamp(progress(step - warmup_steps - hold_steps, decay_steps), min=0.0)
    fall = peak * like(step, final / peak) ** over
    fall = torch.where(over < 1, fall, like(step, final))
    return after_warmup(step, warmup_steps, initial, peak, fall)


@schedule(check=_check_swa_anneal)
def swa_anneal(
    step: Tensor,
    inner: Schedule | Number,
    swa_rate: Number,
    start: Steps,
    steps: Steps,
    *,
    kind: Literal["cosine", "linear"] = "cosine",
) -> Tensor:
    r"""``inner`` before step ``start``; from its value there to ``swa_rate`` in ``steps`` steps, held from there on.

    .. math:: s(t) = \begin{cases} \text{inner}(t) & t < \text{start} \\
        \text{inner}(\text{start}) + (\text{swa\_rate} - \text{inner}(\text{start}))\, e(p) & t \ge \text{start}
        \end{cases} \qquad p = \min\left(\frac{t - \text{start}}{\text{steps}}, 1\right)

    ``e(p)`` is ``(1 - cos(pi p)) / 2``, or ``p`` if ``kind`` is ``"linear"``. ``inner`` may be a number, which is held.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018,
    https://arxiv.org/abs/1803.05407.

    Endpoints: exactly ``swa_rate`` from ``start + steps``; without ``steps``, from ``start``.

    Equivalents: ``torch.optim.swa_utils.SWALR(optimizer, swa_lr, anneal_epochs, anneal_strategy)``, which is stepped
    from ``start`` on in the place of the scheduler before.
    """
    before = inner(step) if isinstance(inner, Schedule) else like(step, inner)
    at_start = torch.clamp(like(step, start), min=0.0)
    from_there = inner(at_start) if isinstance(inner, Schedule) else like(step, inner)
    over = torch.clamp(progress(step - start, steps), min=0.0)
    return torch.where(step < start, before, torch.lerp(from_there, like(step, swa_rate), eased(over, kind)))
