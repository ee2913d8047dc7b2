"""Small maps over trees of tensors: flat TensorDicts of parameters.

A tree of parameters is a flat TensorDict whose keys are the module's own dotted names (``"encoder.0.weight"``), as in
``named_parameters()``. Arithmetic goes leaf by leaf through :func:`map_leaves`: a 0-d tensor times a TensorDict fails
inside ``torch.compile``, and a plain loop is what the compiler fuses best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor


def is_transformed() -> bool:
    """Whether we are inside a functorch transform or a compilation, where no tensor's values can be read."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def as_dict(tree: Any) -> dict[str, Tensor]:
    """Return the leaves of a flat tree by name."""
    return dict(tree.items())


def map_leaves(fn: Callable[..., Tensor], tree: TensorDictBase, *rest: TensorDictBase) -> TensorDict:
    """Return the TensorDict of ``fn(leaf, *leaves of the rest)``; the keys of ``tree`` decide."""
    return TensorDict(
        {name: fn(leaf, *(other[name] for other in rest)) for name, leaf in tree.items()}, batch_size=tree.batch_size
    )


def leaves(tree: TensorDictBase, names: list[str]) -> list[Tensor]:
    """Return the leaves of these names, in their order; a tree has these and no others.

    Raises:
        KeyError: a name too few or too many.
    """
    if len(tree.keys()) != len(names):
        for name in tree.keys():  # noqa: SIM118 (a TensorDict iterates over its rows)
            if name not in names:
                raise KeyError(f'key "{name}" is of no parameter')
    return [tree[name] for name in names]


def named(names: list[str], tensors: Sequence[Tensor], like: TensorDictBase | None = None) -> TensorDict:
    """Return a flat TensorDict of tensors by name."""
    return TensorDict(dict(zip(names, tensors, strict=True)), batch_size=[] if like is None else like.batch_size)


def zeros_like(tree: TensorDictBase) -> TensorDict:
    """Return zeros of the same names, shapes, dtypes and devices."""
    return map_leaves(torch.zeros_like, tree)


def select(tree: TensorDictBase, names: Iterable[str]) -> TensorDictBase:
    """Return the flat TensorDict of the named leaves, in their order: the tree itself where these are all."""
    names = tuple(names)
    if tuple(tree.keys()) == names:
        return tree
    return TensorDict({name: tree[name] for name in names}, batch_size=tree.batch_size)


def overlay(tree: TensorDictBase, changed: TensorDictBase) -> TensorDictBase:
    """Return ``tree`` with the leaves of ``changed`` in place of its own, in the order of ``tree``."""
    if list(tree.keys()) == list(changed.keys()):
        return changed
    return TensorDict({name: changed.get(name, leaf) for name, leaf in tree.items()}, batch_size=tree.batch_size)


def choose(condition: Tensor, tree: Any, other: Any) -> TensorDict:
    """Return ``tree`` where ``condition`` (bool, 0-d) holds and ``other`` where not, of any depth. A leaf that is the
    same tensor in both passes as it is."""
    chosen: dict[str, Any] = {}
    for name, leaf in tree.items():
        alternative = other[name]
        if isinstance(leaf, Tensor):
            chosen[name] = leaf if leaf is alternative else torch.where(condition, leaf, alternative)
        else:
            chosen[name] = choose(condition, leaf, alternative)
    return TensorDict(chosen, batch_size=tree.batch_size)


def readable(tensor: Tensor) -> bool:
    """Whether a tensor's values can be read here: not while tracing, of a stand-in without values, or under vmap."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor:
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # vmap may be under a gradient
        if torch._C._functorch.is_batchedtensor(tensor):
            return False
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return type(tensor) is Tensor
