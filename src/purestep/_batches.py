"""Batches of any nesting, and how they are cut into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate as running_sum
from itertools import pairwise
from typing import Any, NamedTuple

from tensordict import TensorDict, is_non_tensor, is_tensor_collection, is_tensorclass
from torch import Tensor

from purestep import _checks

GIVEN = "given"


class Cut(NamedTuple):
    """How a batch is cut: into ``parts`` micro-batches, or into ones of ``size`` examples, or it is cut already."""

    parts: int | None = None
    size: int | None = None

    @property
    def given(self) -> bool:
        return self.parts is None and self.size is None

    @property
    def whole(self) -> bool:
        return self.parts == 1


class Part(NamedTuple):
    """A micro-batch: its examples, the place of the first one in the whole batch, and how many it has."""

    batch: Any
    first: int | Tensor
    length: int


class Run(NamedTuple):
    """``number`` consecutive micro-batches of ``length`` examples each, stacked along a new dimension 0."""

    batches: Any
    first: int
    length: int
    number: int

    def part(self, index: int) -> Part:
        return Part(take(self.batches, index), self.first + index * self.length, self.length)


def read_cut(accumulate: Any, microbatch: Any) -> Cut:
    """Return what ``accumulate=`` and ``microbatch=`` say, checked."""
    if microbatch is not None:
        _checks.integer("microbatch", microbatch, minimum=1)
        if accumulate != 1:
            raise ValueError(
                f"accumulate and microbatch exclude each other, got accumulate={accumulate!r} and "
                f"microbatch={microbatch}: give the number of micro-batches or their size"
            )
        return Cut(size=microbatch)
    if isinstance(accumulate, str):
        if accumulate != GIVEN:
            raise ValueError(f"accumulate must be a number of micro-batches or {GIVEN!r}, got {accumulate!r}")
        return Cut()
    _checks.integer("accumulate", accumulate, minimum=1)
    return Cut(parts=accumulate)


def tensors_of(value: Any, path: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Yield ``(path, tensor)`` for each tensor in a nesting of TensorDicts, dicts, tuples and lists.

    Raises:
        TypeError: a leaf that is not a tensor, with its path.
    """
    if isinstance(value, Tensor):
        yield path, value
    elif is_non_tensor(value):
        raise TypeError(f"{path} must be a tensor or a nesting of them, got {value.data!r}, which is none")
    elif is_tensor_collection(value) or isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors_of(inner, f"{path}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for position, inner in enumerate(value):
            yield from tensors_of(inner, f"{path}[{position}]")
    else:
        raise TypeError(f"{path} must be a tensor or a nesting of them, got {value!r} of type {type(value).__name__}")


def batch_length(batch: Any, name: str = "batch") -> int:
    """Return the number of examples: the size of dimension 0, on which every leaf must agree.

    Raises:
        ValueError: a leaf without dimensions, leaves that disagree, or no leaf at all; each leaf is named.
    """
    leaves = list(tensors_of(batch, name))
    if not leaves:
        raise ValueError(f"{name} must hold at least one tensor, got none")
    for path, leaf in leaves:
        if leaf.dim() == 0:
            raise ValueError(
                f"{name} must have a batch dimension (dimension 0, examples) in every leaf; {path} has shape ()"
            )
    # Compared one by one: a set of lengths would pin a compiled graph to the length it was traced with.
    length = leaves[0][1].shape[0]
    if any(leaf.shape[0] != length for _, leaf in leaves[1:]):
        each = ", ".join(f"{path} {tuple(leaf.shape)}" for path, leaf in leaves)
        raise ValueError(f"the leaves of {name} must agree about dimension 0 (examples), got shapes {each}")
    return length


def parts_of(batch: Any, cut: Cut) -> list[Part]:
    """Return the micro-batches of a batch, in order.

    ``cut.parts`` gives lengths that differ by at most one (fewer parts where there are fewer examples; an empty batch
    is one empty micro-batch); ``cut.size`` gives that size and a shorter last one. A batch
    that is cut already is a list of batches, or a nesting whose dimension 0 runs over micro-batches and dimension 1
    over examples.

    Raises:
        ValueError: a batch that :func:`batch_length` refuses, none at all, or one without dimension 1.
        TypeError: a batch that is not made of tensors.
    """
    if cut.given:
        return _given(batch)
    length = batch_length(batch)
    if cut.size is not None:
        bounds = [*range(0, max(length, 1), cut.size), length]
    else:
        assert cut.parts is not None
        parts = cut.parts if length >= cut.parts else max(length, 1)
        # Symbolic throughout: a remainder would pin a compiled graph to the length it was traced with.
        bounds = [part * length // parts for part in range(parts + 1)]
    return [Part(slice_batch(batch, start, stop), start, stop - start) for start, stop in pairwise(bounds)]


def _given(batch: Any) -> list[Part]:
    if not isinstance(batch, list):
        (run,) = runs_of(batch, Cut())
        return [run.part(i) for i in range(run.number)]
    if not batch:
        raise ValueError(f"batch must be a list of at least one micro-batch with accumulate={GIVEN!r}, got none")
    lengths = [batch_length(part, f"batch[{i}]") for i, part in enumerate(batch)]
    starts = running_sum(lengths, initial=0)
    return [Part(part, start, count) for part, start, count in zip(batch, starts, lengths, strict=False)]


def runs_of(batch: Any, cut: Cut) -> list[Run]:
    """Return the micro-batches of :func:`parts_of` stacked, a run for each length, the longer first; views of the
    batch.

    Raises:
        ValueError: as :func:`parts_of`, and a list, which has no leading dimension.
    """
    if cut.given:
        if isinstance(batch, list):
            raise ValueError(
                'batch must have one leading dimension of micro-batches with loop="scan", got a list: stack those of '
                'one shape, or use loop="python"'
            )
        number, count = _stacked_shape(batch)
        return [Run(batch, 0, count, number)]
    # A scan's shapes are fixed: a set of it pins a compiled graph to the length it is traced with.
    (length,) = {batch_length(batch)}
    if cut.size is not None:
        number, rest = length // cut.size, length % cut.size
        groups = [(cut.size, number), (rest, 1 if rest or not length else 0)]
    else:
        assert cut.parts is not None
        parts = cut.parts if length >= cut.parts else max(length, 1)
        longer = length % parts
        groups = [(length // parts + 1, longer), (length // parts, parts - longer)]
    runs, start = [], 0
    for count, number in groups:
        if number:
            block = slice_batch(batch, start, start + count * number)
            runs.append(Run(_unflatten(block, number, count), start, count, number))
            start += count * number
    return runs


def _stacked_shape(batch: Any) -> tuple[int, int]:
    """Return the numbers of micro-batches and of examples in each, of a batch stacked by micro-batches."""
    number = batch_length(batch)
    leaves = list(tensors_of(batch))
    for path, leaf in leaves:
        if leaf.dim() < 2:
            raise ValueError(
                f"batch must have dimensions (micro-batches, examples, ...) in every leaf with accumulate={GIVEN!r}; "
                f"{path} has shape {tuple(leaf.shape)}"
            )
    count = leaves[0][1].shape[1]
    if any(leaf.shape[1] != count for _, leaf in leaves[1:]):
        each = ", ".join(f"{path} {tuple(leaf.shape)}" for path, leaf in leaves)
        raise ValueError(f"the leaves of batch must agree about dimension 1 (examples), got shapes {each}")
    if number == 0:
        raise ValueError(f"batch must have at least one micro-batch with accumulate={GIVEN!r}, got a dimension 0 of 0")
    return number, count


def take(value: Any, index: int) -> Any:
    """Return one entry along dimension 0 of a batch of any nesting."""
    return _map(lambda leaf: leaf[index], value)


def _unflatten(value: Any, number: int, count: int) -> Any:
    return _map(lambda leaf: leaf.reshape(number, count, *leaf.shape[1:]), value)


def slice_batch(value: Any, start: int, stop: int) -> Any:
    """Return the examples from ``start`` up to ``stop`` of a batch of any nesting."""
    return _map(lambda leaf: leaf[start:stop], value)


def _map(fn: Callable[[Any], Any], value: Any) -> Any:
    """Return the nesting of ``fn(leaf)``, of the same kinds; ``fn`` is an operation of tensors and TensorDicts alike
    on their leading dimensions."""
    if isinstance(value, Tensor):
        return fn(value)
    if is_tensor_collection(value):
        if value.batch_size:
            return fn(value)
        if is_tensorclass(value):
            return value.from_tensordict(_map(fn, value.to_tensordict()))
        return TensorDict({key: _map(fn, inner) for key, inner in value.items()}, batch_size=[])
    if isinstance(value, dict):
        return {key: _map(fn, inner) for key, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(fn, inner) for inner in value))
    return type(value)(_map(fn, inner) for inner in value)
