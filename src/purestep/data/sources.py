"""Sources: where examples come from. A source answers ``len(source)`` and ``source.fetch(indices) -> TensorDict``.

Everything is fetched by the batch, so a source in memory can select all rows at once and a source of files can decide
how to read them. Here are sources in memory, and those made of other sources.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict, TensorDictBase, is_non_tensor
from torch import Tensor

from purestep._checks import integer, listed
from purestep.random import fold_in


@runtime_checkable
class Source(Protocol):
    """Anything with a length and a batched ``fetch``.

    Four attributes are optional: ``in_memory = True`` says that a fetch only selects, so that no thread is worth its
    while; ``draws = True``, that it is random, and is called as ``fetch(indices, keys=keys)`` with a key for each
    example, int64 (n, 2); ``device``, where the batches come out, if that is not the CPU; ``classes``, the labels whose
    positions the label leaf holds.

    An example that cannot be read raises :class:`DecodeError`, which names its row and its file.
    """

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def fetch(self, indices: Tensor) -> TensorDictBase:
        """Return the examples at ``indices`` (int64, shape (n,), from 0 to len - 1), with ``batch_size=[n]``.

        It may be called from several threads at once.
        """
        ...


class DecodeError(ValueError):
    """An example cannot be read, such as one whose file is broken: what ``pipeline(on_error="skip")`` leaves out."""


def from_tensors(data: TensorDictBase | Mapping[str, Any]) -> TensorSource:
    """Return a source of tensors in memory: a TensorDict, or a (nested) dict of tensors, examples along dimension 0.

    The tensors are held, not copied, on whichever device they are; batches come out on that device.

    Raises:
        TypeError: a leaf is not a tensor.
        ValueError: there is no leaf, one has no dimension, or they disagree about the number of examples or the device.
    """
    if not isinstance(data, (TensorDictBase, Mapping)):
        raise TypeError(f"data must be a TensorDict or a dict of tensors, got {type(data).__name__}")
    _check_tensors(data)
    return TensorSource(data)


def multi(*sources: Source, **named: Source) -> Source:
    """Return a source whose examples join those of several sources of equal length, row by row.

    The keys of ``sources`` stand side by side in the batch; those of a named source are nested under its name:
    ``multi(images, table)`` gives ``batch["image"]`` and ``batch["tabular"]``, and ``multi(left=a, right=b)`` gives
    ``batch["left", "image"]`` and ``batch["right", "image"]``. One example is fetched to learn the keys.

    Raises:
        TypeError: a part is not a source.
        ValueError: there is none, the lengths differ, or two parts have the same key.
    """
    return _MultiSource(sources, named)


def cache(source: Source, *, block: int = 256, folder: str | os.PathLike[str] | None = None) -> TensorSource:
    """Fetch every example of ``source`` once, ``block`` at a time, and return a source that holds them in memory.

    A random transform of the source would be drawn once, too, and is refused: leave it to the pipeline's ``transform``.
    With a ``folder`` they are written to files there, as :func:`memory_mapped` reads them, and the source that is
    returned reads these: for what is slow to decode and larger than memory.

    Raises:
        TypeError: ``source`` draws random numbers, or gives something else than tensors.
        ValueError: ``source`` is empty, or its batches differ in keys, dtypes or shapes; ``block`` is below 1, or
            ``folder`` holds something already.
    """
    integer("block", block, minimum=1)
    count = len(source)
    if count == 0:
        raise ValueError("source must hold at least one example to be cached, got an empty one")
    if getattr(source, "draws", False):
        raise TypeError("source must not draw random numbers to be cached: give its transform to the pipeline instead")
    if folder is not None and os.path.isdir(folder) and os.listdir(folder):
        raise ValueError(f"folder must be empty or not there yet, and {os.fspath(folder)!r} holds something")
    whole: Any = None
    for start in range(0, count, block):
        part = source.fetch(torch.arange(start, min(start + block, count)))
        if whole is None:
            _check_tensors(part, "source.fetch(...)")
            whole = _room(part, count, folder)
        if (found := _kinds(part)) != (right := _kinds(whole)):
            raise ValueError(
                f"source must give batches of one kind to be cached, got {right} at first, and {found} from row "
                f"{start} on"
            )
        whole[start : start + block] = part
    classes = getattr(source, "classes", None)
    return TensorSource(whole, classes, in_memory=folder is None)


def memory_mapped(folder: str | os.PathLike[str], *, classes: tuple[Any, ...] | None = None) -> TensorSource:
    """Return a source of a TensorDict in files, which may be larger than memory: only the rows asked for are read.

    ``tensordict.memmap(folder)`` and ``cache(source, folder=folder)`` write such a folder.

    Raises:
        FileNotFoundError: there is no such folder, or no TensorDict in it.
        ValueError: its leaves disagree about the number of examples, or it has none.
    """
    if not os.path.isfile(os.path.join(folder, "meta.json")):
        raise FileNotFoundError(
            f"folder must be one that TensorDict.memmap(folder) has written, and {os.fspath(folder)!r} has no meta.json"
        )
    data = TensorDict.load_memmap(os.fspath(folder))
    _check_tensors(data)
    return TensorSource(data, classes, in_memory=False)


class TensorSource:
    """What :func:`from_tensors` and :func:`cache` return."""

    def __init__(self, data: Any, classes: tuple[Any, ...] | None = None, *, in_memory: bool = True) -> None:
        self.in_memory = in_memory
        self.data = _tree(data)
        self.classes = classes
        first = next(leaf for _, leaf in _leaves(self.data))
        self.device: torch.device = first.device
        self._count = len(first)

    def __len__(self) -> int:
        return self._count

    def fetch(self, indices: Tensor) -> TensorDictBase:
        # index_select on each leaf takes 0.4 of the time of `tensordict[indices]`.
        return _select(self.data, indices.to(self.device))


class _MultiSource:
    def __init__(self, sources: tuple[Source, ...], named: dict[str, Source]) -> None:
        parts = {**{f"argument {i}": part for i, part in enumerate(sources)}, **named}
        for name, part in parts.items():
            if not isinstance(part, Source):
                raise TypeError(f"{name} must be a source (len and fetch), got {type(part).__name__}")
        if not parts:
            raise ValueError("multi must be given at least one source, got none")
        same("number of examples", {name: len(part) for name, part in parts.items()})
        if len(next(iter(parts.values()))) == 0:
            raise ValueError("the sources must hold at least one example, got empty ones")
        keys: list[Any] = list(named)
        for part in sources:
            keys += _fetch(part, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)).keys()
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise ValueError(
                f"the parts must have distinct keys, got {listed(twice)} twice: name one, multi(a, other=b)"
            )
        self.sources = sources
        self.named = named
        self.in_memory = all(getattr(part, "in_memory", False) for part in parts.values())
        self.draws = any(getattr(part, "draws", False) for part in parts.values())
        classes = [known for part in parts.values() if (known := getattr(part, "classes", None)) is not None]
        self.classes: tuple[Any, ...] | None = classes[0] if len(classes) == 1 else None  # of whom, were there two?
        devices = {getattr(part, "device", None) for part in parts.values()}
        self.device: torch.device | None = devices.pop() if len(devices) == 1 else None
        self._count = len(next(iter(parts.values())))

    def __len__(self) -> int:
        return self._count

    def fetch(self, indices: Tensor, *, keys: Tensor | None = None) -> TensorDictBase:
        # Each part draws from keys of its own.
        own = iter(_own_keys(keys, len(self.named) + len(self.sources)))
        batch: dict[str, Any] = {name: _fetch(part, indices, next(own)) for name, part in self.named.items()}
        for part in self.sources:
            batch.update(_fetch(part, indices, next(own)).items())
        return TensorDict(batch, batch_size=indices.shape)


def _fetch(source: Source, indices: Tensor, keys: Tensor | None) -> TensorDictBase:
    return source.fetch(indices, keys=keys) if getattr(source, "draws", False) else source.fetch(indices)  # type: ignore[call-arg]


def _own_keys(keys: Tensor | None, count: int) -> list[Tensor | None]:
    if keys is None or count == 1:
        return [keys] * count
    return [torch.vmap(lambda key, part=part: fold_in(key, part))(keys) for part in range(count)]


def parameter_among(function: Callable[..., Any], names: tuple[str, ...]) -> str | None:
    """Return the first of ``names`` that a function has a parameter of."""
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters
    except (TypeError, ValueError):  # a built-in function without a signature
        return None
    return next((name for name in names if name in parameters), None)


def _check_tensors(data: TensorDictBase | Mapping[str, Any], argument: str = "data") -> None:
    leaves = dict(_leaves(data))
    if not leaves:
        raise ValueError(f"{argument} must hold at least one tensor, got none")
    for name, leaf in leaves.items():
        if not isinstance(leaf, Tensor):
            kind = type(leaf).__name__
            raise TypeError(
                f"{argument}[{name!r}] must be a tensor, got {kind} (torch.as_tensor makes one of an array)"
            )
        if leaf.ndim == 0:
            raise ValueError(
                f"{argument}[{name!r}] must have its examples along dimension 0, got a tensor without dimensions"
            )
    same("number of examples", {name: len(leaf) for name, leaf in leaves.items()})
    same("device", {name: str(leaf.device) for name, leaf in leaves.items()})


def _room(part: TensorDictBase, count: int, folder: str | os.PathLike[str] | None) -> TensorDictBase:
    """Return a TensorDict like ``part`` with ``count`` examples and nothing in them yet, in memory or in files."""
    if folder is None:
        room = part.apply(lambda leaf: leaf.new_empty((count, *leaf.shape[1:])), batch_size=[count])
        assert room is not None
        return room
    one = part[:1].expand(count)  # a view, so that nothing so large is ever in memory
    return one.memmap_like(os.fspath(folder))


def _kinds(batch: TensorDictBase) -> dict[str, str]:
    """Return what each leaf is but for the number of examples."""
    return {
        name: f"{getattr(leaf, 'dtype', type(leaf).__name__)} of shape {tuple(leaf.shape[1:])}"
        for name, leaf in _leaves(batch)
    }


def same(what: str, values: Mapping[str, Any]) -> None:
    """Raise where the values, by name, are not all the same."""
    if len(set(values.values())) > 1:
        told = ", ".join(f"{name!r}: {value}" for name, value in values.items())
        raise ValueError(f"the {what} must be the same throughout, got {told}")


def _leaves(data: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, (TensorDictBase, Mapping)) and not is_non_tensor(value):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _tree(data: Any) -> dict[str, Any]:
    """Nested plain dicts, which are quicker to walk for every batch than a TensorDict."""
    return {key: _tree(value) if isinstance(value, (TensorDictBase, Mapping)) else value for key, value in data.items()}


def _select(tree: dict[str, Any], indices: Tensor) -> TensorDict:
    selected = {
        key: _select(value, indices) if isinstance(value, dict) else value.index_select(0, indices)
        for key, value in tree.items()
    }
    return TensorDict(selected, batch_size=indices.shape)
