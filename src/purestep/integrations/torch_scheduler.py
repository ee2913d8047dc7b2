"""A schedule as a scheduler of ``torch.optim``, for loops that are not purestep's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from purestep import _checks
from purestep.schedules import Schedule

Schedules = Schedule | Sequence[Schedule]

_ENTRY = re.compile(r"(\w+)(?:\[(\d+)\])?")


class ScheduleLR(LRScheduler):
    """What :func:`to_torch` returns: a learning rate scheduler that reads its rates off schedules.

    ``step()`` goes on by one, and the ``state_dict`` is one integer, the step.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedules: Schedules, also: Mapping[str, Schedules], last_epoch: int
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        _checks.integer("last_epoch", last_epoch, minimum=-1)
        groups = optimizer.param_groups
        self._schedules: dict[tuple[str, int | None], Any] = {
            ("lr", None): _for_groups("schedule", schedules, len(groups))
        }
        if not isinstance(also, Mapping):
            raise TypeError(f"also must be a dict of schedules by hyperparameter, got {also!r}")
        for name, given in also.items():
            entry = _entry(name, groups)
            self._schedules[entry] = _for_groups(f"also[{name!r}]", given, len(groups))
        super().__init__(optimizer)
        if last_epoch >= 0:
            self.load_state_dict({"last_epoch": last_epoch + 1})

    def get_lr(self) -> list[float | Tensor]:
        """Write the other hyperparameters into the optimizer's groups, as torch's own do, and return the rates."""
        for (key, position), schedules in self._schedules.items():
            if key != "lr":
                for group, value in zip(self.optimizer.param_groups, self._values(schedules), strict=True):
                    _write(group, key, position, value)
        return list(self._values(self._schedules["lr", None]))

    def state_dict(self) -> dict[str, Any]:
        """Return the step, ``{"last_epoch": int}``."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to the step of a ``state_dict``, and write its rates into the optimizer's groups.

        (torch's own leave the groups as they are. As a part of a ``SequentialLR`` that is over already, this one must
        therefore be loaded before the optimizer.)

        Raises:
            TypeError, ValueError: anything but ``{"last_epoch": int}``, as of another scheduler.
        """
        if not isinstance(state_dict, Mapping) or set(state_dict) != {"last_epoch"}:
            got = _checks.listed(state_dict) if isinstance(state_dict, Mapping) else repr(state_dict)
            raise ValueError(f"state_dict must be {{'last_epoch': step}}, as state_dict() returns it, got {got}")
        self.last_epoch = _checks.integer("state_dict['last_epoch']", state_dict["last_epoch"], minimum=-1)
        self._step_count = self.last_epoch + 1
        if self.last_epoch < 0:  # a part of a SequentialLR that waits for its turn
            return
        rates = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            _write(group, "lr", None, float(rate))
        self._last_lr = rates

    def schedule_of(self, group: int) -> Schedule:
        """Return the schedule of a group's rate."""
        schedules = self._schedules["lr", None]
        return schedules[group] if isinstance(schedules, tuple) else schedules

    def _values(self, schedules: Any) -> list[float]:
        count = len(self.optimizer.param_groups)
        if isinstance(schedules, Schedule):  # one for all groups, those that are added later too
            return [schedules(self.last_epoch).item()] * count
        if len(schedules) != count:
            raise ValueError(
                f"there must be a schedule for each of the optimizer's {count} groups, got {len(schedules)}: give one "
                "schedule for all where groups are added later"
            )
        return [schedule(self.last_epoch).item() for schedule in schedules]


def to_torch(
    schedule: Schedules,
    optimizer: torch.optim.Optimizer,
    *,
    last_epoch: int = -1,
    also: Mapping[str, Schedules] | None = None,
) -> ScheduleLR:
    """Return a ``torch.optim.lr_scheduler.LRScheduler`` whose rate at its step t is ``schedule(t)``.

    It works wherever torch's own do: ordinary loops, ``SequentialLR``, Lightning, and skorch, as
    ``LRScheduler(functools.partial(to_torch, schedule), step_every="batch")``. It takes the place of the optimizer's
    own rate at once; ``scheduler.step()`` is called after each ``optimizer.step()``. Resuming needs one integer::

        scheduler = to_torch(schedule, optimizer)
        scheduler.load_state_dict({"last_epoch": 1_000})

    :func:`purestep.schedules.from_torch` gives the schedule back.

    Args:
        schedule: one for every group of the optimizer, or a list of one for each. Its values are whole rates, and not
            factors of the optimizer's.
        optimizer: any of ``torch.optim``; a rate that is a tensor is written in place.
        last_epoch: the step before the one to begin at, as in torch: -1 begins at step 0.
        also: other hyperparameters by their name in the optimizer's groups, in the same form:
            ``{"momentum": schedule}``, ``{"weight_decay": schedule}``, ``{"betas[0]": schedule}`` for one entry of a
            tuple.

    Raises:
        TypeError, ValueError: what is no schedule or optimizer, another number of schedules than of groups, or a
            hyperparameter that the optimizer lacks.
    """
    return ScheduleLR(optimizer, schedule, {} if also is None else also, last_epoch)


def _for_groups(name: str, schedules: Any, count: int) -> Any:
    if isinstance(schedules, Schedule):
        return schedules
    if not isinstance(schedules, (list, tuple)):
        raise TypeError(
            f"{name} must be a Schedule (constant(x) for a number) or a list of one for each group of the optimizer, "
            f"got {schedules!r} of type {type(schedules).__name__}"
        )
    for position, schedule in enumerate(schedules):
        if not isinstance(schedule, Schedule):
            raise TypeError(
                f"{name}[{position}] must be a Schedule (constant(x) for a number), got {schedule!r} of type "
                f"{type(schedule).__name__}"
            )
    if len(schedules) != count:
        raise ValueError(
            f"{name} must have a schedule for each of the optimizer's {count} groups, got {len(schedules)}"
        )
    return tuple(schedules)


def _entry(name: Any, groups: list[dict[str, Any]]) -> tuple[str, int | None]:
    """Return the key of a hyperparameter, and the position in it."""
    match = _ENTRY.fullmatch(name) if isinstance(name, str) else None
    known = sorted(key for key in groups[0] if key not in ("params", "lr", "initial_lr"))
    key, position = (match[1], None if match[2] is None else int(match[2])) if match else (str(name), None)
    if key == "lr":
        raise ValueError("also must not name 'lr': that is the first argument")
    if any(key not in group for group in groups):
        raise ValueError(
            f"also must name hyperparameters of the optimizer's groups, got {name!r}{_checks.near_misses(key, known)}; "
            f"they have {_checks.listed(known, limit=20)}"
        )
    value = groups[0][key]
    if isinstance(value, (tuple, list)) and (position is None or position >= len(value)):
        choices = [f"{key}[{i}]" for i in range(len(value))]
        raise ValueError(f"also must name one entry of {key!r}, {_checks.listed(choices)}, got {name!r}")
    if not isinstance(value, (tuple, list)) and (
        position is not None or isinstance(value, bool) or not isinstance(value, (int, float, Tensor))
    ):
        raise ValueError(f"also must name numbers, got {name!r}, where {key!r} is {value!r}")
    return key, position


def _write(group: dict[str, Any], key: str, position: int | None, value: float) -> None:
    held = group[key] if position is None else group[key][position]
    if isinstance(held, Tensor):  # which a graph or a fused kernel may hold: it must stay the same tensor
        held.fill_(value)
    elif position is None:
        group[key] = value
    else:
        group[key] = type(group[key])(value if i == position else old for i, old in enumerate(group[key]))
