"""Where a schedule jumps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from purestep._checks import integer, number
from purestep.schedules._schedule import Schedule


def is_continuous(
    schedule: Schedule, *, steps: int | None = None, at: Sequence[int] | None = None, tolerance: float = 1e-4
) -> bool:
    """Whether the schedule does not jump at a step: its value there is what it tends to just before.

    The value at each step is compared with that a few rounding errors before it (a schedule is defined between steps
    too), relative to the largest value looked at.

    Args:
        schedule: what is asked about; its hyperparameters must be readable, as Python numbers are.
        steps: look at every step from 1 to this one; or
        at: look at these steps, from 1 on, such as those where schedules were joined.
        tolerance: the largest jump allowed, relative. A slope that is infinite at one step is told from a jump down to
            about 1e-6.

    Raises:
        TypeError, ValueError: neither or both of ``steps`` and ``at`` are given; a step is no int of at least 1;
            ``tolerance`` is not a number above 0.
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a schedule, got {schedule!r} of type {type(schedule).__name__}")
    number("tolerance", tolerance, above=0)
    if (steps is None) == (at is None):
        raise ValueError(f"steps or at must be given, and not both, got {steps!r} and {at!r}")
    if steps is not None:
        here = torch.arange(1, integer("steps", steps, minimum=1) + 1, dtype=torch.float64)
    else:
        if not isinstance(at, Sequence):
            raise TypeError(f"at must be a list or tuple of steps, got {at!r} of type {type(at).__name__}")
        here = torch.tensor([integer("at", step, minimum=1) for step in at], dtype=torch.float64)
    before = here - 16 * (here - torch.nextafter(here, torch.zeros_like(here)))
    left, right = schedule(before), schedule(here)
    scale = torch.cat([left, right]).abs().amax() if len(here) else torch.zeros(())
    return bool(((right - left).abs() <= tolerance * scale).all())
