"""The curves themselves: their ends, corners and far steps, and the derivatives there."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

import purestep.schedules as ps
from purestep.schedules import Schedule, constant, cosine, linear, warmup_cosine

drawn = settings(max_examples=40, deadline=None)
FAR = 2**62


def values(one: Schedule, *steps: int) -> list[float]:
    return [one(step).item() for step in steps]


@pytest.mark.parametrize(("peak", "floor"), [(0.1, 0.03), (3e-3, 1e-5), (1 / 3, 1 / 7)])
def test_ends_are_exact(peak: float, floor: float) -> None:
    ends = {
        warmup_cosine(peak, 10, 50, initial=floor / 3, floor=floor): {0: floor / 3, 10: peak, 50: floor},
        linear(peak, floor, 7): {0: peak, 7: floor},
        cosine(peak, 7, floor=floor): {0: peak, 7: floor},
        ps.polynomial(peak, 7, floor=floor, power=0.5, k_decay=3.0): {0: peak, 7: floor},
        ps.exponential(peak, 0.9, floor=floor): {0: peak, 200: floor},
        ps.one_minus_sqrt(peak, 7, floor=floor): {0: peak, 7: floor},
        ps.sigmoid_decay(peak, 7, floor=floor): {7: floor},
        ps.piecewise_constant([peak, 0.5, floor], [7, 9]): {0: peak, 6: peak, 7: 0.5, 8: 0.5, 9: floor},
        ps.piecewise_interpolate([peak, 0.5, floor], [7, 9], kind="cosine"): {0: peak, 7: 0.5, 9: floor},
        ps.warm_restarts(peak, 7, multiplier=3, floor=floor, cycles=2): {0: peak, 7: peak, 28: floor},
        ps.one_cycle(peak, 70): {0: peak / 25, 21: peak, 70: peak / 25 / 1e4},
        ps.one_cycle(peak, 70, three_phase=True, warmup_fraction=0.2): {0: peak / 25, 14: peak, 28: peak / 25},
        ps.one_cycle_momentum(floor, peak, 70, anneal="linear"): {0: peak, 21: floor, 70: peak},
        ps.inverse_sqrt(peak, 7): {0: 0.0, 7: peak},
        ps.wsd(peak, 7, 3, 5, initial=floor / 3, floor=floor): {0: floor / 3, 7: peak, 10: peak, 15: floor},
        ps.tri_stage(peak, 7, 3, 5, initial=floor / 3, final=floor): {0: floor / 3, 7: peak, 10: peak, 15: floor},
        ps.swa_anneal(cosine(peak, 50), floor, 7, 5): {0: peak, 7: cosine(peak, 50)(7).item(), 12: floor},
        ps.warmup(constant(peak), 7, initial=floor, kind="exponential"): {0: floor, 7: peak},
        ps.warmup_linear(peak, 7, 20, initial=floor / 3, floor=floor): {0: floor / 3, 7: peak, 20: floor},
        ps.warmup_constant(peak, 7, initial=floor): {0: floor, 7: peak},
        ps.resnet_warmup(peak, 7, warm=floor): {0: floor, 6: floor, 7: peak},
        ps.multiplicative(peak, [0.5, 0.5]): {0: peak, 1: peak / 2, 2: peak / 4},
    }
    for one, right in ends.items():
        for step, value in right.items():
            assert one(step).item() == value, f"{one} at step {step}"
            assert one(torch.arange(300))[step].item() == value, f"{one} at step {step} of many"


def test_held_for_ever_after_the_end() -> None:
    for one, end in [
        (linear(0.1, 0.03, 7), 7),
        (ps.polynomial(0.1, 7, floor=0.01), 7),
        (ps.tanh_decay(0.1, 7), 7),
        (ps.sigmoid_decay(0.1, 7, floor=0.01), 7),
        (ps.piecewise_constant([0.1, 0.2], [7]), 7),
        (ps.multi_step(0.1, [3, 7]), 7),
        (ps.multiplicative(0.1, [0.5] * 7), 7),
        (ps.warm_restarts(0.1, 7, floor=0.01, cycles=1), 7),
        (ps.one_cycle(0.1, 7), 7),
        (ps.wsd(0.1, 2, 2, 3), 7),
        (ps.tri_stage(0.1, 2, 2, 3), 7),
        (ps.swa_anneal(cosine(0.1, 50), 0.01, 3, 4), 7),
        (ps.warmup_linear(0.1, 2, 7, floor=0.01), 7),
    ]:
        assert len(set(values(one, end, end + 1, 10**6, 2**53 - 1, FAR))) == 1, one


# Cycles


def start_of(cycle: int, period: int, multiplier: int) -> int:
    return period * sum(multiplier**k for k in range(cycle))


@pytest.mark.parametrize(
    ("period", "multiplier"), [(1, 3), (10, 3), (10, 10), (1, 1), (7, 1), (1, 2), (3, 2), (100, 7)]
)
def test_warm_restarts_begin_each_cycle_at_its_step(period: int, multiplier: int) -> None:
    one = ps.warm_restarts(0.1, period, multiplier=multiplier)
    starts = [start_of(n, period, multiplier) for n in range(60)]
    starts = torch.tensor([start for start in starts if start < 2**51])
    assert one(starts).tolist() == [0.1] * len(starts)
    assert [one(int(start)).item() for start in starts] == [0.1] * len(starts)
    # The step before is the last of the cycle before.
    lengths = torch.diff(starts).double()
    last = 0.05 * (1 + torch.cos(math.pi * (lengths - 1) / lengths))
    torch.testing.assert_close(one(starts[1:] - 1), last, rtol=0, atol=1e-16)


@drawn
@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 2**50))
def test_warm_restarts_against_whole_numbers(period: int, multiplier: int, step: int) -> None:
    cycle, start, length = 0, 0, period
    if multiplier == 1:
        cycle, start = step // period, step - step % period
    while step >= start + length:
        cycle, start, length = cycle + 1, start + length, length * multiplier
    right = 0.05 * (1 + math.cos(math.pi * float(Fraction(step - start, length))))
    assert ps.warm_restarts(0.1, period, multiplier=multiplier)(step).item() == pytest.approx(right, abs=2e-15)
    limited = ps.warm_restarts(0.1, period, multiplier=multiplier, cycles=3, floor=0.01)
    assert (limited(step).item() == 0.01) is (cycle >= 3 or right == 0.0)


def test_warm_restarts_of_a_fractional_multiplier() -> None:
    one = ps.warm_restarts(1.0, 4, multiplier=1.5, decay=0.5)  # cycles begin at 0, 4, 10, 19 and 32.5
    assert values(one, 0, 4, 10, 19) == [1.0, 0.5, 0.25, 0.125]
    assert values(one, 32, 33) == pytest.approx(
        [0.0625 * (1 + math.cos(math.pi * 13 / 13.5)), 0.03125 * (1 + math.cos(math.pi * 0.5 / 20.25))], rel=1e-12
    )


def test_the_derivative_by_a_multiplier_of_one_is_that_of_its_neighbours() -> None:
    def value(multiplier: Tensor) -> Tensor:
        return ps.warm_restarts(0.1, 50, multiplier=multiplier)(torch.tensor(330))

    slope = torch.func.grad(value)(torch.tensor(1.0, dtype=torch.float64)).item()
    wide = torch.tensor([1 - 1e-6, 1 + 1e-6], dtype=torch.float64)
    assert slope == pytest.approx((torch.vmap(value)(wide).diff() / wide.diff()).item(), rel=1e-6)


def test_a_decayed_peak_does_not_pass_the_floor() -> None:
    one = ps.warm_restarts(0.1, 10, decay=0.5, floor=0.04)
    assert values(one, 0, 10, 20, 25, 30) == [0.1, 0.05, 0.04, 0.04, 0.04]


def test_cyclic_at_its_corners() -> None:
    one = ps.cyclic(0.0, 1.0, 4, down_steps=2, mode="triangular2")
    assert values(one, 0, 2, 4, 5, 6, 10, 12, 16) == [0.0, 0.5, 1.0, 0.5, 0.0, 0.5, 0.0, 0.25]
    assert values(one, 6 * 10**15, 6 * 10**15 + 4) == [0.0, 0.0]
    even = ps.cyclic(0.0, 1.0, 3)
    far = 6 * 10**15
    assert values(even, far, far + 3, far + 4) == [0.0, 1.0, even(4).item()]
    shrinking = ps.cyclic(0.0, 1.0, 3, mode="exp_range", gamma=0.5)
    assert values(shrinking, 3, 9) == [0.5**3, 0.5**9]


def test_one_cycle_rounds_its_turn_to_a_step() -> None:
    assert values(ps.one_cycle(0.1, 11), 3) == [0.1]  # torch's never reaches its peak here
    assert values(ps.one_cycle(0.1, 100, warmup_fraction=0.29), 29) == [0.1]  # where 0.29 * 100 < 29 in floating point
    assert values(ps.one_cycle(0.1, 2, warmup_fraction=0.5), 0, 1, 2) == [0.1 / 25, 0.1, 0.1 / 25 / 1e4]


# Derivatives where formulas have corners


def slopes(one: Schedule, step: float) -> dict[str, float]:
    """The derivatives by the step and by each hyperparameter."""
    tensors = pytree.tree_map(lambda leaf: torch.as_tensor(leaf, dtype=torch.float64), one)
    at = torch.tensor(step, dtype=torch.float64)
    by_step, by_leaf = torch.func.grad(lambda t, s: s(t), argnums=(0, 1))(at, tensors)
    named = pytree.tree_flatten_with_path(by_leaf)[0]
    return {"step": by_step.item()} | {pytree.keystr(path).strip("."): leaf.item() for path, leaf in named}


@pytest.mark.parametrize(
    ("one", "step", "finite"),
    [
        (ps.one_minus_sqrt(0.1, 10), 0, {"step": 0.0, "total_steps": 0.0, "peak": 1.0}),
        (ps.wsd(0.1, 5, 5, 10, decay="one_minus_sqrt"), 10, {"step": 0.0, "peak": 1.0, "stable_steps": 0.0}),
        (ps.polynomial(0.1, 10, power=0.5), 10, {"step": 0.0, "power": 0.0, "floor": 1.0}),
        (ps.polynomial(0.1, 10, k_decay=0.5), 0, {"step": 0.0, "k_decay": 0.0, "peak": 1.0}),
        (cosine(0.1, 10, power=0.25), 10, {"step": 0.0, "power": 0.0, "floor": 1.0}),
        (ps.warmup(constant(0.1), 0), 0, {"step": 0.0, "inner.value": 1.0, "initial": 0.0}),
        (ps.warmup_linear(0.1, 0, 10), 0, {"peak": 1.0, "initial": 0.0, "warmup_steps": 0.01}),
        (ps.inverse_sqrt(0.1, 0), 0, {"peak": 1.0, "step": -0.1 / 20_000}),
        (ps.inverse_sqrt(0.1, 4), 4, {"peak": 1.0, "step": -0.1 / 8}),
        (ps.inverse_sqrt(0.1, 4, timescale=2), 4, {"peak": 1.0, "step": -0.1 / 4}),
        (ps.inverse_sqrt(0.1, 40, timescale=2), 0, {"peak": 0.0, "step": 0.1 / 40, "timescale": 0.0}),
        (ps.noam(4, 0), 0, {"factor": 0.5, "step": -0.25}),
        (ps.tri_stage(0.1, 0, 0, 10), 0, {"peak": 1.0}),
        (ps.exponential(0.1, 0.5), FAR, {"peak": 0.0, "rate": 0.0, "step": 0.0}),
        (ps.step_decay(0.1, 5), 5, {"peak": 0.1, "step": 0.0, "rate": 0.1, "every": 0.0}),
        (ps.multi_step(0.1, [5]), 5, {"peak": 0.1, "rate": 0.1}),
        (ps.multiplicative(0.1, [0.5, 0.0, 2.0]), 3, {"peak": 0.0, "factors[1]": 0.1}),
        (ps.cyclic(0.0, 1.0, 4), 4, {"high": 1.0, "step": -0.25}),
        (ps.one_cycle(0.1, 10), 3, {"peak": 1.0, "warmup_fraction": 0.0}),
        (ps.swa_anneal(linear(0.1, 0.0, 10), 0.05, 5, 5), 5, {"swa_rate": 0.0}),
    ],
    ids=lambda value: repr(value) if isinstance(value, Schedule) else "",
)
def test_derivatives_at_corners(one: Schedule, step: int, finite: dict[str, float]) -> None:
    found = slopes(one, float(step))
    assert all(math.isfinite(slope) for slope in found.values()), found
    for name, slope in finite.items():
        assert found[name] == pytest.approx(slope, rel=1e-9, abs=1e-15), f"{name}: {found}"


@pytest.mark.parametrize("kind", ["linear", "exponential", "constant", "cosine"])
def test_a_warm_up_of_no_steps_is_none(kind: Any) -> None:
    steps = torch.arange(30)
    for initial in (0.01, torch.tensor(0.01)):
        for length in (0, torch.tensor(0)):
            one = ps.warmup(cosine(0.1, 20), length, initial=initial, kind=kind)
            assert torch.equal(one(steps), cosine(0.1, 20)(steps))


# Noise


def test_noise_is_a_function_of_seed_and_step() -> None:
    one = ps.noise(constant(1.0), 42)
    steps = torch.randperm(1000)
    assert torch.equal(one(steps), one(torch.arange(1000))[steps])
    assert torch.equal(one(steps[:99]), torch.stack([one(t) for t in steps[:99]]))
    assert torch.equal(one(steps), one.replace(seed=torch.tensor(42))(steps))
    before = torch.get_rng_state()
    one(steps)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(one(steps), one.replace(seed=43)(steps))
    assert len(set(one(torch.arange(1000)).tolist())) == 1000


def test_noise_has_the_distribution_it_says() -> None:
    steps = torch.arange(200_000)
    uniform = ps.noise(constant(1.0), 1, kind="uniform", scale=0.5)(steps) - 1
    assert uniform.abs().max() < 0.5
    assert uniform.mean().abs() < 4 * 0.5 / math.sqrt(3 * len(steps))
    assert uniform.square().mean().item() == pytest.approx(0.25 / 3, rel=0.01)
    normal = ps.noise(constant(1.0), 1, scale=0.67, spread=0.5)(steps) - 1
    assert normal.abs().max() < 0.67
    # A share of a normal variable that was cut off at 0.67 lies below x.
    phi = torch.special.ndtr
    for x in (-0.5, -0.1, 0.0, 0.3):
        share = (normal < x).double().mean().item()
        a, b, c = (phi(torch.tensor(v / 0.5, dtype=torch.float64)).item() for v in (-0.67, x, 0.67))
        assert share == pytest.approx((b - a) / (c - a), abs=4 / math.sqrt(len(steps)))
    assert torch.corrcoef(torch.stack([normal[:-1], normal[1:]]))[0, 1].abs() < 4 / math.sqrt(len(steps))


def test_noise_keeps_to_its_range() -> None:
    one = ps.noise(cosine(0.1, 20), 7, start=5, stop=9)
    steps = torch.arange(30)
    assert (one(steps) != cosine(0.1, 20)(steps)).nonzero().flatten().tolist() == [5, 6, 7, 8]
    assert torch.equal(one.replace(scale=0.0)(steps), cosine(0.1, 20)(steps))
