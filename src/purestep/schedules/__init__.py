"""Schedules: pure functions of the step, and an algebra of them.

A schedule is an immutable callable: ``schedule(step)`` is its value in float64, for an int or a tensor of steps of any
shape. Its hyperparameters are the leaves of a pytree, its ``repr`` can be evaluated back, and schedules combine::

    rate = warmup_cosine(peak=3e-3, warmup_steps=100, total_steps=2_000)
    rate = 0.5 * rate.then(constant(1e-5), at=2_000)
    rate(100)
"""

from purestep.schedules import algebra  # noqa: F401  (the operators find their constructors by name)
from purestep.schedules._decorator import schedule
from purestep.schedules._schedule import Schedule, from_config
from purestep.schedules.basic import constant, cosine, linear
from purestep.schedules.warmup import noam, warmup_cosine

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "from_config",
    "linear",
    "noam",
    "schedule",
    "warmup_cosine",
]
