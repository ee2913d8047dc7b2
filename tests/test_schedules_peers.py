"""Whole curves against the formulas of Optax, transformers, timm and others, and their quirks beside what is right."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler as lr

import purestep.schedules as ps
from _schedules import BASE, gap, torch_rates
from purestep.schedules import Schedule, cosine, linear, warmup_cosine


def falling_cosine(p: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * p))


def transformers_wsd(
    t: int, warmup: int, stable: int, decay: int, least: float, fall: Callable[[float], float]
) -> float:
    if t < warmup:
        return least + (1 - least) * t / warmup
    if t < warmup + stable:
        return 1.0
    if t < warmup + stable + decay:
        return least + (1 - least) * fall((t - warmup - stable) / decay)
    return least


def transformers_restarts(t: int, warmup: int, total: int, cycles: int) -> float:
    if t < warmup:
        return t / warmup
    p = (t - warmup) / (total - warmup)
    return 0.0 if p >= 1 else falling_cosine((cycles * p) % 1.0)


def optax_exponential(t: int, steps: int, rate: float, least: float, staircase: bool) -> float:
    exponent = t // steps if staircase else t / steps
    return max(BASE * rate**exponent, least)


def optax_polynomial(t: int, first: float, last: float, power: float, steps: int, begin: int) -> float:
    return (first - last) * (1 - min(max(t - begin, 0), steps) / steps) ** power + last


def optax_one_cycle(t: int, steps: int, share: float, divisor: float, last: float) -> float:
    turn = int(share * steps)
    if t < turn:
        return BASE / divisor + (BASE - BASE / divisor) * (1 - falling_cosine(t / turn))
    end = BASE / (divisor * last)
    return end + (BASE - end) * falling_cosine(min((t - turn) / (steps - turn), 1.0))


def timm_cosine(t: int, length: int, mul: float, decay: float, limit: int, least: float) -> float:
    cycle = math.floor(math.log(1 + t / length * (mul - 1), mul)) if mul != 1 else t // length
    start = length * (mul**cycle - 1) / (mul - 1) if mul != 1 else length * cycle
    if cycle >= limit:
        return least
    return least + (BASE * decay**cycle - least) * falling_cosine((t - start) / (length * mul**cycle))


def timm_tanh(t: int, length: int, low: float, high: float, least: float) -> float:
    p = t / length
    return least + 0.5 * (BASE - least) * (1 - math.tanh(low * (1 - p) + high * p)) if t < length else least


def tri_stage_of_s(t: int, warmup: int, hold: int, decay: int, first: float, scale: float) -> float:
    if t < warmup:
        return first + (BASE - first) * t / warmup
    if t < warmup + hold:
        return BASE
    return BASE * math.exp(math.log(scale) * min((t - warmup - hold) / decay, 1.0))


FORMULAS: dict[str, tuple[Schedule, Callable[[int], float]]] = {
    "transformers constant with warm-up": (ps.warmup_constant(BASE, 9), lambda t: BASE * min(t / 9, 1.0)),
    "transformers linear": (
        ps.warmup_linear(BASE, 20, 120),
        lambda t: BASE * (t / 20 if t < 20 else max(0.0, (120 - t) / 100)),
    ),
    "transformers cosine": (
        warmup_cosine(BASE, 20, 120),
        lambda t: BASE * (t / 20 if t < 20 else falling_cosine(min((t - 20) / 100, 1.0))),
    ),
    "transformers cosine restarts": (
        ps.warmup(ps.warm_restarts(BASE, 25, cycles=4), 20),
        lambda t: BASE * transformers_restarts(t, 20, 120, 4),
    ),
    "transformers polynomial": (
        ps.warmup(ps.polynomial(BASE, 100, floor=1e-7, power=2.0), 20),
        lambda t: BASE * t / 20 if t < 20 else 1e-7 + (BASE - 1e-7) * max(1 - (t - 20) / 100, 0.0) ** 2,
    ),
    "transformers inverse square root": (
        ps.inverse_sqrt(BASE, 20),
        lambda t: BASE * (t / 20 if t < 20 else math.sqrt(20 / t)),
    ),
    "transformers inverse square root, another scale": (
        ps.inverse_sqrt(BASE, 20, timescale=7),
        lambda t: BASE * (t / 20 if t < 20 else 1 / math.sqrt((t - 13) / 7)),
    ),
    "transformers WSD": (
        ps.wsd(BASE, 20, 50, 30, decay="cosine"),
        lambda t: BASE * transformers_wsd(t, 20, 50, 30, 0.0, falling_cosine),
    ),
    "transformers WSD by a line, from a minimum": (
        ps.wsd(BASE, 20, 50, 30, initial=0.01, floor=0.01),
        lambda t: BASE * transformers_wsd(t, 20, 50, 30, 0.1, lambda p: 1 - p),
    ),
    "transformers WSD by a root": (
        ps.wsd(BASE, 20, 50, 30, decay="one_minus_sqrt"),
        lambda t: BASE * transformers_wsd(t, 20, 50, 30, 0.0, lambda p: 1 - math.sqrt(p)),
    ),
    "optax exponential": (
        ps.exponential(BASE, 0.5, every=20, floor=0.01),
        lambda t: optax_exponential(t, 20, 0.5, 0.01, False),
    ),
    "optax staircase": (
        ps.exponential(BASE, 0.5, every=20, staircase=True),
        lambda t: optax_exponential(t, 20, 0.5, 0.0, True),
    ),
    "optax polynomial, begun later": (
        ps.polynomial(BASE, 50, floor=0.01, power=3).shift(10),
        lambda t: optax_polynomial(t, BASE, 0.01, 3, 50, 10),
    ),
    "optax cosine with an exponent": (
        cosine(BASE, 50, floor=0.01, power=2.0),
        lambda t: BASE * (0.9 * falling_cosine(min(t, 50) / 50) ** 2 + 0.1),
    ),
    "optax one-cycle": (ps.one_cycle(BASE, 70), lambda t: optax_one_cycle(t, 70, 0.3, 25.0, 1e4)),
    "optax piecewise constant": (
        ps.piecewise_constant([BASE, 0.5 * BASE, 0.1 * BASE], [10, 30]),
        lambda t: BASE * (1 if t < 10 else 0.5 if t < 30 else 0.1),
    ),
    "optax sgdr": (
        ps.join(
            [warmup_cosine(BASE, 5, 30, floor=0.01), warmup_cosine(BASE / 2, 10, 50, initial=0.01)],
            at=[30],
        ),
        lambda t: (
            BASE * t / 5
            if t < 5
            else 0.01 + (BASE - 0.01) * falling_cosine((t - 5) / 25)
            if t < 30
            else 0.01 + (BASE / 2 - 0.01) * (t - 30) / 10
            if t < 40
            else BASE / 2 * falling_cosine(min((t - 40) / 40, 1.0))
        ),
    ),
    "timm cosine of many cycles": (
        ps.warm_restarts(BASE, 10, multiplier=1.7, decay=0.8, floor=0.001, cycles=4),
        lambda t: timm_cosine(t, 10, 1.7, 0.8, 4, 0.001),
    ),
    "timm cosine of equal cycles": (
        ps.warm_restarts(BASE, 25, decay=0.5, cycles=3),
        lambda t: timm_cosine(t, 25, 1.0, 0.5, 3, 0.0),
    ),
    "timm polynomial with k-decay": (
        ps.polynomial(BASE, 80, floor=0.001, power=0.5, k_decay=1.5),
        lambda t: 0.001 + (BASE - 0.001) * (1 - t**1.5 / 80**1.5) ** 0.5 if t < 80 else 0.001,
    ),
    "timm tanh": (ps.tanh_decay(BASE, 200, floor=0.001), lambda t: timm_tanh(t, 200, -7.0, 3.0, 0.001)),
    "timm step": (ps.step_decay(BASE, 15, rate=0.7), lambda t: BASE * 0.7 ** (t // 15)),
    "pytorch-lr-scheduler tri-stage": (
        ps.tri_stage(BASE, 10, 20, 60, initial=0.001, final=0.005),
        lambda t: tri_stage_of_s(t, 10, 20, 60, 0.001, 0.05),
    ),
    "pytorch-lr-scheduler transformer": (
        ps.tri_stage(BASE, 10, 0, 60, initial=0.0, final=0.005),
        lambda t: tri_stage_of_s(t, 10, 0, 60, 0.0, 0.05),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_equal_to_the_formula_of(name: str) -> None:
    one, formula = FORMULAS[name]
    assert gap(one, [formula(t) for t in range(200)]) < 1e-12


# Quirks of others


def test_timm_logarithm_misses_a_restart() -> None:
    cycles = [(length, mul, n) for length in (1, 10) for mul in (3, 10) for n in range(8)]
    starts = [(length, mul, length * (mul**n - 1) // (mul - 1)) for length, mul, n in cycles]
    missed = [case for case in starts if timm_cosine(case[2], case[0], case[1], 1.0, 99, 0.0) != BASE]
    assert missed
    for length, mul, start in starts:
        assert ps.warm_restarts(BASE, length, multiplier=mul)(start).item() == BASE


def test_timm_warm_up_without_prefix_jumps() -> None:
    """timm's warm-up rises to the base rate, and then goes on where the cosine is by then."""

    def timm(t: int) -> float:
        return BASE * t / 20 if t < 20 else timm_cosine(t, 100, 1.0, 1.0, 1, 0.0)

    jumping = linear(0.0, BASE, 20).then(cosine(BASE, 100).shift(-20), at=20)
    assert gap(jumping, [timm(t) for t in range(120)]) < 1e-12
    assert not ps.is_continuous(jumping, at=[20])
    assert ps.is_continuous(ps.warmup(cosine(BASE, 100).shift(-20), 20), at=[20])


def test_optax_warm_up_of_no_steps_never_rises() -> None:
    def optax_warmup_constant(t: int, first: float, peak: float, steps: int) -> float:
        return first if steps <= 0 else first + (peak - first) * min(t / steps, 1.0)

    assert {optax_warmup_constant(t, 0.0, 1.0, 0) for t in range(50)} == {0.0}
    assert set(ps.warmup_constant(1.0, 0)(torch.arange(50)).tolist()) == {1.0}


def test_a_join_with_an_inverse_square_root_has_derivatives() -> None:
    """Where both branches are computed on the same steps, as in Optax, the one not taken makes the derivative NaN."""

    def unguarded(peak: Tensor, step: Tensor) -> Tensor:
        return torch.where(step < 4, peak * step / 4, peak * (4 / step) ** 0.5)

    peak, step = torch.tensor(BASE, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    assert torch.func.grad(unguarded)(peak, step).isnan()
    assert torch.func.grad(lambda p, t: ps.inverse_sqrt(p, 4)(t))(peak, step).item() == 0.0
    joined = ps.noam(8, 4).then(ps.inverse_sqrt(BASE, 0, timescale=1), at=4)
    assert torch.func.grad(joined)(step).isfinite()


def test_float32_steps_lose_count() -> None:
    steps = torch.arange(10**8 - 16, 10**8)
    low = 0.1 * (steps.to(torch.float32) / 1e8)
    assert len(set(low.tolist())) <= 5
    assert len(set(linear(0.0, 0.1, 10**8)(steps).tolist())) == 16


def test_the_warm_up_of_pytorch_lr_scheduler_never_reaches_its_peak() -> None:
    def theirs(t: int) -> float:  # `t < warmup_steps` is asked of a count that begins at 1
        return 0.01 + (BASE - 0.01) / 10 * min(t, 9)

    assert max(theirs(t) for t in range(50)) < BASE
    assert ps.warmup_constant(BASE, 10, initial=0.01)(10).item() == BASE


def test_torch_multi_step_changes_at_its_boundary_where_timm_changes_one_step_before() -> None:
    def timm(t: int) -> float:
        return BASE * 0.1 ** sum(t + 1 >= boundary for boundary in (5, 9))

    assert gap(ps.multi_step(BASE, [5, 9]), torch_rates(lambda o: lr.MultiStepLR(o, [5, 9]), 20)) < 1e-12
    assert gap(ps.multi_step(BASE, [4, 8]), [timm(t) for t in range(20)]) < 1e-12
