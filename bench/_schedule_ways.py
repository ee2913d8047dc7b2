"""Each schedule, and the torch expression that one would write in its place: the same values, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from purestep import schedules
from purestep.schedules import Schedule

PEAK, FLOOR, WARMUP, TOTAL = 1e-3, 1e-5, 1_000, 900_000
REST = TOTAL - WARMUP


class Pair(NamedTuple):
    """A schedule, and the same by hand."""

    schedule: Schedule
    expression: Callable[[Tensor], Tensor]  # of the step in float64


def pairs() -> dict[str, Pair]:
    """Return a pair for each constructor, by its name; not for ``function``, which is the expression, nor for
    ``noise``, whose generator nobody writes by hand.
    """
    s = schedules
    cosine = s.cosine(PEAK, TOTAL)
    return {
        "constant": Pair(s.constant(PEAK), lambda t: torch.full_like(t, PEAK)),
        "linear": Pair(s.linear(PEAK, FLOOR, TOTAL), lambda t: line(PEAK, FLOOR, t / TOTAL)),
        "polynomial": Pair(
            s.polynomial(PEAK, TOTAL, floor=FLOOR, power=2.0),
            lambda t: FLOOR + (PEAK - FLOOR) * (1 - t / TOTAL).clamp(0, 1) ** 2.0,
        ),
        "cosine": Pair(s.cosine(PEAK, TOTAL, floor=FLOOR), lambda t: fall(PEAK, FLOOR, t / TOTAL)),
        "exponential": Pair(s.exponential(PEAK, 0.5, every=TOTAL), lambda t: PEAK * 0.5 ** (t / TOTAL)),
        "step_decay": Pair(s.step_decay(PEAK, TOTAL // 3), lambda t: PEAK * 0.1 ** (t // (TOTAL // 3))),
        "one_minus_sqrt": Pair(
            s.one_minus_sqrt(PEAK, TOTAL, floor=FLOOR),
            lambda t: PEAK + (FLOOR - PEAK) * (t / TOTAL).clamp(max=1).sqrt(),
        ),
        "tanh_decay": Pair(
            s.tanh_decay(PEAK, TOTAL, floor=FLOOR),
            lambda t: FLOOR + (PEAK - FLOOR) * (1 - torch.tanh(-7 + 10 * (t / TOTAL).clamp(max=1))) / 2,
        ),
        "sigmoid_decay": Pair(s.sigmoid_decay(PEAK, TOTAL, floor=FLOOR), sigmoid),
        "multi_step": Pair(
            s.multi_step(PEAK, (300_000, 600_000)),
            lambda t: PEAK * 0.1 ** ((t >= 300_000).double() + (t >= 600_000).double()),
        ),
        "piecewise_constant": Pair(
            s.piecewise_constant((PEAK, PEAK / 2, FLOOR), (300_000, 600_000)),
            lambda t: torch.where(t < 300_000, PEAK, torch.where(t < 600_000, t.new_tensor(PEAK / 2), FLOOR)),
        ),
        "piecewise_interpolate": Pair(
            s.piecewise_interpolate((0.0, PEAK, FLOOR), (WARMUP, TOTAL)),
            lambda t: torch.where(t < WARMUP, PEAK * t / WARMUP, line(PEAK, FLOOR, (t - WARMUP) / REST)),
        ),
        "multiplicative": Pair(s.multiplicative(PEAK, (0.9, 0.8, 0.7)), multiplicative),
        "warm_restarts": Pair(s.warm_restarts(PEAK, 1_000, multiplier=2.0), warm_restarts),
        "one_cycle": Pair(
            s.one_cycle(PEAK, TOTAL),
            lambda t: torch.where(
                t < 0.3 * TOTAL,
                fall(PEAK / 25, PEAK, t / (0.3 * TOTAL)),
                fall(PEAK, PEAK / 25e4, (t - 0.3 * TOTAL) / (0.7 * TOTAL)),
            ),
        ),
        "one_cycle_momentum": Pair(
            s.one_cycle_momentum(0.85, 0.95, TOTAL),
            lambda t: torch.where(
                t < 0.3 * TOTAL,
                fall(0.95, 0.85, t / (0.3 * TOTAL)),
                fall(0.85, 0.95, (t - 0.3 * TOTAL) / (0.7 * TOTAL)),
            ),
        ),
        "cyclic": Pair(
            s.cyclic(FLOOR, PEAK, 2_000), lambda t: FLOOR + (PEAK - FLOOR) * (1 - (t % 4_000 / 2_000 - 1).abs())
        ),
        "cyclic_momentum": Pair(
            s.cyclic_momentum(0.85, 0.95, 2_000, mode="exp_range", gamma=0.9999),
            lambda t: 0.95 - (0.95 - 0.85) * (1 - (t % 4_000 / 2_000 - 1).abs()) * 0.9999**t,
        ),
        "inverse_sqrt": Pair(
            s.inverse_sqrt(PEAK, WARMUP),
            lambda t: PEAK * torch.where(t < WARMUP, t / WARMUP, (WARMUP / t.clamp(min=WARMUP)).sqrt()),
        ),
        "noam": Pair(
            s.noam(512, WARMUP),
            lambda t: 512**-0.5 * torch.minimum((t + 1) ** -0.5, (t + 1) * WARMUP**-1.5),
        ),
        "wsd": Pair(
            s.wsd(PEAK, WARMUP, 700_000, 199_000, floor=FLOOR),
            lambda t: torch.where(
                t < WARMUP, PEAK * t / WARMUP, line(PEAK, FLOOR, ((t - 701_000) / 199_000).clamp(min=0))
            ),
        ),
        "tri_stage": Pair(
            s.tri_stage(PEAK, WARMUP, 700_000, 199_000, initial=FLOOR, final=FLOOR),
            lambda t: torch.where(
                t < WARMUP,
                FLOOR + (PEAK - FLOOR) * t / WARMUP,
                PEAK * (FLOOR / PEAK) ** ((t - 701_000) / 199_000).clamp(0, 1),
            ),
        ),
        "swa_anneal": Pair(
            s.swa_anneal(cosine, FLOOR, 700_000, 100_000),
            lambda t: torch.where(
                t < 700_000, fall(PEAK, 0.0, t / TOTAL), fall(cosine(700_000).item(), FLOOR, (t - 700_000) / 100_000)
            ),
        ),
        "warmup": Pair(
            s.warmup(cosine, WARMUP),
            lambda t: torch.where(t < WARMUP, PEAK * t / WARMUP, fall(PEAK, 0.0, (t - WARMUP) / TOTAL)),
        ),
        "warmup_cosine": Pair(
            s.warmup_cosine(PEAK, WARMUP, TOTAL),
            lambda t: torch.where(t < WARMUP, PEAK * t / WARMUP, fall(PEAK, 0.0, (t - WARMUP) / REST)),
        ),
        "warmup_linear": Pair(
            s.warmup_linear(PEAK, WARMUP, TOTAL),
            lambda t: torch.where(t < WARMUP, PEAK * t / WARMUP, line(PEAK, 0.0, (t - WARMUP) / REST)),
        ),
        "warmup_exponential": Pair(
            s.warmup_exponential(PEAK, WARMUP, 0.5, every=TOTAL),
            lambda t: torch.where(t < WARMUP, PEAK * t / WARMUP, PEAK * 0.5 ** ((t - WARMUP) / TOTAL)),
        ),
        "warmup_constant": Pair(s.warmup_constant(PEAK, WARMUP), lambda t: PEAK * (t / WARMUP).clamp(max=1)),
        "resnet_warmup": Pair(s.resnet_warmup(0.1, 400), lambda t: torch.where(t < 400, t.new_tensor(0.01), 0.1)),
        "join": Pair(
            s.join([s.linear(0.0, PEAK, WARMUP), cosine], at=[WARMUP]),
            lambda t: torch.where(t < WARMUP, PEAK * t / WARMUP, fall(PEAK, 0.0, (t - WARMUP) / TOTAL)),
        ),
        "maximum": Pair(s.maximum(cosine, FLOOR), lambda t: fall(PEAK, 0.0, t / TOTAL).clamp(min=FLOOR)),
        "minimum": Pair(
            s.minimum(cosine, s.linear(0.0, PEAK, TOTAL)),
            lambda t: torch.minimum(fall(PEAK, 0.0, t / TOTAL), line(0.0, PEAK, t / TOTAL)),
        ),
    }


def line(start: float, end: float, over: Tensor) -> Tensor:
    """From ``start`` at 0 to ``end`` at 1, held from there on."""
    return start + (end - start) * over.clamp(max=1)


def fall(start: float, end: float, over: Tensor) -> Tensor:
    """The same by half a cosine."""
    return end + 0.5 * (start - end) * (1 + torch.cos(math.pi * over.clamp(0, 1)))


def sigmoid(t: Tensor) -> Tensor:
    first, last = 1 / (1 + math.exp(-5.0)), 1 / (1 + math.exp(5.0))
    over = (t / TOTAL).clamp(max=1)
    return FLOOR + (PEAK - FLOOR) * (torch.sigmoid(-10 * (over - 0.5)) - last) / (first - last)


def multiplicative(t: Tensor) -> Tensor:
    table = PEAK * torch.tensor([1.0, 0.9, 0.8, 0.7], dtype=torch.float64, device=t.device).cumprod(0)
    return table[t.clamp(max=3).long()]


def warm_restarts(t: Tensor) -> Tensor:
    """As torch's scheduler finds its cycle: the logarithm misses the beginning of some."""
    cycle = torch.floor(torch.log2(t / 1_000 + 1))
    begins = 1_000 * (2**cycle - 1)
    return fall(PEAK, 0.0, (t - begins) / (1_000 * 2**cycle))
