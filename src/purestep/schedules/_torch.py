"""The schedule that a scheduler of ``torch.optim`` follows, from wherever it stands."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.swa_utils import SWALR

from purestep import _checks
from purestep.schedules._schedule import Schedule
from purestep.schedules._torch_curves import torch_rebound
from purestep.schedules._torch_parts import (
    FACTORS,
    READERS,
    At,
    momentum,
    multiplied,
    name_of,
    next_zero,
    set_to,
    shifted,
    switched,
    whole,
)
from purestep.schedules.basic import constant

_APART = "Read them by themselves, and multiply: from_torch(a) * from_torch(b) / base_rate"


def from_torch(scheduler: torch_schedulers.LRScheduler, *, group: int = 0, of: str = "rate") -> Schedule:
    """Return the schedule that a scheduler of ``torch.optim`` follows from the step at which it stands.

    ``schedule(t)`` is the rate of the optimizer's group at the scheduler's step t (its ``last_epoch``), for every t
    from its present one on: what torch would compute step after step, in closed form. A rate that was changed by hand
    is followed as torch follows it. Neither the scheduler nor the optimizer is changed, and nothing of them is kept but
    the functions of a ``LambdaLR``, a ``MultiplicativeLR`` or a ``CyclicLR``.

    Args:
        scheduler: of any class of ``torch.optim.lr_scheduler``, or ``SWALR``, or what
            :func:`purestep.integrations.torch_scheduler.to_torch` returns, whose schedule is given back.
        group: the index of one of the optimizer's groups.
        of: ``"rate"``, or ``"momentum"`` for that which a ``OneCycleLR`` or a ``CyclicLR`` moves beside the rate.

    Raises:
        TypeError: no scheduler, or one of a class of somebody's own.
        ValueError: no such group; a ``ReduceLROnPlateau``, which is no function of the step (see ``plateau``); and what
            torch does by accident, or raises at, named in the message: a chain that is no product, a sequence inside a
            sequence, a factor of zero that is divided by.
    """
    if not isinstance(scheduler, torch_schedulers.LRScheduler):
        raise TypeError(f"scheduler must be one of torch.optim.lr_scheduler, got {type(scheduler).__name__}")
    if of not in ("rate", "momentum"):
        raise ValueError(f"of must be one of 'rate', 'momentum', got {of!r}")
    groups = scheduler.optimizer.param_groups
    if _checks.integer("group", group, minimum=0) >= len(groups):
        raise ValueError(f"group must be below {len(groups)}, the number of the optimizer's groups, got {group}")
    if of == "momentum":
        return momentum(scheduler, group)
    held = groups[group]["lr"]
    rounded = isinstance(held, Tensor) and held.element_size() < 8
    at = At(scheduler, group, 0, float(held), float(held), 1e-5 if rounded else 1e-10).of(scheduler)
    if at.epoch < 0:
        raise ValueError(
            f"scheduler must have begun, got a {name_of(at)} at step {at.epoch}, which waits in a SequentialLR for its "
            "turn: read that one"
        )
    return _future(at)


def _future(at: At) -> Schedule:
    """Return the schedule of a scheduler in its own steps, right from ``at.epoch`` on."""
    if hasattr(at.scheduler, "schedule_of"):
        return set_to(at, at.scheduler.schedule_of(at.group))
    reader = {torch_schedulers.SequentialLR: _sequential, torch_schedulers.ChainedScheduler: _chained, **READERS}.get(
        type(at.scheduler)
    )
    if reader is None:
        raise TypeError(
            f"scheduler must be of a class of torch's own, got {type(at.scheduler).__name__}, whose rates only its own "
            "code knows: write them as a schedule (purestep.schedules.schedule)"
        )
    return reader(at)


# Schedulers of schedulers.


def _sequential(at: At) -> Schedule:
    parts, milestones = at.scheduler._schedulers, list(at.scheduler._milestones)
    if any(not isinstance(m, int) for m in milestones) or milestones != sorted(milestones):
        raise ValueError(
            f"SequentialLR's milestones must be ints in order, got {milestones}: torch finds its way in no others"
        )
    active = bisect_right(milestones, at.epoch)
    now = at.of(parts[active])
    curve = shifted(_future(now), at.epoch - now.epoch)
    for i in range(active + 1, len(parts)):
        start = milestones[i - 1]
        if milestones[i : i + 1] != [start]:  # otherwise its turn is over before it comes
            curve = curve.then(_future(_restarted(at.of(parts[i], epoch=0), curve, start)), at=start)
    return curve


def _restarted(at: At, before: Schedule, start: int) -> At:
    """Return a part of a SequentialLR at its milestone, where torch sends it to its step 0."""
    part, last = at.scheduler, before(start - 1).item()
    if isinstance(part, (torch_schedulers.SequentialLR, torch_schedulers.ChainedScheduler)):
        raise ValueError(
            f"a {type(part).__name__} as a later part of a SequentialLR raises NotImplementedError in torch at its "
            f"milestone {start}. Read the parts by themselves, and join them: "
            f"join([from_torch(a), from_torch(b)], at=[{start}])"
        )
    if isinstance(part, torch_schedulers.MultiplicativeLR):  # not sent back to its base rate
        return replace(at, rate=last * float(part.lr_lambdas[at.group](0)))
    if isinstance(part, SWALR) and part.anneal_epochs > 0:  # which begins at whatever the rate is
        return replace(at, rate=last)
    if not hasattr(part, "_get_closed_form_lr"):
        return replace(at, rate=None)
    twin = copy.copy(part)
    twin.last_epoch = 0
    try:
        return replace(at, rate=float(twin._get_closed_form_lr()[at.group]))
    except ZeroDivisionError:
        raise ValueError(
            f"a {type(part).__name__} of no steps divides by zero in torch at the SequentialLR's milestone {start}"
        ) from None


def _chained(at: At) -> Schedule:
    parts = [at.of(part, rate=None) for part in _links(at.scheduler)]
    if len(parts) == 1:
        return shifted(_future(replace(parts[0], rate=at.rate)), at.epoch - parts[0].epoch)
    for part in parts:
        if type(part.scheduler) not in FACTORS:
            raise ValueError(
                f"a ChainedScheduler with a {name_of(part)} is no product: that one sets the rate anew at each step, "
                f"and what the others did before it is lost. {_APART}"
            )
    at = replace(at, base=parts[0].base)
    waves = [i for i, part in enumerate(parts) if type(part.scheduler) is torch_schedulers.CosineAnnealingLR]
    if waves:
        return _chained_cosine(at, parts, waves)
    return multiplied(at, _product(at, parts, at.base))


def _product(at: At, parts: Sequence[At], base: float) -> Schedule:
    """Return the product of the factors, in the steps of the chain."""
    curves = [
        shifted(READERS[type(part.scheduler)](replace(part, base=1.0 if i else base)), at.epoch - part.epoch)
        for i, part in enumerate(parts)
    ]
    product = curves[0] if curves else constant(base)
    for curve in curves[1:]:
        product = product * curve
    return product


def _chained_cosine(at: At, parts: Sequence[At], waves: Sequence[int]) -> Schedule:
    wave = parts[waves[0]]
    others = [part for i, part in enumerate(parts) if i != waves[0]]
    if len(waves) > 1 or wave.scheduler.eta_min != 0:
        what = "several of them" if len(waves) > 1 else f"eta_min={wave.scheduler.eta_min}"
        raise ValueError(
            f"a ChainedScheduler with a CosineAnnealingLR and {what} is no product: it adds to what the others "
            f"multiply. {_APART}"
        )
    if any(_ends_in_zero(part.scheduler) for part in others):
        raise ValueError(
            "a ChainedScheduler with a CosineAnnealingLR and another that ends in 0 is no product: from its lowest "
            f"step the cosine rises again on the base rate. {_APART}"
        )
    period = whole("CosineAnnealingLR's T_max", wave.scheduler.T_max)
    at, late = replace(at, epoch=wave.epoch), at.epoch - wave.epoch
    before, after = _product(at, parts[: waves[0]], 1.0), _product(at, parts[waves[0] + 1 :], 1.0)
    curve = torch_rebound(wave.base, period, before, after)
    changed = multiplied(at, curve)
    if changed is not curve:
        changed = switched(changed, curve, next_zero(at.epoch, period) + 1)
    return shifted(changed, late)


def _ends_in_zero(scheduler: Any) -> bool:
    return (
        (type(scheduler) is torch_schedulers.PolynomialLR and scheduler.total_iters > 0 and scheduler.power > 0)
        or (type(scheduler) is torch_schedulers.LinearLR and scheduler.end_factor == 0)
        or getattr(scheduler, "gamma", 1) == 0
    )


def _links(scheduler: Any) -> list[Any]:
    """Return the parts of a chain, those of a chain inside it among them."""
    if type(scheduler) is torch_schedulers.ChainedScheduler:
        return [link for part in scheduler._schedulers for link in _links(part)]
    if type(scheduler) is torch_schedulers.SequentialLR:
        active = bisect_right(scheduler._milestones, scheduler.last_epoch)
        if active == len(scheduler._schedulers) - 1:  # the last one, which stays
            return _links(scheduler._schedulers[active])
    return [scheduler]
