"""What a pure function may not touch: its arguments, the global state around it, and the user's module."""

from __future__ import annotations

import random as python_random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from purestep.laws._compare import LawViolation, check_same_bits, differing, distance, same_bits


class Untouched:
    """Leaves as they were before a call, to be compared with what they are after it.

    Args:
        law: how a message begins.
        read: gives the leaves as they are now, by path.
    """

    def __init__(self, law: str, read: Callable[[], dict[str, Any]]) -> None:
        self._law, self._read = law, read
        self._leaves = read()
        self._copies = copies(self._leaves)
        self._marks = {path: _marks(leaf) for path, leaf in self._leaves.items()}

    def check(self, who: str) -> None:
        """Raise where a leaf was written, marked for gradients, replaced, added or taken away."""
        for path, leaf in self._leaves.items():
            then = self._copies[path]
            if not same_bits(leaf, then):
                says = f"{self._law}: {who} wrote into {path}: {differing(leaf, then)}"
                raise LawViolation(says, by=distance(leaf, then))
            for mark, value in _marks(leaf).items():
                if value != self._marks[path][mark]:
                    raise LawViolation(
                        f"{self._law}: {who} changed the {mark} of {path} from {self._marks[path][mark]} to {value}"
                        + (", so it wrote into it, if the same values" if mark == "version" else "")
                    )
        # Read anew, since another leaf may have been put in a leaf's place.
        check_same_bits(self._law, self._read(), self._copies, names=(f"after {who} was called", "before"))


def copies(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves with each tensor cloned."""
    return {path: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for path, leaf in leaves.items()}


def _marks(leaf: Any) -> dict[str, Any]:
    if not isinstance(leaf, Tensor):
        return {}
    version = None if leaf.is_inference() else leaf._version
    return {"version": version, "requires_grad": leaf.requires_grad, "grad": leaf.is_leaf and leaf.grad is not None}


def module_leaves(model: nn.Module) -> dict[str, Any]:
    """Return everything of a module that a step may not change: values, gradients, and modes."""
    leaves: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        leaves[f"model.{name}"] = parameter
        leaves[f"model.{name}.requires_grad"] = parameter.requires_grad
        leaves[f"model.{name}.grad"] = parameter.grad
    leaves.update({f"model.{name}": buffer for name, buffer in model.named_buffers()})
    leaves.update({f"model{'.' * bool(name)}{name}.training": part.training for name, part in model.named_modules()})
    return leaves


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


# What is global, by the name a message gives it: (read, write).
_RANDOM: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the random state of torch on the CPU": (torch.get_rng_state, torch.set_rng_state),
    "the random state of Python": (python_random.getstate, python_random.setstate),
}
_MODES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (torch.get_default_device, _set_default_device),
    "the deterministic mode": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
}


def _global_state() -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    parts = {**_RANDOM, **_MODES}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        parts["the random state of torch on CUDA"] = (torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        parts["the random state of NumPy"] = (numpy.random.get_state, numpy.random.set_state)
    return parts


@contextmanager
def guarded_world(law: str, who: str, *, seed: int | None = None) -> Iterator[None]:
    """Raise where the block changes the global state; it is as it was afterwards in any case.

    ``seed``: seed the global generators with it for the block.
    """
    parts = _global_state()
    outside = {name: read() for name, (read, _) in parts.items()}
    if seed is not None:
        _seed(seed)
    before = {name: read() for name, (read, _) in parts.items()}
    try:
        yield
        for name, (read, _write) in parts.items():
            if not _same(before[name], read()):
                raise LawViolation(f"{law}: {who} changed {name}, which is global{_advice(name)}")
    finally:
        # Only what changed: to write a default device that nobody set would set one.
        for name, (read, write) in parts.items():
            if not _same(outside[name], read()):
                write(outside[name])


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    python_random.seed(seed)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)


def _advice(name: str) -> str:
    return ": draw with purestep.random from the state's key instead" if "random" in name else ""


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool((first == second).all()) if hasattr(first, "shape") else bool(first == second)
