"""What every script here shares: its options, ways that take turns in one run, one table, and one JSON.

A script defines :class:`Bench`es and calls :func:`main`. ``fill_tables.py`` puts the JSON into the documentation.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from purestep import measure
from purestep.measure import Comparison

RESULTS = Path(__file__).parent / "results"
PEERS = ("lightning-fabric", "accelerate", "torchopt", "jax", "optax")
PRECISIONS = ("float32", "tf32", "bf16")

Way = Callable[[], Any]


class LeftOut(Exception):  # noqa: N818 - no error: the table says so, and the others run
    """A way that cannot be here, such as a peer that is not installed; the text says why."""


@dataclass(frozen=True)
class Setting:
    """Where and how the ways of a run work. ``precision``: of products; ``"bf16"`` is autocast."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 1
    precision: str = "float32"

    @property
    def suffix(self) -> str:
        """What tells the JSON of this setting from that of one CPU thread in float32."""
        where = "-cuda" if self.device.type == "cuda" else "" if self.threads == 1 else "-all-threads"
        return where + ("" if self.precision == "float32" else f"-{self.precision}")

    def apply(self) -> None:
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.precision == "tf32"


@dataclass(frozen=True)
class Bench:
    """One table.

    Attributes:
        name: of the JSON, without the setting's suffix.
        title: of the table.
        ways: from a setting, the functions that make each way, by name. A way takes no arguments and does the whole
            work once; it returns only when that is done, or has put it on torch's current CUDA stream. The first is
            what ratios are to. One that raises :class:`LeftOut` when it is made is left out.
        sizes: what the work is made of, for the record.
    """

    name: str
    title: str
    ways: Callable[[Setting], Mapping[str, Callable[[], Way]]]
    sizes: Mapping[str, Any] = field(default_factory=dict)


def main(description: str | None, benches: Sequence[Bench], *, max_time: float = 5.0) -> None:
    """Read the command line, and run what it asks for."""
    options = _parser(description, benches, max_time).parse_args()
    asked = getattr(options, "work", None) or [short(bench.name) for bench in benches]
    if options.json.suffix == ".json" and len(asked) > 1:
        sys.exit(f"--json must be a folder where several works run, got {options.json}")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(f"--device cuda needs a CUDA device, and torch {torch.__version__} finds none")
    if device.type == "cpu" and options.precision == "tf32":
        sys.exit("--precision tf32 needs --device cuda")
    setting = Setting(device, options.threads, options.precision)
    setting.apply()
    for bench in benches:
        if short(bench.name) in asked:
            run(bench, setting, options)


def _parser(description: str | None, benches: Sequence[Bench], max_time: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if len(benches) > 1:
        names = [short(bench.name) for bench in benches]
        parser.add_argument(
            "work", nargs="*", type=_one_of(names), metavar="WORK", help=f"{', '.join(names)}; all by default"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--threads",
        type=lambda text: cores if text == "all" else int(text),
        default=1,
        help="torch's and XLA's threads on the CPU: a number, or all",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--rounds", type=int, help="of turns; by default as many as fit into --max-time")
    parser.add_argument("--max-time", type=float, default=max_time, help="seconds of measuring, without compilation")
    parser.add_argument("--json", type=Path, default=RESULTS, help="a file, or a folder for NAME.json")
    parser.add_argument("--only", nargs="+", metavar="WAY", help="the ways with one of these in their names")
    parser.add_argument("--baseline", metavar="WAY", help="what ratios are to, by its whole name")
    return parser


def short(name: str) -> str:
    """What the command line calls a work: ``gpt`` for ``step_gpt``."""
    return name.split("_", 1)[-1]


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def work(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(names)}, got {text!r}")
        return text

    return work


def run(bench: Bench, setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table, write the JSON, and return what was written."""
    made, first_calls, left_out = build(chosen(bench.ways(setting), options.only))
    comparison = measure.compare(
        made,
        baseline=options.baseline,
        rounds=options.rounds,
        max_time=options.max_time,
        threads=setting.threads,
        device=setting.device,
    )
    print(f"{bench.title}\n{comparison}")
    for name, why in left_out.items():
        print(f"left out: {name} ({why})")
    print(flush=True)
    result = record(bench, setting, comparison, first_calls, left_out, max_time=options.max_time)
    path = options.json
    if path.suffix != ".json":
        path = path / f"{bench.name}{setting.suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def chosen(ways: Mapping[str, Callable[[], Way]], only: Sequence[str] | None) -> dict[str, Callable[[], Way]]:
    """Return the ways whose names have one of ``only`` in them."""
    for part in only or ():
        if not any(part.lower() in name.lower() for name in ways):
            sys.exit(f"--only must name some of the ways ({'; '.join(ways)}), got {part!r}")
    return {n: make for n, make in ways.items() if not only or any(part.lower() in n.lower() for part in only)}


def build(ways: Mapping[str, Callable[[], Way]]) -> tuple[dict[str, Way], dict[str, float], dict[str, str]]:
    """Make the ways and call each once; return them, the seconds that this took, and what was left out and why."""
    made: dict[str, Way] = {}
    seconds: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, make in ways.items():
        began = time.perf_counter()
        try:
            made[name] = make()
            made[name]()
        except LeftOut as why:
            made.pop(name, None)
            left_out[name] = str(why)
            continue
        except Exception as error:
            error.add_note(f"raised by {name!r}")
            raise
        seconds[name] = time.perf_counter() - began
        print(f"{name}: first call after {seconds[name]:.1f} s", file=sys.stderr, flush=True)
    return made, seconds, left_out


def record(
    bench: Bench,
    setting: Setting,
    comparison: Comparison,
    first_calls: Mapping[str, float],
    left_out: Mapping[str, str],
    *,
    max_time: float,
) -> dict[str, Any]:
    """Return what the JSON holds: what :meth:`Comparison.to_json` gives, and what the script knows besides."""
    result = json.loads(comparison.to_json())
    for name, seconds in first_calls.items():
        result["results"][name]["first_call_seconds"] = seconds
    result["settings"] |= {"max_time": max_time, "precision": setting.precision, **bench.sizes}
    return {
        "benchmark": bench.name,
        "title": bench.title,
        **{key: value for key, value in result.items() if key != "results"},
        "versions": versions(),
        "left_out": dict(left_out),
        "results": result["results"],
    }


def versions() -> dict[str, str]:
    """The versions of what may take part, where it is installed."""
    found = {}
    for name in ("purestep", "torch", "tensordict", *PEERS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def needed(module: str) -> Any:
    """Return a peer's module, or raise :class:`LeftOut` where it is not installed.

    An installed peer that fails to import is an error like any other.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise LeftOut(f"{module} is not installed: pip install -e '.[peers]'") from None
