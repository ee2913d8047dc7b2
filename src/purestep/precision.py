"""Half precision in the forward and backward pass, with float32 parameters; and the scale that float16 needs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from purestep import _checks

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOSS_SCALE = "loss_scale"


def check_precision(precision: str) -> None:
    """Raise ``ValueError`` where it is none of ``"float32"``, ``"bfloat16"``, ``"float16"``."""
    if precision not in _DTYPES:
        raise ValueError(f"precision must be one of {_checks.listed(_DTYPES)}, got {precision!r}")


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return torch's autocast to a precision; ``"float32"`` casts nothing and leaves every dtype as it is."""
    dtype = _DTYPES[precision]
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def scale_of(aux: TensorDictBase) -> TensorDictBase:
    """Return the state of the loss scale, or raise ``ValueError`` where there is none."""
    if LOSS_SCALE not in aux.keys():  # noqa: SIM118 (a TensorDict refuses `in`)
        raise ValueError(
            f"state.aux lacks {LOSS_SCALE!r}: give ps.init_state the scale that the step has, "
            'aux={"loss_scale": scale}'
        )
    return aux[LOSS_SCALE]


@dataclass(frozen=True)
class DynamicLossScale:
    """The factor by which a float16 backward pass is multiplied, so that small gradients do not vanish.

    A pure state machine: a step whose gradient is not finite is skipped and multiplies the scale by ``backoff``;
    ``growth_interval`` finite steps in a row multiply it by ``growth``. It lives in ``state.aux["loss_scale"]``::

        scale = ps.DynamicLossScale()
        step = ps.train_step(model, objective, optimizer, precision="float16", loss_scale=scale)
        state = ps.init_state(model, optimizer, seed=0, aux={"loss_scale": scale})

    Gradients are divided by it in float32 before anything reads them. All factors are powers of two, so that scaling
    rounds nothing. Source: Micikevicius et al., "Mixed precision training" (2018); the defaults are
    ``torch.amp.GradScaler``'s.

    Attributes:
        initial: the first scale.
        growth: above 1. backoff: between 0 and 1. growth_interval: finite steps, at least 1.
        minimum, maximum: what the scale stays between. A gradient that is not finite at the minimum is no matter of
            scaling, and ``on_nonfinite="raise"`` raises then.

    Raises:
        TypeError, ValueError: a number out of its range, or not a power of two.
    """

    initial: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    growth_interval: int = 2000
    minimum: float = 1.0
    maximum: float = 2.0**24

    def __post_init__(self) -> None:
        _checks.number("growth", self.growth, above=1)
        _checks.number("backoff", self.backoff, above=0, below=1)
        _checks.integer("growth_interval", self.growth_interval, minimum=1)
        for name in ("minimum", "maximum", "initial", "growth", "backoff"):
            _checks.number(name, getattr(self, name), above=0)
            if torch.frexp(torch.tensor(float(getattr(self, name)), dtype=torch.float64)).mantissa != 0.5:
                raise ValueError(f"{name} must be a power of two, so that scaling is exact, got {getattr(self, name)}")
        if not self.minimum <= self.initial <= self.maximum:
            raise ValueError(
                f"initial must be from minimum={self.minimum} to maximum={self.maximum}, got {self.initial}"
            )

    def init(self) -> TensorDict:
        """Return the first state: ``scale`` (float32, 0-d) and ``finite_steps`` (int64, 0-d)."""
        return TensorDict(
            {
                "scale": torch.tensor(self.initial, dtype=torch.float32),
                "finite_steps": torch.zeros((), dtype=torch.int64),
            },
            batch_size=[],
        )

    def update(self, state: TensorDictBase, finite: Tensor) -> TensorDict:
        """Return the state after a step whose gradient was ``finite`` (bool, 0-d), or was not."""
        scale, steps = state["scale"], torch.where(finite, state["finite_steps"] + 1, 0)
        grown = steps >= self.growth_interval
        larger = torch.where(grown, torch.clamp(scale * self.growth, max=self.maximum), scale)
        smaller = torch.clamp(scale * self.backoff, min=self.minimum)
        return TensorDict(
            {"scale": torch.where(finite, larger, smaller), "finite_steps": torch.where(grown, 0, steps)},
            batch_size=state.batch_size,
        )
