"""Optimizers that treat each parameter by itself: what they share around the few lines that differ.

The lines that differ are a function ``advance(part, h)`` of the parameters that have taken equally many updates, which
is all of them unless the state comes from an optimizer of torch that met them at different times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import _each, _tree, updates
from purestep.transforms._leaves import paired, zero_count
from purestep.updates import Hyperparameter, Optimizer, Tree, UpdateContext

DecayMask = Callable[[str, Tensor], bool] | None
COUNT = "count"


@dataclass
class Part:
    """Parameters that have taken equally many updates, and what is kept for them.

    Attributes:
        names: of the parameters, in their order.
        p, g: parameters and gradients, the decay included in one of them.
        kept: the state's trees by name, each a list like these, with ``None`` for a parameter without an entry.
        scalars: the state's 0-d tensors by name, but for the count; :func:`purestep._each.number` reads them.
        t: the number of updates, this one included; a number where it can be read.
        each: the arithmetic over lists.
        mask: which of the parameters decay; ``None`` for all.
    """

    names: list[str]
    p: list[Tensor]
    g: list[Tensor]
    kept: dict[str, list[Any]]
    scalars: dict[str, Tensor]
    t: Any
    each: _each.Loop
    mask: list[bool] | None

    @property
    def decays(self) -> list[bool]:
        """For each parameter, whether it decays."""
        return [True] * len(self.p) if self.mask is None else self.mask

    def decayed(self, factor: Any) -> list[Tensor]:
        """The parameters, times a factor where the mask holds."""
        return _where(self.mask, self.p, lambda p: self.each.mul(p, factor))

    def with_decay(self, directions: list[Tensor], decay: Any) -> list[Tensor]:
        """``u + λθ`` where the mask holds, and ``u`` elsewhere."""
        if updates.is_zero(decay):
            return directions
        return _where(self.mask, directions, lambda u, p: self.each.add_scaled(u, p, decay), self.p)

    def mean(self, key: str, beta: Any) -> list[Tensor]:
        """``m + (1 - β)(g - m)`` of a tree."""
        return self.each.lerp(self.kept[key], self.g, 1 - beta)

    def mean_square(self, key: str, beta: Any) -> list[Tensor]:
        """``βv + (1 - β)g²`` of a tree."""
        return self.each.addcmul_(self.each.mul(self.kept[key], beta), self.g, self.g, 1 - beta)


@dataclass
class After:
    """What an update leads to: the parameters, and the trees and scalars of the state."""

    p: list[Tensor]
    kept: Mapping[str, list[Any]]
    scalars: Mapping[str, Any]


class Now:
    """The hyperparameters of an update by name, as attributes. (Dynamo traces no ``SimpleNamespace``.)"""

    def __init__(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        self._names = tuple(values)

    def values(self) -> list[Any]:
        return [getattr(self, name) for name in self._names]


Advance = Callable[[Part, Any], After]


def leafwise(
    owner: str,
    advance: Advance,
    *,
    hyperparameters: Mapping[str, Hyperparameter],
    trees: Mapping[str, Callable[[Tensor], Tensor | None]],
    scalars: Mapping[str, float] | None = None,
    wide_scalars: bool = False,
    counts: bool = True,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    decay: str = "gradient",
    maximize: bool = False,
) -> Optimizer:
    """Return the optimizer whose update is ``advance``.

    Args:
        owner: its name, for messages.
        advance: ``(part, h) -> After``, pure; ``h`` holds the hyperparameters by name as they are at this update:
            numbers where they can be read, 0-d tensors elsewhere.
        hyperparameters: by name; ``rate`` among them, which is checked here.
        trees: the state's trees: each a function of a parameter that gives its first entry, or ``None`` where it has
            none there.
        scalars: the state's 0-d tensors beside the count, with their first values, in torch's default dtype as there.
        wide_scalars: have them in float64 (float32 on MPS): a sum over all updates would stand still in float32.
        counts: whether the state has a count.
        weight_decay, decay_mask: what is ``decay`` and where.
        decay: ``"gradient"`` adds λθ to the gradient, ``"parameter"`` multiplies the parameter by ``1 - γλ`` first,
            ``"own"`` leaves it to ``advance``, with ``h.weight_decay``.
        maximize: ascend instead.

    Raises:
        TypeError, ValueError: ``rate``, ``weight_decay``, ``decay_mask`` or ``maximize`` is none.
    """
    updates.check_hyperparameter("rate", hyperparameters["rate"])
    updates.check_flag("maximize", maximize)
    updates.check_hyperparameter("weight_decay", weight_decay)
    check_mask(decay_mask)
    scalars = scalars or {}
    used = {**hyperparameters, "weight_decay": weight_decay}
    keys = {*trees, *scalars, *([COUNT] * counts)}
    decays = not updates.is_zero(weight_decay)

    def init(params: Tree) -> TensorDict:
        updates.check_real(params, owner)
        state: dict[str, Any] = {name: _first(tree, params) for name, tree in trees.items()}
        like: Any = next(iter(params.values()))
        for name, value in scalars.items():
            first = updates.as_tensor(value, like)
            state[name] = first if wide_scalars else first.to(torch.get_default_dtype())
        if counts:
            state[COUNT] = zero_count(params)
        return TensorDict(state, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        check_state(owner, state, keys)
        h: Any = Now({name: updates.now(value, context) for name, value in used.items()})
        names, g, p = paired(grads, params)
        kept = {name: _entries(state[name], names, p, first) for name, first in trees.items()}
        each = _each.arithmetic(p, g, *(_there(leaves) for leaves in kept.values()), *h.values())
        if maximize:
            g = each.neg(g)
        mask = None if decay_mask is None or not decays else [decay_mask(*pair) for pair in zip(names, p, strict=True)]
        part = Part(names, p, g, kept, {}, None, each, mask)
        if decays and decay == "parameter":
            part.p = part.decayed(1 - h.rate * h.weight_decay)
        elif decays and decay == "gradient":
            part.g = _where(mask, g, lambda g, p: each.add_scaled(g, p, h.weight_decay), p)
        if not counts:
            return _joined(params, state, [(part, advance(part, h))])
        parts = list(_by_count(part, state, scalars))
        return _joined(params, state, [(part, advance(part, h)) for part in parts])

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        return rate_used(hyperparameters["rate"], context)

    return Optimizer(init, update, hyperparams)


def rate_used(rate: Hyperparameter, context: UpdateContext) -> dict[str, Tensor]:
    """Return the metric of the rate."""
    return {"learning_rate": updates.as_tensor(updates.resolve(rate, context), context.step)}


def zeros(parameter: Tensor) -> Tensor:
    """The first entry of a tree that begins at zero."""
    return torch.zeros_like(parameter)


def rounded_product(scalar: Tensor, factor: Any) -> Tensor:
    """Return a scalar of the state times a number or tensor, rounded as the state's dtype rounds."""
    return scalar * (factor.to(scalar.dtype) if isinstance(factor, Tensor) else factor)


def check_mask(decay_mask: Any) -> None:
    """Raise ``TypeError`` unless it is a function or ``None``."""
    if decay_mask is not None and not callable(decay_mask):
        raise TypeError(f"decay_mask must be a function (name, parameter) -> bool or None, got {decay_mask!r}")


def check_state(owner: str, state: Tree, keys: set[str]) -> None:
    """Raise ``KeyError`` for a state of another optimizer; a step says in its words to whom it belongs."""
    found = set(state.keys())
    if found != keys:
        name = min(found ^ keys)
        lacks = "lacks it" if name in keys else "has it"
        raise KeyError(
            f'key "{name}" tells the state of another optimizer: {owner} keeps {sorted(keys)}, and the state {lacks}'
        )


def _first(entry: Callable[[Tensor], Tensor | None], params: Tree) -> TensorDict:
    entries = {name: entry(parameter) for name, parameter in _tree.as_dict(params).items()}
    there = {name: leaf for name, leaf in entries.items() if leaf is not None}
    return TensorDict(there, batch_size=params.batch_size)


def _entries(tree: Tree, names: list[str], params: list[Tensor], entry: Callable[[Tensor], Tensor | None]) -> list[Any]:
    """Return the leaves of a tree of the state in the order of the names, with ``None`` where it has none."""
    leaves = _tree.as_dict(tree)
    if list(leaves) == names:
        return list(leaves.values())
    if entry is zeros or len(leaves) == len(names):
        return _tree.leaves(tree, names)
    has = [entry(parameter) is not None for parameter in params]
    own = iter(_tree.leaves(tree, [name for name, holds in zip(names, has, strict=True) if holds]))
    return [next(own) if holds else None for holds in has]


def _there(leaves: list[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if leaf is not None]


def _where(mask: list[bool] | None, lists: list[Tensor], fn: Callable[..., list[Tensor]], *rest: Any) -> list[Tensor]:
    """Return the list with ``fn`` applied where the mask holds."""
    if mask is None:
        return fn(lists, *rest)
    if not any(mask):  # torch's kernels take no list without a tensor
        return lists
    chosen = iter(fn(*([leaf for leaf, holds in zip(one, mask, strict=True) if holds] for one in (lists, *rest))))
    return [next(chosen) if holds else leaf for leaf, holds in zip(lists, mask, strict=True)]


def _by_count(part: Part, state: Tree, scalars: Mapping[str, Any]) -> Iterator[Part]:
    """Give the part its count and scalars: whole where there is one count, and cut by them where each leaf has one."""
    if isinstance(state[COUNT], Tensor):
        yield _with_scalars(part, {name: state[name] for name in (COUNT, *scalars)})
        return
    groups: dict[Any, tuple[dict[str, Tensor], list[int]]] = {}
    for position, name in enumerate(part.names):
        own = {key: state[key][name] for key in (COUNT, *scalars)}
        numbers = tuple(updates.plain(value) for value in own.values())
        alike = position if any(isinstance(number, Tensor) for number in numbers) else numbers
        groups.setdefault(alike, (own, []))[1].append(position)
    for own, positions in groups.values():
        p, g = ([leaves[i] for i in positions] for leaves in (part.p, part.g))
        names = [part.names[i] for i in positions]
        kept = {key: [leaves[i] for i in positions] for key, leaves in part.kept.items()}
        mask = None if part.mask is None else [part.mask[i] for i in positions]
        yield _with_scalars(Part(names, p, g, kept, {}, None, part.each, mask), own)


def _with_scalars(part: Part, own: Mapping[str, Tensor]) -> Part:
    part.t = _each.number(own[COUNT] + 1)
    part.scalars = {name: value for name, value in own.items() if name != COUNT}
    if any(isinstance(_each.number(value), Tensor) for value in own.values()):
        part.each = _each.Loop()
    return part


def _joined(params: Tree, state: Tree, parts: list[tuple[Part, After]]) -> tuple[Tree, Tree]:
    """Return the parameters in their order, and the state, of the parts."""
    names = list(params.keys())

    def tree(of: Callable[[After], list[Any]]) -> TensorDict:
        if len(parts) == 1:
            found = of(parts[0][1])
        else:
            leaves = {name: leaf for part, after in parts for name, leaf in zip(part.names, of(after), strict=True)}
            found = [leaves[name] for name in names]
        own = [name for name, leaf in zip(names, found, strict=True) if leaf is not None]
        return _tree.named(own, _there(found), params)

    new: dict[str, Any] = {}
    old: Any
    for key, old in state.items():
        if key == COUNT:
            new[key] = old + 1 if isinstance(old, Tensor) else _tree.map_leaves(lambda count: count + 1, old)
        elif key in parts[0][1].kept:
            new[key] = tree(lambda after, key=key: after.kept[key])  # type: ignore[misc]
        elif isinstance(old, Tensor):
            new[key] = _scalar(parts[0][1].scalars[key], old)
        else:
            own = {name: after.scalars[key] for part, after in parts for name in part.names}
            each = {name: _scalar(own[name], leaf) for name, leaf in _tree.as_dict(old).items()}
            new[key] = TensorDict(each, batch_size=old.batch_size)
    return tree(lambda after: after.p), TensorDict(new, batch_size=state.batch_size)


def _scalar(value: Any, like: Tensor) -> Tensor:
    """Return a number or a tensor as the state keeps it, rounded to its dtype."""
    if isinstance(value, Tensor):
        return value.to(like.dtype)
    return torch.full((), value, dtype=like.dtype, device=like.device)
