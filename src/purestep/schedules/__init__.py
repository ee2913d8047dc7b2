"""Schedules: pure functions of the step, and an algebra of them.

A schedule is an immutable callable: ``schedule(step)`` is its value in float64, for an int or a tensor of steps of any
shape. Its hyperparameters are the leaves of a pytree, its ``repr`` can be evaluated back, and schedules combine::

    rate = warmup_cosine(peak=3e-3, warmup_steps=100, total_steps=2_000)
    rate = 0.5 * rate.then(constant(1e-5), at=2_000)
    rate(100)
"""

from purestep.schedules._decorator import schedule
from purestep.schedules._read import parse
from purestep.schedules._schedule import Schedule, from_config
from purestep.schedules._torch import from_torch
from purestep.schedules.algebra import join, maximum, minimum
from purestep.schedules.basic import constant, cosine, linear, polynomial
from purestep.schedules.continuity import is_continuous
from purestep.schedules.cycles import cyclic, cyclic_momentum, one_cycle, one_cycle_momentum, warm_restarts
from purestep.schedules.decays import exponential, one_minus_sqrt, sigmoid_decay, step_decay, tanh_decay
from purestep.schedules.noisy import noise
from purestep.schedules.own import function
from purestep.schedules.phases import inverse_sqrt, noam, swa_anneal, tri_stage, wsd
from purestep.schedules.piecewise import multi_step, multiplicative, piecewise_constant, piecewise_interpolate
from purestep.schedules.plateau import plateau
from purestep.schedules.warmups import (
    resnet_warmup,
    warmup,
    warmup_constant,
    warmup_cosine,
    warmup_exponential,
    warmup_linear,
)

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "cyclic",
    "cyclic_momentum",
    "exponential",
    "from_config",
    "from_torch",
    "function",
    "inverse_sqrt",
    "is_continuous",
    "join",
    "linear",
    "maximum",
    "minimum",
    "multi_step",
    "multiplicative",
    "noam",
    "noise",
    "one_cycle",
    "one_cycle_momentum",
    "one_minus_sqrt",
    "parse",
    "piecewise_constant",
    "piecewise_interpolate",
    "plateau",
    "polynomial",
    "resnet_warmup",
    "schedule",
    "sigmoid_decay",
    "step_decay",
    "swa_anneal",
    "tanh_decay",
    "tri_stage",
    "warm_restarts",
    "warmup",
    "warmup_constant",
    "warmup_cosine",
    "warmup_exponential",
    "warmup_linear",
    "wsd",
]
