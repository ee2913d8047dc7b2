"""What a single scheduler of ``torch.optim`` does from where it stands, as a schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.swa_utils import SWALR

from purestep.schedules._schedule import Schedule
from purestep.schedules._torch_curves import (
    torch_cosine,
    torch_lambda,
    torch_one_cycle,
    torch_powers,
    torch_products,
)
from purestep.schedules.basic import constant, linear, polynomial
from purestep.schedules.cycles import Ease, cyclic, warm_restarts
from purestep.schedules.decays import exponential, step_decay
from purestep.schedules.phases import swa_anneal
from purestep.schedules.piecewise import piecewise_constant
from purestep.schedules.plateau import plateau


@dataclass(frozen=True)
class At:
    """A scheduler at a point of its life, or where it will be.

    Attributes:
        scheduler: it, which is only read.
        group: the index of the optimizer's group.
        epoch: the scheduler's own step.
        base: the group's base rate.
        rate: the group's rate at that step, or ``None`` for what the scheduler's own curve has there.
        tolerance: how much the rate may be off the curve by rounding alone.
    """

    scheduler: Any
    group: int
    epoch: int
    base: float
    rate: float | None
    tolerance: float

    def of(self, scheduler: Any, **changes: Any) -> At:
        """Return another scheduler of the same optimizer at the same moment."""
        base = float(scheduler.base_lrs[self.group]) if hasattr(scheduler, "base_lrs") else self.base
        return replace(self, **{"scheduler": scheduler, "epoch": clock(scheduler), "base": base, **changes})

    def on(self, curve: Schedule) -> bool:
        """Whether the rate is the curve's: it may have been changed by hand, or by another scheduler."""
        if self.rate is None:
            return True
        value = curve(self.epoch).item()
        largest = max(abs(value), abs(self.rate))
        return abs(self.rate - value) <= self.tolerance * largest + 1e-3 * self.tolerance * max(largest, abs(self.base))


# A rate that is multiplied at each step, so that what it was stays in it.


def multiplied(at: At, curve: Schedule, *, settled: bool = False) -> Schedule:
    """Return ``curve``, or what becomes of another rate that is multiplied by the same factors."""
    if at.on(curve):
        return curve
    assert at.rate is not None
    if settled:
        return constant(at.rate)
    value = curve(at.epoch).item()
    if value == 0:
        raise ValueError(
            f"the rate was changed after {name_of(at)} had multiplied it by 0: step the scheduler once, and read it "
            "then"
        )
    return (at.rate / value) * curve


def _multiplicative(at: At) -> Schedule:
    return multiplied(at, at.base * torch_products(at.scheduler.lr_lambdas[at.group]))


def _step(at: At) -> Schedule:
    every, gamma = whole("StepLR's step_size", at.scheduler.step_size), at.scheduler.gamma
    if 0 < gamma <= 1:
        return multiplied(at, step_decay(at.base, every, rate=gamma))
    return multiplied(at, torch_powers(at.base, gamma, every=every))


def _multi_step(at: At) -> Schedule:
    milestones = sorted(whole("MultiStepLR's milestones", m) for m in at.scheduler.milestones if m > 0)
    factors = [at.scheduler.gamma ** at.scheduler.milestones[m] for m in milestones]
    values = [at.base * at.scheduler.gamma ** at.scheduler.milestones[0]]
    for factor in factors:
        values.append(values[-1] * factor)
    curve = piecewise_constant(tuple(values), tuple(milestones)) if milestones else constant(values[0])
    return multiplied(at, curve, settled=not milestones or at.epoch >= milestones[-1])


def _constant(at: At) -> Schedule:
    factor, length = at.scheduler.factor, whole("ConstantLR's total_iters", at.scheduler.total_iters)
    if length < 1:  # which torch never reaches
        return multiplied(at, constant(at.base * factor), settled=True)
    if factor == 0 and at.epoch < length:
        raise ValueError(
            f"ConstantLR with factor=0 divides by zero at its step {length} in torch: "
            f"piecewise_constant((0.0, {at.base!r}), ({length},)) is what is meant"
        )
    curve = piecewise_constant((at.base * factor, at.base), (length,))
    return multiplied(at, curve, settled=at.epoch >= length)


def _linear(at: At) -> Schedule:
    start, end = at.scheduler.start_factor, at.scheduler.end_factor
    length = whole("LinearLR's total_iters", at.scheduler.total_iters)
    if length < 1:
        return multiplied(at, constant(at.base * start), settled=True)
    return multiplied(at, linear(at.base * start, at.base * end, length), settled=at.epoch >= length)


def _exponential(at: At) -> Schedule:
    gamma = at.scheduler.gamma
    return multiplied(at, (exponential if 0 < gamma <= 1 else torch_powers)(at.base, gamma))


def _polynomial(at: At) -> Schedule:
    length, power = whole("PolynomialLR's total_iters", at.scheduler.total_iters), at.scheduler.power
    if power < 0 and at.epoch < length:
        raise ValueError(f"PolynomialLR with power={power} divides by zero at its step {length} in torch")
    if length < 1 or power <= 0:
        return multiplied(at, constant(at.base), settled=True)
    return multiplied(at, polynomial(at.base, length, power=power), settled=at.epoch >= length)


def _cosine(at: At) -> Schedule:
    period, floor = whole("CosineAnnealingLR's T_max", at.scheduler.T_max), float(at.scheduler.eta_min)
    curve = torch_cosine(at.base, period, floor=floor)
    if at.on(curve):
        return curve
    assert at.rate is not None
    zero = next_zero(at.epoch, period)
    if at.epoch == zero:
        raise ValueError(
            f"the rate was changed at step {zero}, the lowest of CosineAnnealingLR, from where it rises on its base "
            "rate: step the scheduler once, and read it then"
        )
    # What the rate is above the floor is multiplied, up to the next zero, from where torch adds to the base rate again.
    share = torch_cosine(1.0, period)(at.epoch).item()
    return switched(torch_cosine(floor + (at.rate - floor) / share, period, floor=floor), curve, zero + 1)


def _swa(at: At) -> Schedule:
    scheduler = at.scheduler
    target = float(scheduler.optimizer.param_groups[at.group]["swa_lr"])
    length, done = scheduler.anneal_epochs, scheduler._step_count - 1
    if done >= length:
        return set_to(at, constant(target))
    kind: Ease = "linear" if scheduler.anneal_func(0.25) == 0.25 else "cosine"

    def from_rate(start: float) -> Schedule:
        return shifted(swa_anneal(start, target, 0, length, kind=kind), at.epoch - done)

    if at.on(from_rate(at.base)):
        return from_rate(at.base)
    assert at.rate is not None
    share = scheduler.anneal_func(done / length)
    return from_rate((at.rate - share * target) / (1 - share))


# A rate that is set at each step, whatever it was.


def set_to(at: At, curve: Schedule) -> Schedule:
    """Return ``curve``, after the present step where the rate is another one now."""
    if at.on(curve):
        return curve
    assert at.rate is not None
    return switched(constant(at.rate), curve, at.epoch + 1)


def _lambda(at: At) -> Schedule:
    function = at.scheduler.lr_lambdas[at.group]
    return set_to(at, at.base * (function if isinstance(function, Schedule) else torch_lambda(function)))


def _warm_restarts(at: At) -> Schedule:
    scheduler = at.scheduler
    first, multiplier, place, length = scheduler.T_0, scheduler.T_mult, scheduler.T_cur, scheduler.T_i
    floor, start, cycle = float(scheduler.eta_min), 0, first
    while start + cycle <= at.epoch and multiplier > 1:
        start, cycle = start + cycle, cycle * multiplier
    regular = (at.epoch % first, first) if multiplier == 1 else (at.epoch - start, cycle)
    late = 0
    if (place, length) != regular:  # resumed, or sent to a step, which torch does not always find
        first, late = length, at.epoch - whole("CosineAnnealingWarmRestarts' T_cur", place)
    if floor <= at.base:
        curve = warm_restarts(at.base, first, multiplier=multiplier, floor=floor)
    else:
        curve = (at.base - floor) * warm_restarts(1.0, first, multiplier=multiplier) + floor
    return set_to(at, shifted(curve, late))


def _one_cycle(at: At) -> Schedule:
    return set_to(at, _pieces(at.scheduler, at.group, "lr"))


def _pieces(scheduler: Any, group: int, what: str) -> Schedule:
    """Return what a OneCycleLR does with the group's ``"lr"`` or ``"momentum"``."""
    phases, held = scheduler._schedule_phases, scheduler.optimizer.param_groups[group]
    times, names = [0.0], [phases[0][f"start_{what}"]]
    for phase in phases:
        if phase["end_step"] <= 0:  # a phase that is over at the first step
            times, names = [], []
        times, names = [*times, float(phase["end_step"])], [*names, phase[f"end_{what}"]]
    last = scheduler.total_steps
    if times[-1] == times[-2]:  # no last phase: torch divides by zero if it gets there
        times, names, last = times[:-1], names[:-1], last - 1
    anneal: Ease = "cosine" if scheduler._anneal_func_type == "cos" else "linear"
    return torch_one_cycle(tuple(float(held[name]) for name in names), tuple(times), last, anneal=anneal)


def _cyclic(at: At) -> Schedule:
    low, high = (float(rates[at.group]) for rates in (at.scheduler.base_lrs, at.scheduler.max_lrs))
    up, down = _ways(at.scheduler)
    mode, gamma, custom = at.scheduler.mode, at.scheduler.gamma, at.scheduler._scale_fn_custom
    if custom is None and (mode != "exp_range" or 0 < gamma <= 1) and low <= high:
        gamma = gamma if mode == "exp_range" else 1.0
        return set_to(at, cyclic(low, high, up, down_steps=down, mode=mode, gamma=gamma))
    return set_to(at, low + (high - low) * _heights(at.scheduler, up, down))


def _heights(scheduler: Any, up: int, down: int) -> Schedule:
    """Return what a CyclicLR multiplies the distance of its two rates by."""
    triangles = cyclic(0.0, 1.0, up, down_steps=down)
    custom = scheduler._scale_fn_custom
    if custom is None:
        if scheduler.mode == "exp_range":
            return triangles * torch_powers(1.0, scheduler.gamma)
        return cyclic(0.0, 1.0, up, down_steps=down, mode=scheduler.mode)
    if scheduler.scale_mode == "cycle":
        return triangles * torch_lambda(_OfCycle(custom, up + down))
    return triangles * torch_lambda(custom)


@dataclass(frozen=True)
class _OfCycle:
    """A function of the cycle, from 1, as one of the step."""

    function: Callable[[Any], Any]
    length: int

    def __call__(self, step: Any) -> Any:
        return self.function(1 + step // self.length)


def _on_plateau(at: At) -> Schedule:
    s = at.scheduler
    machine = plateau(
        mode=s.mode,
        factor=s.factor,
        patience=s.patience,
        threshold=s.threshold,
        threshold_mode=s.threshold_mode,
        cooldown=s.cooldown,
        floor=min(s.min_lrs[at.group], at.base),
        eps=s.eps,
        base=at.base,
    )
    raise ValueError(
        "ReduceLROnPlateau is no function of the step, as it waits for a metric. As a machine in the train state it is "
        f"{machine!r}, and the rate is its .times(schedule)"
    )


def momentum(scheduler: Any, group: int) -> Schedule:
    if not getattr(scheduler, "cycle_momentum", False):
        raise ValueError(
            "of='momentum' needs a OneCycleLR or a CyclicLR with cycle_momentum=True, which moves one, got a "
            f"{type(scheduler).__name__}"
        )
    if type(scheduler) is torch_schedulers.OneCycleLR:
        return _pieces(scheduler, group, "momentum")
    low, high = float(scheduler.base_momentums[group]), float(scheduler.max_momentums[group])
    return high + (low - high) * _heights(scheduler, *_ways(scheduler))


def clock(scheduler: Any) -> int:
    """Return the step at which a scheduler stands. A chain counts none, and has its first part's."""
    if type(scheduler) is torch_schedulers.ChainedScheduler:
        return clock(scheduler._schedulers[0])
    return int(scheduler.last_epoch)


def _ways(scheduler: Any) -> tuple[int, int]:
    """Return the steps of a CyclicLR on its way up and on its way down."""
    # torch keeps the sum of the two, and a ratio, which is rounded.
    up = round(scheduler.step_ratio * scheduler.total_size, 6)
    name = "CyclicLR's step_size_up and step_size_down"
    return whole(name, up), whole(name, scheduler.total_size - up)


def whole(name: str, value: float) -> int:
    """Return a number of steps as an int, or raise ``ValueError`` where it is none."""
    if value != round(value):
        raise ValueError(
            f"{name} must be a whole number of steps, got {value!r}, with which torch misses its own end by accident"
        )
    return round(value)


def next_zero(step: int, period: int) -> int:
    """Return the first odd multiple of ``period`` from ``step`` on, where a cosine of that half-wave is lowest."""
    return period + 2 * period * max(0, -((period - step) // (2 * period)))


def shifted(curve: Schedule, by: int) -> Schedule:
    return curve.shift(by) if by else curve


def switched(first: Schedule, later: Schedule, at: int) -> Schedule:
    """Return ``first`` before step ``at`` and ``later`` from there, both in the same steps."""
    return first.then(shifted(later, -at), at=at)


def name_of(at: At) -> str:
    return type(at.scheduler).__name__


# The rates of these are multiplied at each step, and nothing is added.
FACTORS = (
    torch_schedulers.MultiplicativeLR,
    torch_schedulers.StepLR,
    torch_schedulers.MultiStepLR,
    torch_schedulers.ConstantLR,
    torch_schedulers.LinearLR,
    torch_schedulers.ExponentialLR,
    torch_schedulers.PolynomialLR,
    torch_schedulers.CosineAnnealingLR,
)

READERS: dict[type, Callable[[At], Schedule]] = {
    torch_schedulers.LambdaLR: _lambda,
    torch_schedulers.MultiplicativeLR: _multiplicative,
    torch_schedulers.StepLR: _step,
    torch_schedulers.MultiStepLR: _multi_step,
    torch_schedulers.ConstantLR: _constant,
    torch_schedulers.LinearLR: _linear,
    torch_schedulers.ExponentialLR: _exponential,
    torch_schedulers.PolynomialLR: _polynomial,
    torch_schedulers.CosineAnnealingLR: _cosine,
    torch_schedulers.CosineAnnealingWarmRestarts: _warm_restarts,
    torch_schedulers.OneCycleLR: _one_cycle,
    torch_schedulers.CyclicLR: _cyclic,
    SWALR: _swa,
    torch_schedulers.ReduceLROnPlateau: _on_plateau,
}
