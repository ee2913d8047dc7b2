"""A function's arguments: the tensors in them, their device, and whether the function left them as they were."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tensordict import is_tensor_collection
from torch import Tensor, nn

Inputs = list[tuple[Any, ...]]

# Beyond this many bytes of arguments, only version counters are compared: a second copy might not fit.
_COPIED_AT_MOST = 256 * 2**20


def named_tensors(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a nesting of containers and modules, with the path to each; other leaves are passed by."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, nn.Module):
        for name, tensor in (*value.named_parameters(), *value.named_buffers()):
            yield f"{path}.{name}", tensor
    elif is_tensor_collection(value) or isinstance(value, dict):
        for key, inner in value.items():
            yield from named_tensors(inner, f"{path}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for position, inner in enumerate(value):
            yield from named_tensors(inner, f"{path}[{position}]")
    elif type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
        with contextlib.suppress(TypeError):  # strings and objects
            yield path, torch.from_numpy(value)


def argument_sets(args: tuple[Any, ...], inputs: Sequence[tuple[Any, ...]] | None) -> Inputs:
    """Return the sets of arguments to rotate: ``args`` alone, or ``inputs``."""
    if inputs is None:
        return [args]
    if args:
        raise ValueError(f"give either args or inputs, got {len(args)} args and inputs={type(inputs).__name__}")
    sets = list(inputs)
    wrong = next((each for each in sets if not isinstance(each, tuple)), None)
    if not sets or wrong is not None:
        got = f"one of type {type(wrong).__name__}" if sets else "none"
        raise ValueError(
            f"inputs must be a sequence of tuples of arguments, at least one, got {got}: inputs=[(x,), (y,)]"
        )
    return sets


def device_of(tensors: Iterator[tuple[str, Tensor]]) -> torch.device | None:
    """Return the first device that is no CPU, else the CPU, or ``None`` where there is no tensor."""
    found = None
    for _, tensor in tensors:
        if tensor.device.type != "cpu":
            return tensor.device
        found = tensor.device
    return found


class Untouched:
    """A record of arguments, and the check that a call has left them as they were.

    Version counters see what torch's own operations write, and the bits what a kernel, NumPy or ``.data`` writes
    without counting. The tensors themselves are held, so the check reads no container that a call has taken over.
    """

    def __init__(self, inputs: Inputs) -> None:
        one = len(inputs) == 1
        self._tensors = [
            pair
            for number, args in enumerate(inputs)
            for position, value in enumerate(args)
            for pair in named_tensors(value, f"args[{position}]" if one else f"inputs[{number}][{position}]")
        ]
        copied = sum(tensor.nbytes for _, tensor in self._tensors) <= _COPIED_AT_MOST
        self._versions = [_version(tensor) for _, tensor in self._tensors]
        self._bits = [_bits(tensor) if copied else None for _, tensor in self._tensors]
        self._containers = list(_containers(inputs, one))

    def check(self, what: str) -> None:
        """Raise ``ValueError`` naming the first argument that ``what`` has changed."""
        for (path, tensor), version, bits in zip(self._tensors, self._versions, self._bits, strict=True):
            if _version(tensor) != version or (bits is not None and not torch.equal(bits, _in_bytes(tensor))):
                raise _changed(what, f"the tensor {path} of shape {tuple(tensor.shape)}")
        for path, value, children in self._containers:
            now = _children(value)
            if len(now) != len(children) or any(a is not b for a, b in zip(now, children, strict=True)):
                raise _changed(what, f"the {type(value).__name__} {path}")


def _changed(what: str, argument: str) -> ValueError:
    return ValueError(
        f"{what} changed its argument: {argument} is not what it was, so each call would measure something else. Give "
        "it arguments that it leaves alone, or mutates=True where writing into them is its work"
    )


def _version(tensor: Tensor) -> int:
    # A tensor made under inference_mode has no counter.
    return -1 if tensor.is_inference() else tensor._version


def _bits(tensor: Tensor) -> Tensor | None:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_meta:
        return None
    return _in_bytes(tensor).clone()


def _in_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _containers(inputs: Inputs, one: bool) -> Iterator[tuple[str, Any, list[Any]]]:
    for number, args in enumerate(inputs):
        for position, value in enumerate(args):
            yield from _inner_containers(value, f"args[{position}]" if one else f"inputs[{number}][{position}]")


def _inner_containers(value: Any, path: str) -> Iterator[tuple[str, Any, list[Any]]]:
    if type(value) not in (dict, list, tuple):
        return
    yield path, value, _children(value)
    for key, inner in value.items() if type(value) is dict else enumerate(value):
        yield from _inner_containers(inner, f"{path}[{key!r}]")


def _children(value: Any) -> list[Any]:
    return [part for pair in value.items() for part in pair] if type(value) is dict else list(value)


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Let an exception out as it is, with a note that says which function raised it."""
    try:
        yield
    except Exception as error:
        note = f"raised by {what} while it was measured"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def name_of(fn: Callable[..., Any]) -> str:
    """Return what a function calls itself; of a partial function, what the whole one does."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    # The classes that torch's built-in functions say they are of are nobody's names.
    builtin = isinstance(fn, types.BuiltinFunctionType | types.BuiltinMethodType)
    own = None if builtin else getattr(fn, "__qualname__", None)
    return str(own or getattr(fn, "__name__", type(fn).__name__)).rsplit("<locals>.", 1)[-1]
