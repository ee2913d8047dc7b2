"""What an update was made by: the constructor and what it was given, kept beside it, written and turned into JSON."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import BuiltinFunctionType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from purestep import _tree

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, repr=False, eq=False)
class Config:
    """The call that made an optimizer, a gradient transformation or a projection.

    It is kept as it was made, and only read when somebody asks, so recording costs next to nothing and touches no
    tensor.

    Attributes:
        constructor: the function that was called.
        given, named: what it was given by position and by name.
    """

    constructor: Callable[..., Any]
    given: tuple[Any, ...]
    named: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The constructor's name."""
        return self.constructor.__name__

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments by name, defaults included; ``*parts`` is a tuple, ``**hyperparams`` a dict."""
        bound = self._bound()
        bound.apply_defaults()
        return dict(bound.arguments)

    def as_json(self) -> dict[str, Any]:
        """Return ``{"name": ..., "module": ..., "arguments": {...}}``, made of what JSON holds.

        Numbers, strings, bools and ``None`` are themselves, tuples are lists, updates within it are such dicts.
        Anything else is a dict of one or two keys that say what it is:

        - ``{"schedule": text}``: its ``repr``, which :func:`purestep.schedules.parse` reads back;
        - ``{"function": "module:qualified.name"}``, and ``{"partial": function, "given": [...], "named": {...}}``;
        - ``{"tensor": number, "dtype": name}`` for one of no dimension whose number can be read, and
          ``{"shape": [...], "dtype": name}`` for others;
        - ``{"dtype": name}``; ``{"dict": {...}}``; ``{"number": "inf"}`` for a float that JSON has not;
        - ``{"written": repr}`` for whatever else there is, such as an optimizer of one's own.
        """
        return {
            "name": self.name,
            "module": self.constructor.__module__,
            "arguments": {name: _plain(value) for name, value in self.arguments.items()},
        }

    def __repr__(self) -> str:
        parts: list[str] = []
        bound, by_position = self._bound(), True
        for name, parameter in bound.signature.parameters.items():
            if name not in bound.arguments:
                by_position = False  # those behind it are written by name
                continue
            value = bound.arguments[name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                parts += map(written, value)
            elif parameter.kind is parameter.VAR_KEYWORD:
                parts += [f"{key}={written(each)}" for key, each in value.items()]
            elif by_position and parameter.kind is not parameter.KEYWORD_ONLY:
                parts.append(written(value))
            else:
                parts.append(f"{name}={written(value)}")
        return f"{self.name}({', '.join(parts)})"

    def _bound(self) -> inspect.BoundArguments:
        return inspect.signature(self.constructor).bind(*self.given, **self.named)


@dataclass(frozen=True, repr=False)
class Recorded:
    """What an update has beside its functions: the call that made it, and a ``repr`` that reads as that call.

    Attributes:
        config: ``None`` for one's own, and for what :func:`dataclasses.replace` makes of another, which is no longer
            what the call says.
    """

    config: Config | None = field(default=None, init=False, compare=False)

    def __repr__(self) -> str:
        if self.config is not None:
            return repr(self.config)
        own = [each for each in fields(self) if each.name != "config" and getattr(self, each.name) is not each.default]
        return f"{type(self).__name__}({', '.join(f'{e.name}={written(getattr(self, e.name))}' for e in own)})"


def recorded(constructor: Callable[P, R]) -> Callable[P, R]:
    """Let a constructor of updates record its call: what it makes has it as ``config``, and as its ``repr``.

    .. code-block:: python

        @updates.recorded
        def clipped_sgd(rate, *, max_norm=1.0):
            return ps.chain(ps.clip_by_global_norm(max_norm), ps.sgd(rate))

        clipped_sgd(0.1)  # its repr is clipped_sgd(0.1)

    Signature and docstring are the constructor's. What is made while a compiler traces has no ``config``.
    """

    @functools.wraps(constructor)
    def recording(*args: P.args, **kwargs: P.kwargs) -> R:
        made = constructor(*args, **kwargs)
        if torch.compiler.is_compiling():  # it lives as long as the trace
            return made
        # A copy, as a constructor may return what others hold too; `copy.copy` takes as long as a constructor.
        copied = object.__new__(type(made))
        vars(copied).update(vars(made), config=Config(constructor, args, kwargs))
        return copied

    return recording


def written(value: Any) -> str:
    """``value`` as Python source: functions by their qualified names, tensors as numbers or by their shapes."""
    if isinstance(value, Tensor):
        number = _number_in(value)
        if number is None:
            return f"<tensor {tuple(value.shape)} {value.dtype}>"
        return f"torch.tensor({number!r}, dtype={value.dtype})"
    if isinstance(value, tuple | list):
        inside = ", ".join(map(written, value))
        if isinstance(value, list):
            return f"[{inside}]"
        return f"({inside}{',' * (len(value) == 1)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {written(each)}' for key, each in value.items())}}}"
    if isinstance(value, functools.partial):
        named = [f"{key}={written(each)}" for key, each in value.keywords.items()]
        return f"partial({', '.join([written(value.func), *map(written, value.args), *named])})"
    if isinstance(value, float):
        return repr(float(value))  # NumPy's float64 is one, and writes itself otherwise
    return _name_of(value) or repr(value)


def _plain(value: Any) -> Any:
    """``value`` as JSON holds it: see :meth:`Config.as_json`."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"number": repr(float(value))}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, Tensor):
        return _plain_tensor(value)
    if isinstance(value, torch.dtype):
        return {"dtype": _name_of_dtype(value)}
    if isinstance(value, Mapping):
        return {"dict": {str(key): _plain(each) for key, each in value.items()}}
    if hasattr(value, "to_config"):  # which schedules have, that live on a floor above
        return {"schedule": repr(value)}
    if isinstance(value, functools.partial):
        named = {key: _plain(each) for key, each in value.keywords.items()}
        return {"partial": _plain(value.func), "given": _plain(value.args), "named": named}
    if isinstance(getattr(value, "config", None), Config):
        return value.config.as_json()
    name, module = _name_of(value), getattr(value, "__module__", None)
    if name is None:
        return {"written": repr(value)}
    return {"function": f"{module}:{name}" if module else name}


def _plain_tensor(tensor: Tensor) -> dict[str, Any]:
    number, dtype = _number_in(tensor), _name_of_dtype(tensor.dtype)
    if number is None:
        return {"shape": list(tensor.shape), "dtype": dtype}
    return {"tensor": _plain(number), "dtype": dtype}


def _number_in(tensor: Tensor) -> Any:
    """Return the number of a tensor without dimensions, or ``None`` where there is none that can be read."""
    tensor = tensor.detach()  # of a parameter, which is of another class, the tensor
    if tensor.dim() or tensor.is_meta or not _tree.readable(tensor):
        return None
    return tensor.item()


def _name_of_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _name_of(value: Any) -> str | None:
    """Return the qualified name of a function or class, and ``None`` of anything else."""
    if isinstance(value, BuiltinFunctionType):  # those of torch are qualified by a class that nobody knows
        return value.__name__
    name = getattr(value, "__qualname__", None) if callable(value) else None
    return name if isinstance(name, str) else None
