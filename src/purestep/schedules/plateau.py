"""Reduce a rate when a metric no longer improves: a schedule that needs to see, and therefore a state machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from purestep import _checks, updates
from purestep.objectives import Metric
from purestep.schedules._hyperparameters import Number, Steps, ordered
from purestep.state import TrainState
from purestep.updates import FromContext, Hyperparameter, UpdateContext


@dataclass(frozen=True, kw_only=True, repr=False)
class Plateau:
    r"""A factor that is 1 at first, and falls when a metric has not improved for longer than ``patience`` observations.

    A pure state machine, whose state lives in ``state.aux``. The rate is a schedule times the factor, so a warm-up
    before a plateau is a product::

        drop = plateau(factor=0.5, patience=3, base=1e-3)
        optimizer = ps.adamw(drop.times(linear(0.0, 1e-3, steps=100)))
        state = ps.init_state(model, optimizer, seed=0, aux={"plateau": drop})
        ps.fit(step, state, batches, steps=2_000, validate=validate, validate_every=100, observe=drop.observe)

    An observation m is better than the best one so far, b, where (with ``mode="max"`` turned round)

    .. math:: m < b\,(1 - \text{threshold}) \ (\text{rel}), \qquad m < b - \text{threshold} \ (\text{abs}).

    A better one becomes b, and the count of bad observations starts again; any other adds 1 to it. During a cooldown it
    stays 0. When it passes ``patience``, the rate :math:`r = \text{base} \cdot \text{scale}` becomes
    :math:`\max(\text{factor} \cdot r, \text{floor})` unless that is less than ``eps`` away, the count starts again, and
    so does the cooldown.

    Source: ``torch.optim.lr_scheduler.ReduceLROnPlateau``, which this follows step by step. Its ``min_lr`` is
    ``floor``. ``floor`` and ``eps`` are rates, so their effect depends on the rate that is reduced, which is ``base``:
    with torch's initial rate (or a schedule's peak) as ``base`` the two agree exactly. The first cut comes with
    observation ``patience + 2`` where nothing improves on the first. Optax's ``reduce_on_plateau`` cuts one earlier.

    An observation that is NaN is not better and so counts as a bad one; it never becomes the best. An infinite one is
    compared like any other number, so that after -inf, with ``mode="min"``, nothing is better. In ``rel`` mode a
    negative best makes the bound *worse* than the best by ``threshold``, as in torch: use ``abs`` for metrics of either
    sign.

    Attributes:
        mode: whether a better metric is smaller (``"min"``) or larger (``"max"``).
        factor: what the rate is multiplied by, at least 0 and below 1.
        patience: bad observations that change nothing, at least 0.
        threshold: how much better counts as better, at least 0. threshold_mode: ``"rel"`` or ``"abs"``.
        cooldown: observations after a cut in which none counts as bad, at least 0.
        floor: the lowest rate, at least 0 and at most ``base``. eps: the smallest cut of a rate that is made.
        base: the rate that the factor multiplies, above 0; in its units are ``floor`` and ``eps``.
        metric: the name of the metric in what ``observe`` is given.
        name: the machine's name in ``state.aux``.

    Every number may be a 0-d tensor, which is not checked: so one may vmap over them.

    Raises:
        TypeError, ValueError: a hyperparameter out of its range.
    """

    mode: str = "min"
    factor: Number = 0.1
    patience: Steps = 10
    threshold: Number = 1e-4
    threshold_mode: str = "rel"
    cooldown: Steps = 0
    floor: Number = 0.0
    eps: Number = 1e-8
    base: Number = 1.0
    metric: str = "loss"
    name: str = "plateau"

    def __post_init__(self) -> None:
        for option, choices in (("mode", ("min", "max")), ("threshold_mode", ("rel", "abs"))):
            if getattr(self, option) not in choices:
                raise ValueError(f"{option} must be one of {_checks.listed(choices)}, got {getattr(self, option)!r}")
        _check_number("factor", self.factor, minimum=0, below=1)
        for name in ("threshold", "floor", "eps"):
            _check_number(name, getattr(self, name), minimum=0)
        _check_number("base", self.base, above=0)
        ordered("floor", self.floor, "base", self.base)
        for name in ("patience", "cooldown"):
            _check_number(name, getattr(self, name), check=_checks.integer, minimum=0)
        for name in ("metric", "name"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise TypeError(f"{name} must be a name, got {getattr(self, name)!r}")

    def __repr__(self) -> str:
        given = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        changed = [
            f"{name}={value!r}" for name, value, default in given if isinstance(value, Tensor) or value != default
        ]
        return f"plateau({', '.join(changed)})"

    def init(self) -> TensorDict:
        """Return the first state, of 0-d tensors: ``best`` and ``scale`` (float64), ``bad``, ``cooldown`` and ``seen``
        (int64), the last being ``state.calls`` at the last call of :meth:`observe`."""
        return TensorDict(
            {
                "best": torch.tensor(torch.inf if self.mode == "min" else -torch.inf, dtype=torch.float64),
                "bad": torch.zeros((), dtype=torch.int64),
                "cooldown": torch.zeros((), dtype=torch.int64),
                "scale": torch.ones((), dtype=torch.float64),
                "seen": torch.tensor(-1, dtype=torch.int64),
            },
            batch_size=[],
        )

    def update(self, state: TensorDictBase, metric: float | Tensor) -> TensorDict:
        """Return the state after one more observation of the metric, a real number or a tensor like the state's own.

        Raises:
            TypeError: a bool or a complex number.
            ValueError: a tensor of another shape than the state's.
        """
        best, cooling = state["best"], state["cooldown"] > 0
        value = _observed(self.metric, metric, best)
        better = self._is_better(value, best)
        bad = (state["bad"] + 1) * ~better * ~cooling
        cut = bad > self.patience
        rate = self.base * state["scale"]
        lower = torch.clamp(rate * self.factor, min=self.floor)
        return TensorDict(
            {
                "best": torch.where(better, value, best),
                "bad": bad * ~cut,
                "cooldown": (state["cooldown"] - cooling.to(torch.int64)) * ~cut
                + (self.cooldown * cut).to(torch.int64),
                "scale": torch.where(cut & (rate - lower > self.eps), lower / self.base, state["scale"]),
                "seen": state["seen"],
            },
            batch_size=state.batch_size,
        )

    def _is_better(self, value: Tensor, best: Tensor) -> Tensor:
        if self.threshold_mode == "rel":
            return (
                value < best * (1.0 - self.threshold) if self.mode == "min" else value > best * (self.threshold + 1.0)
            )
        return value < best - self.threshold if self.mode == "min" else value > best + self.threshold

    def scale(self, state: TensorDictBase) -> Tensor:
        """Return the factor, float64, 0-d."""
        return state["scale"]

    def times(self, value: Hyperparameter) -> FromContext:
        """Return a hyperparameter for an optimizer: ``value``, a number, a 0-d tensor or a schedule, times the factor
        that is in the state."""

        updates.check_hyperparameter("value", value, minimum=None)

        def reduced(context: UpdateContext) -> Tensor:
            return updates.resolve(value, context) * self.scale(self._own(context.aux))

        return FromContext(reduced, f"{self!r}.times({value!r})")

    def observe(self, state: TrainState, metrics: Mapping[str, Any]) -> TrainState:
        """Return the train state after an observation of ``metrics[self.metric]``: a function for ``ps.fit(observe=)``.

        A second observation at the same ``state.calls`` changes nothing, so that a run may be taken up between a
        validation and its next step.

        Args:
            metrics: by name; a :class:`purestep.Mean` or another metric that has a ``value()``, a 0-d tensor, or a
                number.

        Raises:
            ValueError: ``state.aux`` lacks the machine, or ``metrics`` the metric.
        """
        own = self._own(state.aux)
        if self.metric not in metrics:
            known = _checks.listed(metrics)
            raise ValueError(f"metrics lack {self.metric!r}, which plateau(metric=...) names; they have {known}")
        metric = metrics[self.metric]
        after = self.update(own, metric.value() if isinstance(metric, Metric) else metric)
        fresh = own["seen"] != state.calls
        kept = {name: torch.where(fresh, after[name], own[name]) for name in after.keys()}  # noqa: SIM118
        kept["seen"] = state.calls.clone()
        others = {name: entry for name, entry in state.aux.items() if name != self.name}
        aux = TensorDict({**others, self.name: TensorDict(kept, batch_size=own.batch_size)}, state.aux.batch_size)
        return state.replace(aux=aux)

    def _own(self, aux: TensorDictBase | None) -> TensorDictBase:
        if aux is None or self.name not in aux.keys():  # noqa: SIM118 (a TensorDict refuses `in`)
            raise ValueError(
                f"state.aux lacks {self.name!r}: give ps.init_state the plateau, aux={{{self.name!r}: plateau}}"
            )
        return aux[self.name]


plateau = Plateau  # in lower case, as every schedule's constructor


def _check_number(name: str, value: Number, *, check: Callable[..., Any] = _checks.number, **bounds: float) -> None:
    if not isinstance(value, Tensor):
        check(name, value, **bounds)
    elif value.dim() != 0:
        raise ValueError(f"{name} must be a number or a 0-d tensor, got shape {tuple(value.shape)}; for many, vmap")


def _observed(name: str, metric: Any, best: Tensor) -> Tensor:
    """Return an observation as ``best`` is: its dtype, device and shape."""
    if isinstance(metric, Tensor):
        if metric.is_complex() or metric.dtype == torch.bool:
            raise TypeError(f"metric {name!r} must be a real number, got a tensor of {metric.dtype}")
        if metric.shape != best.shape:
            raise ValueError(
                f"metric {name!r} must be of shape {tuple(best.shape)} as the state's tensors are, got "
                f"{tuple(metric.shape)}"
            )
        return metric.detach().to(best.device, best.dtype)
    if isinstance(metric, bool) or not isinstance(metric, (int, float)):
        raise TypeError(f"metric {name!r} must be a real number, got {metric!r} of type {type(metric).__name__}")
    return torch.full_like(best, metric)
