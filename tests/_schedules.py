"""What several tests of schedules need: some of every constructor, expressions of them, and torch's rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import purestep.schedules as ps
from purestep.schedules import Schedule, constant, cosine, linear, noam, warmup_cosine


def half_life(step: Tensor) -> Tensor:
    return 0.5 ** (step / 100)


SOME = [
    constant(0.3),
    constant(torch.tensor(0.3)),
    linear(0.1, 0.7, 13),
    linear(-1, 1, 2**53),
    ps.polynomial(0.1, 20),
    ps.polynomial(0.1, 20, floor=0.03, power=0.5, k_decay=0.5),
    ps.polynomial(0.1, 20, power=2, k_decay=torch.tensor(1.5)),
    cosine(0.1, 20),
    cosine(0.1, 20, floor=0.03, power=0.25),
    ps.exponential(0.1, 0.9),
    ps.exponential(0.1, 0.5, every=7, staircase=True, floor=1e-3),
    ps.step_decay(0.1, 5, rate=0.5),
    ps.tanh_decay(0.1, 20, floor=0.01),
    ps.sigmoid_decay(0.1, 20, steepness=torch.tensor(900.0), midpoint=0.25),
    ps.one_minus_sqrt(0.1, 20, floor=0.01),
    ps.multi_step(0.1, [5, 20, 21]),
    ps.piecewise_constant([0.1, 0.3, 0.0], [5, 20]),
    ps.piecewise_interpolate([0.1, 0.3, 0.0], [5, 20]),
    ps.piecewise_interpolate([0.1, 0.3, torch.tensor(0.2)], [5, 20], kind="cosine"),
    ps.multiplicative(0.1, [0.9, 0.8, 0.0, 2.0]),
    ps.warm_restarts(0.1, 5, multiplier=3),
    ps.warm_restarts(0.1, 1000, decay=0.5, floor=0.01, cycles=3),
    ps.warm_restarts(0.1, 4, multiplier=torch.tensor(1.5), decay=0.5, floor=0.06),
    ps.one_cycle(0.1, 20),
    ps.one_cycle(0.1, 20, three_phase=True, anneal="linear", warmup_fraction=0.25),
    ps.one_cycle_momentum(0.85, 0.95, 20),
    ps.cyclic(0.01, 0.1, 5),
    ps.cyclic(0.01, 0.1, 5, down_steps=16, mode="triangular2"),
    ps.cyclic_momentum(0.85, 0.95, 5, mode="exp_range", gamma=0.99),
    noam(512, 4000),
    noam(512, 0, factor=2.0),
    ps.inverse_sqrt(0.1, 5),
    ps.inverse_sqrt(0.1, 0),
    ps.inverse_sqrt(0.1, torch.tensor(0), timescale=20),
    ps.wsd(0.1, 5, 15, 80),
    ps.wsd(0.1, 0, 0, 20, floor=0.01, decay="one_minus_sqrt"),
    ps.wsd(0.1, 1, 0, 20, initial=0.02, decay="cosine"),
    ps.tri_stage(0.1, 5, 15, 80),
    ps.tri_stage(0.1, 0, 0, 20, final=0.1),
    ps.swa_anneal(cosine(0.1, 20), 0.05, 5, 15),
    ps.swa_anneal(0.1, 0.05, 5, 0, kind="linear"),
    ps.warmup(cosine(0.1, 20), 5),
    ps.warmup(cosine(0.1, 20), 5, initial=0.001, kind="exponential"),
    ps.warmup(noam(8, 0), 5, initial=0.01, kind="constant"),
    ps.warmup(noam(8, 0), 0, kind="cosine"),
    warmup_cosine(peak=3e-3, warmup_steps=100, total_steps=2_000),
    warmup_cosine(0.1, 0, 10, floor=0.01, power=2),
    warmup_cosine(0.1, 7, 8, initial=0.05),
    ps.warmup_linear(0.1, 5, 20, floor=0.01),
    ps.warmup_exponential(0.1, 5, 0.9, every=15, floor=0.01),
    ps.warmup_constant(0.1, 0),
    ps.resnet_warmup(0.1, 5),
    0.1 * ps.function(half_life),
    ps.noise(constant(0.1), 42),
    ps.noise(cosine(0.1, 20), 42, kind="uniform", start=5, stop=20),
]
ALGEBRA: list[Schedule] = [
    0.5 * linear(0.0, 1.0, 10) * cosine(1.0, 20) + 1e-3,
    (1 - cosine(1.0, 20, floor=0.5)) / 3,
    linear(0.0, 1.0, 5).then(cosine(1.0, 20), at=5).then(noam(8, 0), at=40),
    cosine(0.1, 20).repeat(every=20).clamp(min=0.01, max=0.05),
    noam(64, 10).shift(5).shift(-2),
    -(constant(1.0) - linear(0.0, 1.0, 4)).clamp(max=torch.tensor(0.5, dtype=torch.float64)),
    ps.join([linear(0.0, 0.1, 5), constant(0.1), cosine(0.1, 20)], at=[5, 20]),
    ps.maximum(cosine(0.1, 20), 0.01, ps.minimum(noam(8, 0), 0.05)),
    cosine(0.1, 20).repeat(every=20, decay=0.5),
    ps.resnet_warmup(0.1, 400) * ps.multi_step(1.0, [32_000, 48_000]),
]
STEPS = torch.tensor([0, 1, 5, 19, 20, 21, 100, 3999, 2**53 - 1, 2**62])
BASE = 0.1


def optimizer(base: float | Tensor = BASE) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base, momentum=0.9)


def torch_rates(
    make: Callable[[torch.optim.Optimizer], Any], steps: int, base: float | Tensor = BASE, name: str = "lr"
) -> Tensor:
    """What a torch scheduler gives to its optimizer at steps 0 to ``steps``."""
    sgd = optimizer(base)
    scheduler = make(sgd)
    values = [float(sgd.param_groups[0][name])]
    for _ in range(steps):
        sgd.step()
        scheduler.step()
        values.append(float(sgd.param_groups[0][name]))
    return torch.tensor(values, dtype=torch.float64)


def gap(one: Schedule, right: Tensor | Sequence[float]) -> float:
    """The largest difference from ``right``, the values from step 0 on, relative to the largest of them."""
    right = torch.as_tensor(right, dtype=torch.float64)
    return ((one(torch.arange(len(right))) - right).abs().max() / right.abs().max()).item()
