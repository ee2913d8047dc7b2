"""Any nesting of tensors as a flat list, and back.

A ``form`` is a hashable description of a nesting without its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from tensordict import TensorDict, TensorDictBase, is_non_tensor, is_tensorclass
from torch import Tensor

_TENSOR, _NUMBER = ("tensor",), ("number",)


def flatten(value: Any, name: str) -> tuple[list[Tensor], Any]:
    """Return the tensors of a nesting, and its form.

    Raises:
        TypeError: a leaf that is not a tensor, with the path to it.
    """
    leaves: list[Tensor] = []
    return leaves, _flatten(value, leaves, name)


def _flatten(value: Any, leaves: list[Tensor], path: str) -> Any:
    if isinstance(value, Tensor):
        leaves.append(value)
        return _NUMBER if is_number(value) else _TENSOR
    kind = type(value)
    if is_non_tensor(value):
        raise TypeError(f"{path} must be a tensor or a nesting of tensors, got {value.data!r}, which is none")
    if is_tensorclass(value):
        fields = value._tensordict
        return ("class", kind, _flatten(fields, leaves, path))
    if isinstance(value, TensorDictBase):
        keys, children = tuple(value.keys()), list(value.values())
        forms = tuple(_flatten(child, leaves, f"{path}[{key!r}]") for key, child in zip(keys, children, strict=True))
        # How many dimensions, not how long: batches of every length have one form.
        batch_dims = (
            value.batch_dims if any(isinstance(child, Tensor) for child in children) else tuple(value.batch_size)
        )
        return ("tensordict", batch_dims, keys, forms)
    if isinstance(value, (dict, tuple, list)):  # with OrderedDict and named tuples
        keys = tuple(value) if isinstance(value, dict) else tuple(range(len(value)))
        return (kind, keys, tuple(_flatten(value[key], leaves, f"{path}[{key!r}]") for key in keys))
    if kind in pytree.SUPPORTED_NODES:
        children, context = pytree.SUPPORTED_NODES[kind].flatten_fn(value)
        forms = tuple(_flatten(child, leaves, f"{path}.{i}") for i, child in enumerate(children))
        return ("node", kind, context, forms)
    raise TypeError(f"{path} must be a tensor or a nesting of tensors, got {value!r} of type {kind.__name__}")


def is_number(leaf: Tensor) -> bool:
    """Whether Dynamo would take a tensor for a Python number (on the CPU; elsewhere the same form does no harm)."""
    return leaf.dim() == 0 and leaf.dtype == torch.float64


def unflatten(form: Any, leaves: list[Tensor]) -> Any:
    """Return the nesting of a form, filled with tensors; the inverse of :func:`flatten`."""
    return _unflatten(form, iter(leaves))


def _unflatten(form: Any, leaves: Iterator[Tensor]) -> Any:
    kind = form[0]
    if kind in ("tensor", "number"):
        return next(leaves)
    if kind == "class":
        return form[1].from_tensordict(_unflatten(form[2], leaves))
    if kind == "tensordict":
        _, batch_size, keys, forms = form
        entries = {key: _unflatten(child, leaves) for key, child in zip(keys, forms, strict=True)}
        if isinstance(batch_size, int):
            first = next(entry for entry in entries.values() if isinstance(entry, Tensor))
            batch_size = first.shape[:batch_size]
        return TensorDict(entries, batch_size=batch_size)
    if kind == "node":
        _, node, context, forms = form
        return pytree.SUPPORTED_NODES[node].unflatten_fn([_unflatten(child, leaves) for child in forms], context)
    _, keys, forms = form
    children = [_unflatten(child, leaves) for child in forms]
    if issubclass(kind, dict):
        return kind(zip(keys, children, strict=True))
    return kind(*children) if hasattr(kind, "_fields") else kind(children)


def same_structure(form: Any, other: Any) -> bool:
    """Whether two forms name the same nesting; which leaves are numbers, a matter of dtypes, does not count."""
    if form[0] in ("tensor", "number"):
        return other[0] in ("tensor", "number")
    if form[:-1] != other[:-1]:
        return False
    if form[0] == "class":
        return same_structure(form[-1], other[-1])
    return len(form[-1]) == len(other[-1]) and all(
        same_structure(inner, theirs) for inner, theirs in zip(form[-1], other[-1], strict=True)
    )


def holds(form: Any, kind: type) -> bool:
    """Whether a nesting of this form has an object of a registered class in it."""
    if form[0] in ("tensor", "number"):
        return False
    if form[0] == "node" and form[1] is kind:
        return True
    children = (form[-1],) if form[0] == "class" else form[-1]
    return any(holds(child, kind) for child in children)
