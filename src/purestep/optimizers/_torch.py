"""Optimizers of torch read and written back: a run goes on here, and there again, with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.optim import lr_scheduler

from purestep import _checks, schedules
from purestep.optimizers._leafwise import COUNT
from purestep.optimizers.adafactor import adafactor
from purestep.optimizers.adam import adam, adamw
from purestep.optimizers.adam_variants import adamax, nadam, radam
from purestep.optimizers.adaptive import adadelta, adagrad, rmsprop
from purestep.optimizers.muon import muon
from purestep.optimizers.rprop import rprop
from purestep.optimizers.sgd import asgd, sgd
from purestep.transforms.partition import partition
from purestep.updates import Optimizer, Tree

Named = nn.Module | Mapping[str, Tensor]
Group = dict[str, Any]
SCALARS = ("mu_product", "eta", "mu")


@dataclass(frozen=True)
class _Class:
    """How an optimizer of torch is written here.

    Attributes:
        make: of ours.
        same: torch's options that have the same name here.
        renamed: ours by torch's name.
        eager: whether torch makes the state before the first update.
        counts: whether torch keeps a ``step``.
    """

    make: Callable[..., Optimizer]
    same: tuple[str, ...]
    renamed: Mapping[str, str] | None = None
    eager: bool = False
    counts: bool = True

    def rule(self, group: Group, rate: Any, changed: Mapping[str, Any]) -> Optimizer:
        names = {name: name for name in self.same} | dict(self.renamed or {})
        options = {ours: _as_numbers(group[theirs]) for theirs, ours in names.items()}
        if "adjust" in options:
            options["adjust"] = options["adjust"] or "original"
        make = adamw if self.make is adam and group.get("decoupled_weight_decay") else self.make
        return make(_as_numbers(group["lr"]) if rate is None else rate, **{**options, **changed})


_DECAYS = ("weight_decay", "maximize")
_DECOUPLED = {"decoupled_weight_decay": "decoupled"}
_CLASSES: dict[type, _Class] = {
    torch.optim.SGD: _Class(sgd, ("momentum", "dampening", "nesterov", *_DECAYS), counts=False),
    torch.optim.Adam: _Class(adam, ("betas", "eps", "amsgrad", *_DECAYS)),
    torch.optim.AdamW: _Class(adam, ("betas", "eps", "amsgrad", *_DECAYS)),
    torch.optim.Adamax: _Class(adamax, ("betas", "eps", *_DECAYS)),
    torch.optim.NAdam: _Class(nadam, ("betas", "eps", "momentum_decay", *_DECAYS), _DECOUPLED),
    torch.optim.RAdam: _Class(radam, ("betas", "eps", *_DECAYS), _DECOUPLED),
    torch.optim.Adagrad: _Class(adagrad, ("lr_decay", "initial_accumulator_value", "eps", *_DECAYS), eager=True),
    torch.optim.Adadelta: _Class(adadelta, ("rho", "eps", *_DECAYS)),
    torch.optim.RMSprop: _Class(rmsprop, ("alpha", "eps", "momentum", "centered", *_DECAYS)),
    torch.optim.ASGD: _Class(asgd, ("lambd", "alpha", "t0", *_DECAYS)),
    torch.optim.Rprop: _Class(rprop, ("etas", "step_sizes", "maximize")),
    torch.optim.Adafactor: _Class(adafactor, ("beta2_decay", "eps", "d", *_DECAYS)),
    torch.optim.Muon: _Class(
        muon,
        ("weight_decay", "momentum", "nesterov", "ns_coefficients", "ns_steps", "eps"),
        {"adjust_lr_fn": "adjust"},
        counts=False,
    ),
}


def from_torch(
    optimizer: torch.optim.Optimizer, model: Named, *, scheduler: lr_scheduler.LRScheduler | None = None
) -> tuple[Optimizer, TensorDict]:
    """Return the optimizer that goes on where one of torch stands, and its state: bit for bit, eagerly on the CPU.

    .. code-block:: python

        optimizer, opt_state = ps.optimizers.from_torch(torch_optimizer, model)
        state = ps.init_state(model, optimizer, seed=0).replace(opt_state=opt_state)

    Several groups become a partition (:func:`purestep.transforms.partition`) with the labels ``"0"``, ``"1"``, ...; a
    parameter that has taken fewer updates than others keeps a count of its own. Nothing that is given is changed, and
    nothing of it kept. Settings that only choose among torch's own paths (``foreach``, ``fused``, ``capturable``,
    ``differentiable``) are passed over: the bits are those of ``foreach=False``.

    Args:
        optimizer: of a class of ``torch.optim`` but ``LBFGS`` and ``SparseAdam``.
        model: whose parameters these are, for their names; or a mapping from names to parameters.
        scheduler: one that moves this optimizer's rates. The rates then follow
            :func:`purestep.schedules.from_torch`, which counts the scheduler's own steps, so the state begins at them:
            ``state.replace(step=torch.tensor(scheduler.last_epoch))``. What a ``OneCycleLR`` or a ``CyclicLR`` does to
            the momentum (or β₁) is followed too.

    Raises:
        TypeError: an optimizer of another class, a model or scheduler that is none, parameters of no real dtype.
        ValueError: a parameter of the optimizer that is none of the model's; one of the model's that requires a
            gradient and is in no group; a scheduler of another optimizer, or one that is no function of the step.
    """
    kind = _class_of(optimizer)
    groups = _groups(optimizer, model)
    if scheduler is not None:
        _check_scheduler(scheduler, optimizer)
    rules, states = {}, {}
    for label, named in groups.items():
        group = optimizer.param_groups[int(label)]
        rate, changed = (None, {}) if scheduler is None else _scheduled(scheduler, int(label), group)
        rules[label] = kind.rule(group, rate, changed)
        states[label] = _read(kind, optimizer, rules[label], named)
    if len(rules) == 1:
        return next(iter(rules.values())), next(iter(states.values()))
    label_of = {name: label for label, named in groups.items() for name in named}
    return partition(rules, lambda name, parameter: label_of.get(name)), TensorDict(states, batch_size=[])


def to_torch(state: Tree, optimizer: torch.optim.Optimizer, model: Named) -> None:
    """Write an optimizer's state into one of torch, which then goes on with the same bits (``foreach=False``).

    The parameters' values are not written: ``ps.load_into(model, state)`` does that, and keeps the parameters that the
    optimizer holds. Options and rates of the groups stay what they are.

    Args:
        state: of the optimizer that :func:`from_torch` makes of ``optimizer``: ``state.opt_state``, or its part where
            it closes a chain, ``state.opt_state["1"]``.
        optimizer: of torch; its state is replaced.
        model: as in :func:`from_torch`.

    Raises:
        TypeError, ValueError: as :func:`from_torch`; a state of another optimizer or of other parameters.
    """
    kind = _class_of(optimizer)
    groups = _groups(optimizer, model)
    written: dict[Tensor, dict[str, Any]] = {}
    for label, named in groups.items():
        group = optimizer.param_groups[int(label)]
        if len(groups) > 1 and label not in state.keys():  # noqa: SIM118 (a TensorDict refuses `in`)
            raise ValueError(f"state must have a part for each group, {list(groups)}, got {sorted(state.keys())}")
        own = state if len(groups) == 1 else state[label]
        _check_alike(own, kind.rule(group, None, {}).init(TensorDict(_values(named), batch_size=[])))
        for name, parameter in named.items():
            written[parameter] = _entry(kind, group, own, name, parameter)
    for parameter, entry in written.items():
        optimizer.state.pop(parameter, None)
        if entry:
            optimizer.state[parameter] = entry


# Reading.


def _read(kind: _Class, optimizer: torch.optim.Optimizer, rule: Optimizer, named: dict[str, Tensor]) -> TensorDict:
    """Return the state of one group: what torch has, and the first values of what it has not made yet."""
    first = rule.init(TensorDict(_values(named), batch_size=[]))
    held = {name: optimizer.state.get(parameter, {}) for name, parameter in named.items()}
    scalars: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] = {}
    value: Any
    for key, value in first.items():
        if key == COUNT:
            scalars[key] = {name: _count(kind, own, value) for name, own in held.items()}
        elif key in SCALARS:
            scalars[key] = {name: _held(own, key, value).clone() for name, own in held.items()}
        else:
            state[key] = TensorDict({name: _held(held[name], key, leaf) for name, leaf in value.items()}, batch_size=[])
    alike = all(map(_alike, scalars.values()))
    for key, each in scalars.items():
        state[key] = next(iter(each.values())) if alike else TensorDict(each, batch_size=[])
    return TensorDict(state, batch_size=[])


def _count(kind: _Class, held: dict[str, Any], like: Tensor) -> Tensor:
    # Of SGD all that counts is whether there is a velocity.
    taken = float(held.get("step", 0)) if kind.counts else float(held.get("momentum_buffer") is not None)
    return torch.full_like(like, int(taken))


def _held(held: dict[str, Any], key: str, first: Tensor) -> Tensor:
    value = held.get(key)
    return first if value is None else value.detach().clone()


def _alike(scalars: dict[str, Tensor]) -> bool:
    first, *rest = scalars.values()
    return all(value.dtype == first.dtype and torch.equal(value, first) for value in rest)


# Writing.


def _entry(kind: _Class, group: Group, state: Tree, name: str, parameter: Tensor) -> dict[str, Any]:
    """Return what torch keeps for one parameter."""
    count = _own(state[COUNT], name) if COUNT in state.keys() else None  # noqa: SIM118
    if count is not None and count == 0 and not kind.eager:
        return {}
    entry: dict[str, Any] = {}
    value: Any
    if kind.counts and count is not None:
        on_device = group.get("capturable") or group.get("fused") or kind.make is asgd
        # torch's own rule for the dtype of its counts
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        entry["step"] = torch.tensor(float(count), dtype=dtype, device=parameter.device if on_device else "cpu")
    for key, value in state.items():
        if key in SCALARS:
            entry[key] = _own(value, name).clone()
        elif key != COUNT and name in value.keys():  # noqa: SIM118
            entry[key] = value[name].detach().clone()
    return entry


def _own(value: Any, name: str) -> Tensor:
    return value if isinstance(value, Tensor) else value[name]


def _check_alike(state: Tree, right: Tree) -> None:
    if {*state.keys()} != {*right.keys()}:
        raise ValueError(
            f"state must be this optimizer's, with {sorted(right.keys())}, got {sorted(state.keys())}; of a chain "
            "give the part of its optimizer"
        )
    for key, value in right.items():
        if isinstance(value, Tensor):
            continue
        for name, leaf in value.items():
            found = state[key].get(name, None)
            if found is None or found.shape != leaf.shape:
                got = "none" if found is None else f"shape {tuple(found.shape)}"
                raise ValueError(
                    f"state must be of these parameters, with {key!r} of {name!r} of shape {tuple(leaf.shape)}, "
                    f"got {got}"
                )


# What is given.


def _class_of(optimizer: Any) -> _Class:
    if type(optimizer) not in _CLASSES:
        known = ", ".join(cls.__name__ for cls in _CLASSES)
        raise TypeError(f"optimizer must be one of torch.optim's {known}, got {type(optimizer).__name__}")
    return _CLASSES[type(optimizer)]


def _groups(optimizer: torch.optim.Optimizer, model: Any) -> dict[str, dict[str, Tensor]]:
    """Return the named parameters of each group that has any, by its number, in the order of the names."""
    if isinstance(model, nn.Module):
        named = dict(model.named_parameters())
    elif isinstance(model, Mapping):
        named = dict(model)
    else:
        raise TypeError(f"model must be a module or a mapping from names to parameters, got {type(model).__name__}")
    owner = {id(p): str(i) for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    known = {id(p) for p in named.values()}
    if unknown := [p for group in optimizer.param_groups for p in group["params"] if id(p) not in known]:
        raise ValueError(
            f"every parameter of optimizer must be one of model's, and {len(unknown)} is not, the first of shape "
            f"{tuple(unknown[0].shape)}"
        )
    if left := [name for name, p in named.items() if id(p) not in owner and p.requires_grad]:
        raise ValueError(
            f"optimizer leaves out {_checks.listed(left)}, which requires a gradient: freeze it with "
            "requires_grad_(False), or give a mapping with the names of the others"
        )
    groups: dict[str, dict[str, Tensor]] = {
        str(i): {} for i, group in enumerate(optimizer.param_groups) if group["params"]
    }
    for name, p in named.items():
        if id(p) in owner:
            groups[owner[id(p)]][name] = p
    return groups


def _values(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in named.items()}


def _as_numbers(value: Any) -> Any:
    """Return an option with numbers in the place of 0-d tensors."""
    if isinstance(value, tuple):
        return tuple(_as_numbers(v) for v in value)
    return value.item() if isinstance(value, Tensor) else value


# Schedulers.


def _check_scheduler(scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(scheduler, lr_scheduler.LRScheduler):
        raise TypeError(f"scheduler must be one of torch.optim.lr_scheduler, got {type(scheduler).__name__}")
    if scheduler.optimizer is not optimizer:
        raise ValueError("scheduler must be one that moves this optimizer's rates, got one of another optimizer")
    parts = getattr(scheduler, "_schedulers", [])
    if any(getattr(part, "cycle_momentum", False) for part in parts):
        raise ValueError("a scheduler among others that moves the momentum too is not followed: read the parts alone")


def _scheduled(scheduler: Any, group: int, options: Group) -> tuple[Any, dict[str, Any]]:
    """Return the rate of a group, and the options that the scheduler moves beside it."""
    rate = schedules.from_torch(scheduler, group=group)
    if not getattr(scheduler, "cycle_momentum", False):
        return rate, {}
    moved = schedules.from_torch(scheduler, group=group, of="momentum")
    if "betas" in options:
        return rate, {"betas": (moved, *_as_numbers(tuple(options["betas"]))[1:])}
    return rate, {"momentum": moved}
