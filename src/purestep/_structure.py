"""The structure of a module without its values: a copy on ``meta``, and what would make such a copy wrong."""

from __future__ import annotations

import copy
import functools
import operator
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

# An RNN's `_flat_weights` are its parameters once more, see `_with_weights_by_name`.
_REGISTERED = ("_parameters", "_buffers", "_modules", "_flat_weights")
_DEPTH = 5


def structure_of(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` whose parameters and buffers are on ``meta``, tied ones still tied.

    The copy's memo maps each tensor to one meta copy. (A plain ``copy.deepcopy(model).to("meta")`` unties tied weights,
    and a product of a real with a meta tensor then returns uninitialised memory without an error.)

    Raises:
        TypeError: the module cannot be copied.
        ValueError: a parameter, buffer or submodule is reached where no value can be bound: through a plain attribute,
            or through a function that closes over it.
    """
    memo: dict[int, Any] = {}
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        blank = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        memo[id(parameter)], names[id(blank)], names[id(parameter)] = blank, name, name
    for name, buffer in model.named_buffers():
        blank_buffer = torch.empty_like(buffer, device="meta")
        memo[id(buffer)], names[id(blank_buffer)], names[id(buffer)] = blank_buffer, name, name
    try:
        structure = copy.deepcopy(model, memo)
    except Exception as error:
        raise TypeError(
            f"model cannot be copied, and its structure is needed without its values: copy.deepcopy of a "
            f"{type(model).__name__} failed with {type(error).__name__}: {error}"
        ) from error
    # A function is not copied by deepcopy, so what it closes over is the user's own module.
    names.update((id(module), name or "the model itself") for name, module in model.named_modules())
    for path, found in _reachable(structure):
        if id(found) in names:
            raise ValueError(
                f"model keeps {names[id(found)]!r} also in {path}, where no value can be bound: use nn.ParameterList, "
                "nn.ParameterDict or nn.ModuleList, or read it from the submodule that owns it, through self"
            )
    for module in structure.modules():
        if isinstance(module, nn.RNNBase):
            kind: Any = type(module)
            module.__class__ = _with_weights_by_name(kind)
    return structure


@functools.cache
def _with_weights_by_name(kind: Any) -> Any:
    """Return the subclass of an RNN's class that reads its weights by their names at every call. Torch's keeps them in
    a list as well, and to refresh it is a side effect, by which a compiled gradient would leave its trace."""

    def read(module: Any) -> list[Any]:
        return [getattr(module, name) for name in module._flat_weights_names]

    def leave(module: Any, *_: Any) -> None:
        pass

    body = {
        "_flat_weights": property(read, leave),
        "_update_flat_weights": leave,
        "_init_flat_weights": leave,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
    }
    return type(kind.__name__, (kind,), body)


def _reachable(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and modules that plain attributes hold: directly, in containers and objects, and in what
    functions (hooks too) close over."""
    seen: set[int] = {id(module) for module in model.modules()}
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _REGISTERED:
                yield from _inside(value, f"the plain attribute {prefix + '.' if prefix else ''}{name}", seen, _DEPTH)


def _inside(value: Any, path: str, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (str, bytes, int, float, type, types.ModuleType, torch.dtype, torch.device)) or value is None:
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (Tensor, nn.Module)):
        yield path, value
    elif depth:
        for step, inner in _parts(value):
            yield from _inside(inner, path + step, seen, depth - 1)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", inner) for key, inner in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{i}]", inner) for i, inner in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from (("(...)", inner) for inner in (value.func, *value.args, *value.keywords.values()))
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield f" (which closes over {name})", cell.cell_contents
            except ValueError:  # not filled yet
                continue
        yield from ((" (in its defaults)", inner) for inner in value.__defaults__ or ())
    elif hasattr(value, "__dict__") and not isinstance(value, types.MethodType):
        yield from ((f".{name}", inner) for name, inner in vars(value).items())


class Attributes:
    """The plain attributes of a structure, which a forward may write (a cache, a counter) and which are put back, so
    that a call leaves nothing for the next one to read."""

    def __init__(self, structure: nn.Module) -> None:
        self._kept = [
            (name, module, dict(vars(module)), dict(module._buffers)) for name, module in structure.named_modules()
        ]
        # What is written into in place: a list that grows, a dict that caches, hooks registered at the first call.
        containers = [
            value
            for module in structure.modules()
            for name, value in vars(module).items()
            if isinstance(value, (dict, list, set)) and name not in _REGISTERED
        ]
        self._empty = [container for container in containers if not container]
        self._filled = [(container, container.copy()) for container in containers if container]

    def restore(self) -> None:
        """Put everything back.

        Raises:
            ValueError: a buffer that was ``None`` was filled: what is in it would be lost.
            TypeError: a tensor was kept while a step was being compiled, which would outlive the trace.
        """
        self._restore_containers()
        wrong: Exception | None = None
        for name, module, attributes, buffers in self._kept:
            now = vars(module)
            same = now.keys() == attributes.keys() and all(map(operator.is_, now.values(), attributes.values()))
            if not same:
                written = {key: value for key, value in now.items() if attributes.get(key, now) is not value}
                now.clear()
                now.update(attributes)
                kept = [key for key, value in written.items() if isinstance(value, FakeTensor)]
                if kept:
                    wrong = TypeError(
                        f"the forward of {name or 'the model'!r} keeps a tensor in self.{kept[0]}, which a compiled "
                        "step cannot carry from one call to the next: make it in __init__, as a buffer"
                    )
            if any(module._buffers.get(key) is not None for key, old in buffers.items() if old is None):
                filled = [key for key, old in buffers.items() if old is None and module._buffers[key] is not None]
                module._buffers.update(buffers)
                wrong = ValueError(
                    f"the forward of {name or 'the model'!r} fills its buffer {filled[0]!r}, which was None when it "
                    "was bound: give it a tensor before, so that the state holds it"
                )
        if wrong is not None:
            raise wrong

    def _restore_containers(self) -> None:
        if any(self._empty):
            for container in self._empty:
                container.clear()
        for container, before in self._filled:
            if len(container) != len(before) or not all(map(operator.is_, _entries(container), _entries(before))):
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(before)


def _entries(container: Any) -> list[Any]:
    return [*container, *container.values()] if isinstance(container, dict) else list(container)
