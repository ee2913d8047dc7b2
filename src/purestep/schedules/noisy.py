"""Noise on a schedule, as a function of a seed and the step."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from purestep import random
from purestep.schedules._curves import like
from purestep.schedules._decorator import schedule
from purestep.schedules._hyperparameters import Number, Steps, above, at_least, ordered
from purestep.schedules._schedule import Schedule

_MASK = 0xFFFFFFFF


def _check_noise(
    inner: Schedule, seed: Steps, scale: Number, spread: Number, kind: str, start: Steps, stop: Steps | None
) -> None:
    at_least("seed", seed, 0)
    if not isinstance(seed, Tensor) and seed >= 1 << 53:
        raise ValueError(f"seed must be below 2**53, got {seed}")
    at_least("scale", scale, 0)
    above("spread", spread, 0)
    at_least("start", start, 0)
    if stop is not None:
        ordered("start", start, "stop", stop, strictly=True)


@schedule(check=_check_noise)
def noise(
    step: Tensor,
    inner: Schedule,
    seed: Steps,
    *,
    scale: Number = 0.67,
    spread: Number = 1.0,
    kind: Literal["normal", "uniform"] = "normal",
    start: Steps = 0,
    stop: Steps | None = None,
) -> Tensor:
    r"""``inner``, made larger or smaller at each step by a share that ``seed`` and the step decide.

    .. math:: s(t) = \text{inner}(t)\, (1 + z_t), \qquad \text{start} \le t < \text{stop}

    and ``inner`` itself at other steps. ``z`` is uniform in ``[-scale, scale]``, or a normal variable of standard
    deviation ``spread``, cut off at ``-scale`` and ``scale``: its distribution function is inverted, so nothing is
    drawn twice. A ``scale`` below 1 keeps the sign of ``inner``.

    The number behind ``z`` is of Philox 4x32-10 (``purestep.random``), keyed by the seed and counted by the whole step:
    a pure function of the two, the same on every device and in every order of the steps, that reads no generator. The
    derivative by ``seed`` is 0, and so is that of ``z`` by the step.

    Equivalents: timm's ``noise_range_t``, ``noise_type``, ``noise_pct`` (``scale``), ``noise_std`` (``spread``) and
    ``noise_seed``, whose numbers are those of torch's generator seeded with the seed plus the step, drawn until one is
    within the bounds: the same distribution, other numbers.
    """
    uniform = _uniform(step, seed)
    if kind == "uniform":
        shares = scale * (2 * uniform - 1)
    else:
        bound = torch.erf(like(step, scale) / (math.sqrt(2) * spread))
        shares = math.sqrt(2) * spread * torch.erfinv((2 * uniform - 1) * bound)
    noisy = step >= start
    if stop is not None:
        noisy = noisy & (step < stop)
    return inner(step) * (1 + torch.where(noisy, shares, 0.0))


def _uniform(step: Tensor, seed: Steps) -> Tensor:
    """A number inside (0, 1) for each step."""
    whole = torch.round(like(step, seed).detach()).long()
    key = torch.stack([whole & _MASK, whole >> 32], dim=-1)
    words = random.fold_in(key, step.detach().long())[..., 0]
    return (words.to(step.dtype) + 0.5) * 2.0**-32
