"""Functions as hyperparameters: written by the name that they are found by."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any


def function_named(hyperparameter: str, name: str) -> Callable[..., Any]:
    """The function of a name, ``"package.module:name"``, in a module that is imported already: none is imported for it,
    as a config may come from elsewhere."""
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise ValueError(f"{hyperparameter} must be a function or its name, 'package.module:name', got {name!r}")
    if module not in sys.modules:
        raise ValueError(f"{hyperparameter} must name a function of a module that is imported, got {name!r}")
    found = _at(module, path)
    if not callable(found):
        raise ValueError(f"{hyperparameter} must name a function, got {name!r}, which is {found!r}")
    return found


def name_of(function: Callable[..., Any]) -> str | None:
    """The name that ``function_named`` finds the function by; ``None`` if there is none."""
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(path, str)) or module not in sys.modules:
        return None
    return f"{module}:{path}" if _at(module, path) is function else None


def place_of(function: Callable[..., Any]) -> str:
    """What a function without a name is called, and where it stands: no Python expression."""
    name = getattr(function, "__qualname__", type(function).__qualname__).replace("<lambda>", "lambda")
    code = getattr(function, "__code__", None)
    return f"<{name}>" if code is None else f"<{name} at {code.co_filename}:{code.co_firstlineno}>"


def _at(module: str, path: str) -> Any:
    try:
        return functools.reduce(getattr, path.split("."), sys.modules[module])
    except AttributeError:
        return None
