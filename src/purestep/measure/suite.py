"""Benchmarks by name: those that come with purestep (:mod:`purestep.measure.works`), and a user's own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from purestep import _checks
from purestep.measure._arguments import name_of, naming
from purestep.measure._machine import check_device
from purestep.measure.comparing import Comparison, compare

Functions = Mapping[str, Callable[[], Any]]
Make = Callable[[torch.device], Functions]


@dataclass(frozen=True)
class Benchmark:
    """Functions to be compared on a device.

    Attributes:
        name: what it is called by.
        title: what is compared, in a line.
        functions: given a device, the functions by name; the first is the baseline. They take no arguments.
    """

    name: str
    title: str
    functions: Make


_KNOWN: dict[str, Benchmark] = {}


def benchmark(name: str, *, title: str) -> Callable[[Make], Benchmark]:
    """Make a function of a device, which returns functions by name, a benchmark that ``purestep bench`` runs.

    The functions take no arguments, and the first is the baseline. ``purestep bench --from FILE`` finds the benchmarks
    that a file defines so.

    Args:
        name: what it is run by; no space in it, since it is a word of a command line.
        title: what is compared, in a line.

    Raises:
        TypeError, ValueError: a name that is no word or is taken; what is decorated takes no device.
    """
    if not (isinstance(name, str) and name and not name.startswith("-") and not any(map(str.isspace, name))):
        raise ValueError(f"name must be a word without spaces that does not begin with '-', got {name!r}")
    if not isinstance(title, str):
        raise TypeError(f"title must be a line of text, got {title!r} of type {type(title).__name__}")
    known = _all()
    if name in known:
        raise ValueError(f"name must be free, got {name!r}, which is the benchmark {known[name].title!r}")

    def register(functions: Make) -> Benchmark:
        _check_takes_a_device(name, functions)
        _KNOWN[name] = Benchmark(name, title, functions)
        return _KNOWN[name]

    return register


def benchmarks(names: Sequence[str] = ()) -> Mapping[str, Benchmark]:
    """Return the benchmarks of these names, by name; no name is all there are.

    Raises:
        ValueError: a name that there is not.
    """
    known = _all()
    for name in names:
        if name not in known:
            near = _checks.near_misses(name, known)
            raise ValueError(f"NAME must be one of {_checks.listed(known, limit=20)}, got {name!r}{near}")
    return {name: known[name] for name in names or known}


def load(path: str | os.PathLike[str]) -> list[str]:
    """Run a Python file, and return the names of the benchmarks that it defines with :func:`benchmark`.

    It can import what lies beside it, as where it is run as a script; what stands under
    ``if __name__ == "__main__":`` does not run.

    Raises:
        ValueError: no such file, one that is no Python, one that raises, or one that defines no benchmark.
    """
    file = Path(path).resolve()
    if not file.is_file() or file.suffix != ".py":
        what = "no Python file: its name must end in .py" if file.is_file() else "not there"
        raise ValueError(f"--from must be a file of benchmarks, got {str(path)!r}, which is {what}")
    before = set(_all())
    try:
        _execute(file, str(path))
    except ValueError:
        for name in set(_KNOWN) - before:
            del _KNOWN[name]
        raise
    found = [name for name in _KNOWN if name not in before]
    if not found:
        raise ValueError(
            f"--from must be a file that defines a benchmark, got {str(path)!r}, which defines none: decorate a "
            "function of a device, which returns functions by name, with @purestep.measure.benchmark(name, title=...)"
        )
    return found


def run(
    names: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    max_time: float = 3.0,
    json_path: Path | None = None,
    png_path: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Comparison]:
    """Run benchmarks one after the other, print each table, and write the files asked for.

    Args:
        names: of benchmarks; none is all of them.
        device, threads, max_time: as in :func:`purestep.measure.compare`.
        json_path: gets one object, by name.
        png_path: gets the figure; with several benchmarks, each has its name put before the suffix.
        say: what prints.

    Raises:
        ValueError: a name that there is not, a device that is not here, or a benchmark that makes no functions.
        Exception: what a benchmark raises, as it is, with a note that names it.
    """
    chosen = benchmarks(names)
    where = check_device("device", device)
    results = {}
    for name, each in chosen.items():
        with naming(f"the benchmark {name!r}"):
            results[name] = compare(_made(each, where), device=where, threads=threads, max_time=max_time)
        say(f"{each.title}\n{results[name]}\n")
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: json.loads(result.to_json()) for name, result in results.items()}
        json_path.write_text(json.dumps(whole, indent=2) + "\n")
    if png_path is not None:  # last: where matplotlib is missing, nothing measured is lost
        png_path.parent.mkdir(parents=True, exist_ok=True)
        for name, result in results.items():
            path = png_path if len(results) == 1 else png_path.with_stem(f"{png_path.stem}-{name}")
            result.plot().savefig(path, dpi=150)
    return results


def _made(each: Benchmark, device: torch.device) -> Functions:
    made = each.functions(device)
    right = isinstance(made, Mapping) and all(isinstance(name, str) and callable(fn) for name, fn in made.items())
    if not right:
        raise ValueError(
            f"the benchmark {each.name!r} must return functions by name, as in {{'a': f, 'b': g}}, got {made!r}"
        )
    return made


def _all() -> dict[str, Benchmark]:
    # By name, and late: works imports this file, and the whole of purestep.
    importlib.import_module("purestep.measure.works")
    return _KNOWN


def _check_takes_a_device(name: str, functions: Any) -> None:
    right = "a function of the device, which returns functions by name"
    if not callable(functions):
        raise TypeError(f"the benchmark {name!r} must be {right}, got {functions!r}")
    try:
        inspect.signature(functions).bind(torch.device("cpu"))
    except TypeError as error:
        raise TypeError(f"the benchmark {name!r} must be {right}, got {name_of(functions)}: {error}") from error
    except ValueError:  # a built-in function without a signature
        return


def _execute(file: Path, given: str) -> None:
    spec = importlib.util.spec_from_file_location(f"purestep_bench_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a module up by its name
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        where = f" at line {lines[-1]}" if lines else ""  # a syntax error says its line itself
        raise ValueError(
            f"--from must be a file that can be imported, got {given!r}, which raises{where}: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(str(file.parent))
