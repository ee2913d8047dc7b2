"""What the metrics share: how they merge, how torch takes them apart, and which arguments they refuse."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from purestep import _checks, objectives


@dataclass(frozen=True, eq=False)
class Pooled:
    """A metric whose tensors add up; a subclass whose tensors do not replaces :meth:`pool`.

    Fields named in ``options`` are no tensors: they say how to read the sums, and only equal ones merge.
    """

    options: ClassVar[tuple[str, ...]] = ()
    tensors: ClassVar[tuple[str, ...]] = ()  # the other fields; `register` fills it in, since dynamo reads no fields()

    def merge(self, other: Self) -> Self:
        """Pool the metrics of two batches.

        Raises:
            TypeError: another kind of metric.
            ValueError: another option, or tensors of another shape (another number of classes).
        """
        if type(other) is not type(self):
            raise TypeError(f"other must be a {type(self).__name__} to be merged with one, got {type(other).__name__}")
        for name in self.options:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs and not (mine != mine and theirs != theirs):  # NaN is an option too
                raise ValueError(f"metrics with another {name} cannot be merged: {mine!r} and {theirs!r}")
        for name in self.tensors:
            mine, theirs = getattr(self, name).shape, getattr(other, name).shape
            if mine != theirs:
                raise ValueError(f"metrics whose {name} have shapes {tuple(mine)} and {tuple(theirs)} cannot be merged")
        pooled = self.pool(other)
        return type(self)(**pooled, **{name: getattr(self, name) for name in self.options})

    def pool(self, other: Self) -> dict[str, Tensor]:
        """Return the pooled tensors by field."""
        return {name: getattr(self, name) + getattr(other, name) for name in self.tensors}

    def value(self) -> Tensor:
        """Return what the sums say, one number."""
        raise NotImplementedError

    def __float__(self) -> float:
        return float(self.value())


def register(kind: type[Pooled]) -> type[Pooled]:
    """Make a metric a pytree: its tensors are the leaves, its options part of the structure."""
    options = kind.options
    kind.tensors = names = tuple(field.name for field in fields(kind) if field.name not in options)
    pytree.register_pytree_node(
        kind,
        lambda metric: ([getattr(metric, name) for name in names], tuple(getattr(metric, name) for name in options)),
        lambda leaves, rest: kind(**dict(zip(names, leaves, strict=True)), **dict(zip(options, rest, strict=True))),
        serialized_type_name=f"purestep.metrics.{kind.__name__}",
    )
    return kind


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype that sums are kept in."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def check_tensor(name: str, tensor: Any, *, several: bool = True) -> None:
    """Raise where it is no real tensor, or one number where ``several`` are needed."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {tensor!r} of type {type(tensor).__name__}")
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if several and tensor.dim() == 0:
        raise ValueError(f"{name} is one number, and what it was reduced from is lost: give the values before that")


def check_classes(name: str, tensor: Any, shape: tuple[int, ...], of: str) -> Tensor:
    """Return class numbers as int64, checked: integers or bool, of ``shape``, which is that of ``of``."""
    check_tensor(name, tensor, several=False)
    if tensor.is_floating_point():
        raise TypeError(f"{name} must be class numbers (int64), got {tensor.dtype}; of scores, .argmax(-1) gives them")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must have the shape {tuple(shape)} of {of}, got {tuple(tensor.shape)}")
    return tensor.to(torch.int64)


def check_range(name: str, tensor: Tensor, classes: int, counts: Tensor | None) -> None:
    """Raise where a class number that counts is none of ``classes``. It is read in eager mode on the CPU only:
    elsewhere that would stall the device, or cannot be done."""
    if not objectives._readable(tensor) or not (counts is None or objectives._readable(counts)):
        return
    wrong = (tensor < 0) | (tensor >= classes)
    if counts is not None:
        wrong = wrong & counts
    if bool(wrong.any()):
        raise ValueError(
            f"{name} must be class numbers from 0 to {classes - 1}, got {tensor[wrong][0].item()}; leave padding out "
            "with where="
        )


def mask(where: Any, shape: tuple[int, ...], of: str) -> Tensor | None:
    """Return ``where`` expanded to ``shape``, which is that of ``of``; ``None`` stays."""
    if where is None:
        return None
    if not isinstance(where, Tensor):
        raise TypeError(f"where must be a tensor, got {where!r} of type {type(where).__name__}")
    if where.dtype != torch.bool:
        raise TypeError(f"where must be a bool tensor, got {where.dtype}; write `where=mask != 0`")
    fits = where.dim() <= len(shape) and all(
        size in (1, wanted) for size, wanted in zip(reversed(where.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(f"where must broadcast to the shape {tuple(shape)} of {of}, got shape {tuple(where.shape)}")
    return where.expand(shape)


def kept(values: Tensor, where: Tensor | None) -> Tensor:
    """Return the values with zeros in place of those that do not count, whatever they hold."""
    return values if where is None else torch.where(where, values, torch.zeros_like(values))


def number_of(values: Tensor, where: Tensor | None) -> Tensor:
    """Return how many entries count, int64, 0-d."""
    if where is None:
        return torch.full((), values.numel(), dtype=torch.int64, device=values.device)
    return where.sum(dtype=torch.int64)


def choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise where an option is none of those allowed."""
    if not (value is None or isinstance(value, str)) or value not in allowed:
        near = _checks.near_misses(value, [option for option in allowed if option]) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{near}")
