"""Ways of doing one thing, timed in turns in one run: one table, one JSON."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

Way = Callable[[], Any]


def parser(description: str, name: str, *, rounds: int, calls: int, threads: int) -> argparse.ArgumentParser:
    """The options that every script here has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--threads", type=int, default=threads)
    options.add_argument("--rounds", type=int, default=rounds)
    options.add_argument("--calls", type=int, default=calls, help="calls of each way in a round")
    options.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / f"{name}.json")
    return options


def seconds(way: Way, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        way()
    return (time.perf_counter() - began) / calls


def measure(ways: dict[str, Way], *, rounds: int, calls: int) -> dict[str, list[float]]:
    """Return seconds a call for each way and round. Each round runs all of them, so what slows the machine for a while
    slows them alike; each is called beforehand, so compilation is not in the figures."""
    for way in ways.values():
        seconds(way, max(3, calls // 3))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds(way, calls))
    return times


def report(
    benchmark: str,
    title: str,
    times: dict[str, list[float]],
    *,
    baseline: str,
    settings: dict[str, Any],
    json_path: Path,
) -> None:
    """Print the table and write the JSON; a ratio is the median of the rounds' ratios to the baseline's."""
    table = Table(title=f"{title}; ratio to: {baseline}")
    for column in ("way", "median µs", "min µs", "ratio", "ratio, quartiles"):
        table.add_column(column, justify="left" if column == "way" else "right")
    rows = {}
    for name, each in times.items():
        ratios = [mine / theirs for mine, theirs in zip(each, times[baseline], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        median = statistics.median(each) * 1e6
        rows[name] = {"median_us": median, "min_us": min(each) * 1e6, "ratio": middle, "ratio_quartiles": [low, high]}
        table.add_row(name, f"{median:,.0f}", f"{min(each) * 1e6:,.0f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}")
    Console(width=120).print(table)
    result = {
        "benchmark": benchmark,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "settings": settings,
        "baseline": baseline,
        "results": rows,
    }
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(result, indent=2) + "\n")
