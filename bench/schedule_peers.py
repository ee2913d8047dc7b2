"""Every schedule beside its peers, as they are installed: the largest difference on a grid of hyperparameters.

torch's schedulers are stepped 10,000 times; Optax (in float64), transformers and timm are asked for the same steps. A
difference is relative to the largest value of the curve. A peer that is not installed is left out.

    python bench/schedule_peers.py [--steps 10000]
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.optim import lr_scheduler as lr
from torch.optim.swa_utils import SWALR

import purestep.schedules as ps
from purestep.schedules import Schedule

Curve = Callable[[Tensor], Any]  # the peer's values at steps 0, 1, 2, ...
Case = tuple[str, str, Schedule, Curve]
PEAKS = (0.37, 2.3e-4)


def _optimizer(base: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base, momentum=0.9)


def stepped(
    make: Callable[[torch.optim.Optimizer], Any], base: float, name: str = "lr", last: int | None = None
) -> Curve:
    """The values that a torch scheduler gives, as it is stepped."""

    def curve(steps: Tensor) -> list[float]:
        optimizer = _optimizer(base)
        scheduler = make(optimizer)
        values = []
        for _ in steps[:last]:
            values.append(optimizer.param_groups[0][name])
            optimizer.step()
            if len(values) != last:
                scheduler.step()
        return values

    return curve


def torch_cases() -> Iterator[Case]:
    for b, n in itertools.product(PEAKS, (23, 3456)):
        yield "linear", "torch", ps.linear(b / 7, b, n), stepped(lambda o, n=n: lr.LinearLR(o, 1 / 7, 1.0, n), b)
        constant = ps.piecewise_constant([b / 4, b], [n])
        yield "piecewise_constant", "torch", constant, stepped(lambda o, n=n: lr.ConstantLR(o, 0.25, n), b)
        for power in (0.5, 1.0, 3.0):
            ours = ps.polynomial(b, n, power=power)
            yield "polynomial", "torch", ours, stepped(lambda o, n=n, p=power: lr.PolynomialLR(o, n, p), b)
        ours = ps.step_decay(b, n, rate=0.83)
        yield "step_decay", "torch", ours, stepped(lambda o, n=n: lr.StepLR(o, n, 0.83), b)
        ours = ps.multi_step(b, [n, 2 * n, 2 * n + 1], rate=0.3)
        yield "multi_step", "torch", ours, stepped(lambda o, n=n: lr.MultiStepLR(o, [n, 2 * n, 2 * n + 1], 0.3), b)
        ours = ps.cosine(b, n, floor=b / 9)
        yield "cosine", "torch", ours, stepped(lambda o, n=n, b=b: lr.CosineAnnealingLR(o, n, b / 9), b, last=n + 1)
        for m in (1, 2, 5):
            ours = ps.warm_restarts(b, n, multiplier=m, floor=b / 11)
            restarts = stepped(lambda o, n=n, m=m, b=b: lr.CosineAnnealingWarmRestarts(o, n, m, b / 11), b)
            yield "warm_restarts", "torch", ours, restarts
        for mode in ("triangular", "triangular2", "exp_range"):
            ours = ps.cyclic(b / 9, b, n, down_steps=n // 2, mode=mode, gamma=0.9993)  # type: ignore[arg-type]
            make = lambda o, n=n, b=b, m=mode: lr.CyclicLR(o, b / 9, b, n, n // 2, m, 0.9993)  # noqa: E731
            yield "cyclic", "torch", ours, stepped(make, b)
            momentum = ps.cyclic_momentum(0.8, 0.9, n, down_steps=n // 2, mode=mode, gamma=0.9993)  # type: ignore[arg-type]
            yield "cyclic_momentum", "torch", momentum, stepped(make, b, "momentum")
        for kind in ("cosine", "linear"):
            ours = ps.swa_anneal(b, b / 3, 0, n, kind=kind)  # type: ignore[arg-type]
            yield (
                "swa_anneal",
                "torch",
                ours,
                stepped(lambda o, n=n, b=b, k=kind: SWALR(o, b / 3, n, k.removesuffix("ine")), b),
            )
    for b, rate in itertools.product(PEAKS, (0.5, 0.9997)):
        yield "exponential", "torch", ps.exponential(b, rate), stepped(lambda o, r=rate: lr.ExponentialLR(o, r), b)
    for b, (n, share), kind, three in itertools.product(
        PEAKS, ((40, 0.25), (9000, 0.4)), ("cosine", "linear"), (False, True)
    ):
        options = {"anneal": kind, "three_phase": three, "warmup_fraction": (share * n - 1) / (n - 1)}
        strategy = kind.removesuffix("ine")  # torch says "cos"
        phases = {"total_steps": n, "pct_start": share, "anneal_strategy": strategy, "three_phase": three}
        make = partial(lr.OneCycleLR, max_lr=b, **phases)
        yield "one_cycle", "torch", ps.one_cycle(b, n - 1, **options), stepped(make, b, last=n)
        momentum = ps.one_cycle_momentum(0.85, 0.95, n - 1, **options)
        yield "one_cycle_momentum", "torch", momentum, stepped(make, b, "momentum", last=n)
    factors = [1 - 1 / (t + 3) for t in range(1, 5000)]
    ours = ps.multiplicative(0.37, factors)
    yield (
        "multiplicative",
        "torch",
        ours,
        stepped(lambda o: lr.MultiplicativeLR(o, lambda t: 1 - 1 / (t + 3)), 0.37, last=5000),
    )
    ours = ps.linear(0.037, 0.37, 60).then(ps.cosine(0.37, 5000), at=60)
    joined = lambda o: lr.SequentialLR(o, [lr.LinearLR(o, 0.1, 1.0, 60), lr.CosineAnnealingLR(o, 5000)], [60])  # noqa: E731
    yield "then", "torch", ours, stepped(joined, 0.37, last=5061)


def transformers_cases() -> Iterator[Case]:
    module = importlib.import_module("transformers.optimization")

    def factors(base: float, name: str, *args: Any, **options: Any) -> Curve:
        scheduler = getattr(module, f"get_{name}")(_optimizer(base), *args, **options)
        return lambda steps: [base * scheduler.lr_lambdas[0](t) for t in steps.tolist()]

    for b, w, n in itertools.product(PEAKS, (0, 37), (200, 7777)):
        peer = "transformers"
        yield "warmup_constant", peer, ps.warmup_constant(b, w), factors(b, "constant_schedule_with_warmup", w)
        yield "warmup_linear", peer, ps.warmup_linear(b, w, n), factors(b, "linear_schedule_with_warmup", w, n)
        held = factors(b, "cosine_schedule_with_warmup", w, n)
        yield "warmup_cosine", peer, ps.warmup_cosine(b, w, n), lambda steps, held=held, n=n: held(steps[: n + 1])
        yield "inverse_sqrt", peer, ps.inverse_sqrt(b, w), factors(b, "inverse_sqrt_schedule", w)
        ours = ps.inverse_sqrt(b, w, timescale=55)
        yield "inverse_sqrt", peer, ours, factors(b, "inverse_sqrt_schedule", w, timescale=55)
        ours = ps.warmup(ps.polynomial(b, n - w, floor=1e-7, power=1.7), w)
        yield "polynomial", peer, ours, factors(b, "polynomial_decay_schedule_with_warmup", w, n, power=1.7)
        for decay, theirs in (("linear", "linear"), ("cosine", "cosine"), ("one_minus_sqrt", "1-sqrt")):
            ours = ps.wsd(b, w, n, 61, initial=0.2 * b, floor=0.2 * b, decay=decay)  # type: ignore[arg-type]
            options = {"num_stable_steps": n, "decay_type": theirs, "min_lr_ratio": 0.2}
            yield "wsd", peer, ours, factors(b, "wsd_schedule", w, 61, **options)
        if (n - w) % 8 == 0 or w == 0:
            k = 8 if (n - w) % 8 == 0 else 7
            ours = ps.warmup(ps.warm_restarts(b, (n - w) // k, cycles=k), w)
            yield "warm_restarts", peer, ours, factors(b, "cosine_with_hard_restarts_schedule_with_warmup", w, n, k)


def optax_cases() -> Iterator[Case]:
    optax, jax = importlib.import_module("optax"), importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)

    def values(schedule: Any) -> Curve:
        return lambda steps: numpy.array(jax.vmap(schedule)(steps.numpy()), dtype=numpy.float64)

    for b, n in itertools.product(PEAKS, (23, 3456)):
        peer = "optax"
        yield "linear", peer, ps.linear(b / 7, b, n).shift(9), values(optax.linear_schedule(b / 7, b, n, 9))
        for power in (0.5, 1, 3.0):
            ours = ps.polynomial(b, n, floor=b / 9, power=power)
            yield "polynomial", peer, ours, values(optax.polynomial_schedule(b, b / 9, power, n))
        for staircase in (False, True):
            ours = ps.exponential(b, 0.83, every=n, staircase=staircase, floor=b / 5)
            theirs = optax.exponential_decay(b, n, 0.83, staircase=staircase, end_value=b / 5)
            yield "exponential", peer, ours, values(theirs)
            ours = ps.warmup_exponential(b, 50, 0.83, initial=b / 9, every=n, staircase=staircase, floor=b / 5)
            theirs = optax.warmup_exponential_decay_schedule(b / 9, b, 50, n, 0.83, 0, staircase, b / 5)
            yield "warmup_exponential", peer, ours, values(theirs)
        ours = ps.cosine(b, n, floor=b / 8, power=1.3)
        yield "cosine", peer, ours, values(optax.cosine_decay_schedule(b, n, 1 / 8, 1.3))
        ours = ps.warmup_cosine(b, 17, n, initial=b / 9, floor=b / 8)
        yield "warmup_cosine", peer, ours, values(optax.warmup_cosine_decay_schedule(b / 9, b, 17, n, b / 8))
        ours = ps.warmup_constant(b, n, initial=b / 9)
        yield "warmup_constant", peer, ours, values(optax.warmup_constant_schedule(b / 9, b, n))
        ours, theirs = ps.one_cycle(b, 10 * n), optax.cosine_onecycle_schedule(10 * n, b)
        yield "one_cycle", peer, ours, values(theirs)
        scales = {n: 0.5, 2 * n: 0.1}
        ours = ps.piecewise_constant([b, b * 0.5, b * 0.5 * 0.1], [n, 2 * n])
        yield "piecewise_constant", peer, ours, values(optax.piecewise_constant_schedule(b, scales))
        for kind in ("linear", "cosine"):
            ours = ps.piecewise_interpolate([b, b * 0.5, b * 0.5 * 0.1], [n, 2 * n], kind=kind)  # type: ignore[arg-type]
            yield "piecewise_interpolate", peer, ours, values(optax.piecewise_interpolate_schedule(kind, b, scales))
        parts = [optax.linear_schedule(0.0, b, 40), optax.cosine_decay_schedule(b, n), optax.constant_schedule(b / 3)]
        ours = ps.join([ps.linear(0.0, b, 40), ps.cosine(b, n), ps.constant(b / 3)], at=[40, 40 + n])
        yield "join", peer, ours, values(optax.join_schedules(parts, [40, 40 + n]))
        cycles = [
            {"init_value": 0.0, "peak_value": b, "warmup_steps": 5, "decay_steps": n, "end_value": b / 9},
            {"init_value": b / 9, "peak_value": b / 2, "warmup_steps": 9, "decay_steps": 2 * n, "end_value": 0.0},
        ]
        first = ps.warmup_cosine(b, 5, n, floor=b / 9)
        ours = ps.join([first, ps.warmup_cosine(b / 2, 9, 2 * n, initial=b / 9)], at=[n])
        yield "join", peer, ours, values(optax.sgdr_schedule(cycles))


def timm_cases() -> Iterator[Case]:
    timm = importlib.import_module("timm.scheduler")

    def values(base: float, name: str, **options: Any) -> Curve:
        scheduler = getattr(timm, f"{name}LRScheduler")(_optimizer(base), **options)
        return lambda steps: [scheduler._get_lr(t)[0] for t in steps.tolist()]

    for b, n in itertools.product(PEAKS, (23, 3456)):
        peer = "timm"
        ours = ps.warm_restarts(b, n, decay=0.6, floor=b / 50, cycles=3)
        yield (
            "warm_restarts",
            peer,
            ours,
            values(b, "Cosine", t_initial=n, cycle_decay=0.6, lr_min=b / 50, cycle_limit=3),
        )
        ours = ps.warm_restarts(b, n, multiplier=1.3, decay=0.9, floor=b / 50, cycles=4)
        options = {"t_initial": n, "cycle_mul": 1.3, "cycle_decay": 0.9, "lr_min": b / 50, "cycle_limit": 4}
        yield "warm_restarts", peer, ours, values(b, "Cosine", **options)
        ours = ps.warmup(ps.cosine(b, n, floor=b / 50), 12, initial=b / 30)
        options = {"t_initial": n, "lr_min": b / 50, "warmup_t": 12, "warmup_lr_init": b / 30, "warmup_prefix": True}
        yield "warmup", peer, ours, values(b, "Cosine", **options)
        for k in (0.7, 1.0, 2.5):
            ours = ps.polynomial(b, n, floor=b / 50, power=0.8, k_decay=k)
            yield "polynomial", peer, ours, values(b, "Poly", t_initial=n, power=0.8, lr_min=b / 50, k_decay=k)
        held = values(b, "Tanh", t_initial=n, lb=-5.0, ub=4.0, lr_min=b / 50)
        ours = ps.tanh_decay(b, n, floor=b / 50, lower=-5.0, upper=4.0)
        yield "tanh_decay", peer, ours, lambda steps, held=held, n=n: held(steps[:n])
        yield "step_decay", peer, ps.step_decay(b, n, rate=0.83), values(b, "Step", decay_t=n, decay_rate=0.83)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    steps = torch.arange(parser.parse_args().steps)
    warnings.filterwarnings("ignore")
    worst: dict[tuple[str, str], tuple[float, int]] = {}
    for cases in (torch_cases, transformers_cases, optax_cases, timm_cases):
        try:
            for name, peer, ours, curve in cases():
                theirs = torch.as_tensor(curve(steps), dtype=torch.float64)
                gap = ((ours(steps[: len(theirs)]) - theirs).abs().max() / theirs.abs().max()).item()
                before, count = worst.get((name, peer), (0.0, 0))
                worst[name, peer] = (max(gap, before), count + 1)
        except ImportError as error:
            print(f"left out: {error.name} is not installed")
    print("| schedule | peer | curves | largest relative difference |\n|---|---|---|---|")
    for (name, peer), (gap, count) in sorted(worst.items()):
        print(f"| {name} | {peer} | {count} | {gap:.1e} |")


if __name__ == "__main__":
    main()
