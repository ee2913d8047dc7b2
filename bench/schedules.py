"""What a schedule costs beside its bare expression.

values: the rates of a million steps at once. call: the rate of one step, as a loop asks for it. step: a small training
step as one graph, under a rate that is a number and under schedules. Every constructor: bench/schedule_values.py.

    python bench/schedules.py [values] [call] [step]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

import purestep as ps
from _report import Bench, Setting, Way, main

PEAK, WARMUP, TOTAL = 1e-3, 1_000, 900_000
RATE = ps.schedules.warmup_cosine(peak=PEAK, warmup_steps=WARMUP, total_steps=TOTAL)


def benches(steps: int = 1_000_000) -> list[Bench]:
    return [
        Bench("schedules_values", f"warmup_cosine of {steps:,} steps", partial(values, steps), {"steps": steps}),
        Bench("schedules_call", "warmup_cosine of one step", call),
    ]


def expression(step: Tensor) -> Tensor:
    """The same values by hand, in float64."""
    t = step.double()
    done = ((t - WARMUP) / (TOTAL - WARMUP)).clamp(0, 1)
    return torch.where(t < WARMUP, PEAK * t / WARMUP, 0.5 * PEAK * (1 + torch.cos(math.pi * done)))


def plain(step: int) -> float:
    """The same in Python's numbers."""
    if step < WARMUP:
        return PEAK * step / WARMUP
    return 0.5 * PEAK * (1 + math.cos(math.pi * min((step - WARMUP) / (TOTAL - WARMUP), 1.0)))


def values(steps: int, setting: Setting) -> dict[str, Callable[[], Way]]:
    given = torch.arange(steps, device=setting.device)
    return {
        "torch expression": lambda: partial(expression, given),
        "torch expression, compiled": lambda: partial(torch.compile(expression), given),
        "purestep": lambda: partial(RATE, given),
        "purestep, compiled": lambda: partial(torch.compile(lambda step: RATE(step)), given),
    }


def call(setting: Setting) -> dict[str, Callable[[], Way]]:
    tensors = [torch.tensor(step, device=setting.device) for step in range(1024)]
    return {
        "torch expression, 0-d tensor": lambda: _in_turn(expression, tensors),
        "Python's math": lambda: _in_turn(plain, range(1024)),
        "torch's LambdaLR.step": scheduler,
        "purestep, 0-d tensor": lambda: _in_turn(RATE, tensors),
        "purestep, int": lambda: _in_turn(RATE, range(1024)),
    }


def step(setting: Setting) -> dict[str, Callable[[], Way]]:
    joined = ps.schedules.linear(0.0, PEAK, WARMUP).then(ps.schedules.cosine(PEAK, TOTAL), at=WARMUP)
    rates = {"a number": PEAK, "warmup_cosine": RATE, "a product of joins": joined * joined}
    return {name: partial(_compiled_step, rate, setting) for name, rate in rates.items()}


def _compiled_step(rate: float | ps.schedules.Schedule, setting: Setting) -> Way:
    def objective(model: Callable[..., Tensor], batch: dict[str, Tensor]) -> ps.Mean:
        return ps.mean((model(batch["x"]) - batch["y"]).square().sum(1))

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).to(setting.device)
    optimizer = ps.adamw(rate)
    compiled = ps.compile(ps.train_step(model, objective, optimizer))
    state = ps.init_state(model, optimizer, seed=0)
    batch = {"x": torch.randn(8, 4, device=setting.device), "y": torch.randn(8, 2, device=setting.device)}
    return lambda: compiled(state, batch)


def _in_turn(function: Callable[..., object], steps: Iterable[Tensor | int]) -> Way:
    """One step after the other, as a loop has them."""
    following = itertools.cycle(steps)
    return lambda: function(next(following))


def scheduler() -> Way:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, plain)
    optimizer.step()  # it warns where this was not called
    return scheduler.step


if __name__ == "__main__":
    compiled = Bench("schedules_step", "A compiled step, AdamW of 37 numbers, whose rate is", step)
    main(__doc__, [*benches(), compiled], max_time=3.0)
