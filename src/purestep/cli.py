"""The command line: ``purestep demo``, ``schedule``, ``bench`` and ``inspect``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_LAST_STEP = 2**62  # up to which a schedule has values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status. A bad argument exits with 2 and says what would be right."""
    parser = argparse.ArgumentParser(prog="purestep", description="Pure-functional training for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_demo(commands)
    _add_schedule(commands)
    _add_bench(commands)
    _add_inspect(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ImportError, ValueError, RuntimeError, OSError) as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print(f"purestep {options.command}: {error}{notes}", file=sys.stderr)
        return 1
    return 0


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="train a multi-input classifier on real digits",
        description="Train a convolutional + tabular classifier on scikit-learn's digits: pictures of the left halves "
        "through an image folder, sums of the right halves through a DataFrame.",
    )
    demo.add_argument("--steps", type=_positive, default=600, help="training steps (default: 600)")
    demo.add_argument("--seed", type=_not_negative, default=0, help="of the model, the order and the run (default: 0)")
    demo.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    demo.add_argument("--no-compile", action="store_true", help="run the pure step eagerly")
    demo.add_argument("--ablate", action="store_true", help="also train on each input alone")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results (default: runs/demo)")
    demo.set_defaults(run=_run_demo)


def _run_demo(options: argparse.Namespace) -> None:
    import torch

    from purestep import demo

    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device must be a device that torch has here, got {options.device!r}: {error}") from error
    demo.run(
        demo.Settings(
            steps=options.steps,
            seed=options.seed,
            device=options.device,
            compiled=not options.no_compile,
            out=options.out,
            ablate=options.ablate,
        )
    )


def _add_schedule(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    schedule = commands.add_parser(
        "schedule",
        help="show the values of a schedule",
        description="Print the values of a schedule, and a plot of them.",
        epilog="example: purestep schedule 'warmup_cosine(peak=3e-4, warmup_steps=2000, total_steps=100_000)' "
        "--steps 100000 --at 0,1,2000",
    )
    schedule.add_argument(
        "schedule",
        type=_schedule,
        metavar="EXPRESSION",
        help="as in Python: constructors, + - * /, .then(), .shift(), .clamp(), .repeat(); quoted, and after -- where "
        "it begins with a minus",
    )
    schedule.add_argument("--steps", type=_last_step, required=True, help="the last step to draw and to write")
    schedule.add_argument("--at", type=_steps, metavar="STEP,...", help="steps to print (default: five up to --steps)")
    schedule.add_argument("--png", type=Path, metavar="FILE", help="file to draw into with matplotlib")
    schedule.add_argument("--csv", type=Path, metavar="FILE", help="file to write each step and its value to")
    schedule.set_defaults(run=_run_schedule)


def _run_schedule(options: argparse.Namespace) -> None:
    from purestep import _schedule_cli

    _schedule_cli.show(options.schedule, options.steps, at=options.at, png=options.png, csv=options.csv)


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure purestep against torch on this machine, or your own functions against each other",
        description="Time functions in turns, and print the ratios with their intervals.",
    )
    bench.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run (default: all; with --from, its)")
    bench.add_argument("--list", action="store_true", help="say which benchmarks there are, and run none")
    bench.add_argument(
        "--from",
        dest="files",
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file that defines benchmarks with @purestep.measure.benchmark(name, title=...); may be repeated",
    )
    bench.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    bench.add_argument("--threads", type=_positive, default=None, help="threads on the CPU (default: torch's)")
    bench.add_argument("--json", type=Path, default=None, help="file to write the results to")
    bench.add_argument("--png", type=Path, default=None, help="file to draw the results into")
    bench.set_defaults(run=_run_bench)


def _run_bench(options: argparse.Namespace) -> None:
    from purestep.measure import suite

    own = [name for file in dict.fromkeys(options.files) for name in suite.load(file)]
    if options.list:
        chosen = suite.benchmarks(options.names or own)
        width = max(map(len, chosen))
        for name, each in chosen.items():
            print(f"{name:{width}}  {each.title}")
        return
    suite.run(
        options.names or own,
        device=options.device,
        threads=options.threads,
        json_path=options.json,
        png_path=options.png,
    )


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="show what is in a checkpoint, or how two differ",
        description="Print what a checkpoint says of itself, the rates at its step, and its tensors in numbers. Every "
        "byte is read and compared with the manifest; nothing in it is run.",
    )
    inspect.add_argument(
        "path", type=Path, metavar="PATH", help="a checkpoint, or a folder of some: the newest of them"
    )
    inspect.add_argument("--diff", type=Path, metavar="OTHER", help="another one, to compare with")
    inspect.add_argument("--tensors", action="store_true", help="a line for each tensor")
    inspect.set_defaults(run=_run_inspect)


def _run_inspect(options: argparse.Namespace) -> None:
    from purestep import _inspect_cli

    _inspect_cli.show(options.path, other=options.diff, tensors=options.tensors)


def _schedule(text: str) -> Any:
    from purestep.schedules import parse

    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _steps(text: str) -> list[int]:
    try:
        steps = [int(part) for part in text.split(",")]
    except ValueError:
        steps = [-1]
    if not all(0 <= step <= _LAST_STEP for step in steps):
        raise argparse.ArgumentTypeError(f"must be ints from 0 to 2**62, separated by commas, got {text!r}")
    return steps


def _last_step(text: str) -> int:
    return _integer(text, 1, _LAST_STEP)


def _positive(text: str) -> int:
    return _integer(text, 1)


def _not_negative(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, minimum: int, maximum: int | None = None) -> int:
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum or (maximum is not None and value > maximum):
        right = f"at least {minimum}" if maximum is None else f"{minimum} to {maximum}"
        raise argparse.ArgumentTypeError(f"must be an int of {right}, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
