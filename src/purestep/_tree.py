"""Small maps over trees of tensors: flat TensorDicts of parameters, and batches of any nesting.

A tree of parameters is a flat TensorDict whose keys are the module's own dotted names (``"encoder.0.weight"``), as in
``named_parameters()``. Arithmetic goes leaf by leaf through :func:`map_leaves`: a 0-d tensor times a TensorDict fails
inside ``torch.compile``, and a plain loop is what the compiler fuses best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, is_tensor_collection, is_tensorclass
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


def map_with_names(fn: Callable[..., Tensor], tree: TensorDictBase, *rest: TensorDictBase) -> TensorDict:
    """As :func:`map_leaves`, with ``fn(name, leaf, *leaves)``."""
    return TensorDict(
        {name: fn(name, leaf, *(other[name] for other in rest)) for name, leaf in tree.items()},
        batch_size=tree.batch_size,
    )


def zeros_like(tree: TensorDictBase) -> TensorDict:
    """Return zeros of the same names, shapes, dtypes and devices."""
    return map_leaves(torch.zeros_like, tree)


def select(tree: TensorDictBase, names: Any) -> TensorDict:
    """Return the flat TensorDict of the named leaves, in the order of ``names``."""
    return TensorDict({name: tree[name] for name in names}, batch_size=tree.batch_size)


def overlay(tree: TensorDictBase, changed: TensorDictBase) -> TensorDict:
    """Return ``tree`` with the leaves of ``changed`` in place of its own, in the order of ``tree``."""
    return TensorDict({name: changed.get(name, leaf) for name, leaf in tree.items()}, batch_size=tree.batch_size)


def tensors_of(value: Any, path: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Yield ``(path, tensor)`` for each tensor in a nesting of TensorDicts, dicts, tuples and lists.

    Raises:
        TypeError: a leaf that is not a tensor, with its path.
    """
    if isinstance(value, Tensor):
        yield path, value
    elif is_tensor_collection(value) or isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors_of(inner, f"{path}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for position, inner in enumerate(value):
            yield from tensors_of(inner, f"{path}[{position}]")
    else:
        raise TypeError(f"{path} must be a tensor or a nesting of them, got {value!r} of type {type(value).__name__}")


def batch_length(batch: Any) -> int:
    """Return the number of examples: the size of dimension 0, on which every leaf must agree.

    Raises:
        ValueError: a leaf without dimensions, leaves that disagree, or no leaf at all; each leaf is named.
    """
    leaves = list(tensors_of(batch))
    if not leaves:
        raise ValueError("batch must hold at least one tensor, got none")
    for path, leaf in leaves:
        if leaf.dim() == 0:
            raise ValueError(
                f"batch must have a batch dimension (dimension 0, examples) in every leaf; {path} has shape ()"
            )
    # Compared one by one: a set of lengths would pin a compiled graph to the length it was traced with.
    length = leaves[0][1].shape[0]
    if any(leaf.shape[0] != length for _, leaf in leaves[1:]):
        each = ", ".join(f"{path} {tuple(leaf.shape)}" for path, leaf in leaves)
        raise ValueError(f"the leaves of batch must agree about dimension 0 (examples), got shapes {each}")
    return length


def split_batch(batch: Any, parts: int) -> list[tuple[Any, int, int]]:
    """Cut a batch along dimension 0 into ``parts`` consecutive slices whose lengths differ by at most one.

    Returns:
        For each, the slice, the index of its first example, and how many it has.

    Raises:
        ValueError: fewer examples than parts, or a batch that :func:`batch_length` refuses.
    """
    length = batch_length(batch)
    if parts > length:
        raise ValueError(
            f"accumulate must be at most the number of examples in a batch, got accumulate={parts} for {length}"
        )
    bounds = [part * length // parts for part in range(parts + 1)]
    return [(slice_batch(batch, start, stop), start, stop - start) for start, stop in pairwise(bounds)]


def slice_batch(value: Any, start: int, stop: int) -> Any:
    """Return the examples from ``start`` up to ``stop`` of a batch of any nesting."""
    if isinstance(value, Tensor):
        return value[start:stop]
    if is_tensor_collection(value):
        if value.batch_size:
            return value[start:stop]
        if is_tensorclass(value):
            return value.from_tensordict(slice_batch(value.to_tensordict(), start, stop))
        return TensorDict({key: slice_batch(inner, start, stop) for key, inner in value.items()}, batch_size=[])
    if isinstance(value, dict):
        return {key: slice_batch(inner, start, stop) for key, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(slice_batch(inner, start, stop) for inner in value))
    return type(value)(slice_batch(inner, start, stop) for inner in value)
