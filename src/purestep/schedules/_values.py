"""The values of hyperparameters, compared, hashed, written and read: numbers, tensors, tuples, options, schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from purestep.schedules._functions import name_of, place_of
from purestep.schedules._steps import is_concrete


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal; a tensor equals a tensor of its dtype and device, and no number."""
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
            return False
        return left is right or (
            left.dtype == right.dtype and left.device == right.device and bool(torch.equal(left, right))
        )
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def is_constant(values: tuple[Any, ...]) -> bool:
    """Whether no value is a tensor, nor a schedule with one among its own."""
    return all(
        is_constant(value) if isinstance(value, tuple) else getattr(value, "_constant", not isinstance(value, Tensor))
        for value in values
    )


def hashable(value: Any) -> Any:
    """Something that hashes alike for values that are the ``same``. A tensor's own values are not read for it."""
    if isinstance(value, Tensor):
        return (value.dtype, value.shape)
    return tuple(map(hashable, value)) if isinstance(value, tuple) else value


def written(value: Any) -> str:
    """``value`` as Python source."""
    if isinstance(value, Tensor) and is_concrete(value) and value.ndim == 0:
        device = "" if value.device.type == "cpu" else f", device={str(value.device)!r}"
        return f"torch.tensor({value.item()!r}, dtype={value.dtype}{device})"
    if isinstance(value, tuple):
        return f"({', '.join(map(written, value))}{',' if len(value) == 1 else ''})"
    if _is_function(value):
        name = name_of(value)
        return place_of(value) if name is None else repr(name)
    return repr(value)


def to_plain(value: Any) -> Any:
    """``value`` as JSON holds it. A tensor keeps its number and its dtype, not its device."""
    if isinstance(value, Tensor):
        return {"tensor": value.item(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, tuple):
        return [to_plain(v) for v in value]
    if _is_function(value):
        name = name_of(value)
        if name is None:
            raise ValueError(
                f"a config can only hold a function that a module has at its top, which it is found by, "
                f"got {place_of(value)}; the decorator `schedule` gives a formula a name"
            )
        return name
    return value.to_config() if hasattr(value, "to_config") else value


def from_plain(value: Any, build: Callable[[Mapping[str, Any]], Any]) -> Any:
    """What ``to_plain`` was given; ``build`` makes a schedule of its config."""
    if isinstance(value, Mapping):
        return _tensor_of(value) if "tensor" in value and "schedule" not in value else build(value)
    return tuple(from_plain(v, build) for v in value) if isinstance(value, list | tuple) else value


def _tensor_of(config: Mapping[str, Any]) -> Tensor:
    number, dtype = config["tensor"], getattr(torch, str(config.get("dtype")), None)
    if not isinstance(number, int | float) or not isinstance(dtype, torch.dtype):
        raise ValueError(
            "a tensor in a config must be {'tensor': a number, 'dtype': the name of a dtype, such as 'float64'}, "
            f"got {dict(config)!r}"
        )
    return torch.tensor(number, dtype=dtype)


def _is_function(value: Any) -> bool:
    return callable(value) and not hasattr(value, "to_config")  # a schedule is callable too
