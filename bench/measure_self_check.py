"""Does the measuring room see what is there, and only that? What a real clock shows, judged.

    python bench/measure_self_check.py [--repetitions 20] [--max-time 2] [--json F]

Known pairs are told apart, or not, over repetitions: a sleep of 1.00 and 1.02 ms, a function and itself, a loop of
products and one 3 % longer; the last two once more beside a busy process. The time that measuring adds to a function
of 20 µs is what a bare loop over the same calls does not take. The exit status is 1 where something is not as it
should be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from time import perf_counter_ns, sleep
from typing import Any

import torch

from purestep import measure
from purestep.measure._format import table


def products(count: int) -> Callable[[], None]:
    a = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))

    def loop() -> None:
        for _ in range(count):
            a @ a

    return loop


def spin() -> None:
    end = perf_counter_ns() + 20_000
    while perf_counter_ns() < end:
        pass


@contextmanager
def busy() -> Iterator[None]:
    """A second process that does nothing but work."""
    # It ends with this process, whatever ends that.
    work = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
    process = subprocess.Popen([sys.executable, "-c", work])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def pair(
    title: str, first: Callable[[], Any], second: Callable[[], Any], true: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Compare over and over; count the verdicts, and look at how far off the ratio is."""
    ratios = [
        measure.compare({"first": first, "second": second}, max_time=options.max_time, threads=1).ratios["second"]
        for _ in range(options.repetitions)
    ]
    seen = sum(ratio.differs for ratio in ratios)
    off = max(abs(ratio.value / true - 1) for ratio in ratios)
    # At 99 %, one false alarm in 20 is chance in every sixth run of this script, and two in every sixtieth.
    right = seen == len(ratios) if true != 1 else seen <= 1
    return {
        "pair": title,
        "true_ratio": true,
        "median_ratio": statistics.median(ratio.value for ratio in ratios),
        "furthest_off": off,
        "told_apart": seen,
        "repetitions": len(ratios),
        "interval_width": statistics.median(ratio.interval.high - ratio.interval.low for ratio in ratios),
        "as_it_should": right and off < 0.03,
    }


def overhead() -> dict[str, Any]:
    """The measured time of a 20 µs function over a bare loop's, the quieter of some runs of each."""
    bare, measured = [], []
    for _ in range(7):
        began = perf_counter_ns()
        for _ in repeat(None, 5_000):
            spin()
        bare.append((perf_counter_ns() - began) / 5_000e9)
        measured.append(measure.time(spin, threads=1).median)
    return {
        "bare_seconds": min(bare),
        "measured_seconds": min(measured),
        "added": min(measured) / min(bare) - 1,
        "as_it_should": abs(min(measured) / min(bare) - 1) < 0.02,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--max-time", type=float, default=2.0, help="seconds of each comparison")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "measure_self_check.json")
    options = parser.parse_args()
    torch.set_num_threads(1)

    same = products(100)
    longer = products(103)
    pairs = [
        pair("sleep of 1.00 and 1.02 ms", lambda: sleep(1e-3), lambda: sleep(1.02e-3), 1.02, options),
        pair("a function and itself", same, same, 1.0, options),
        pair("100 and 103 products", same, longer, 1.03, options),
    ]
    with busy():
        pairs += [
            pair("a function and itself, beside a busy process", same, same, 1.0, options),
            pair("100 and 103 products, beside a busy process", same, longer, 1.03, options),
        ]
    added = overhead()
    rows = [
        (
            each["pair"],
            f"{each['true_ratio']:.2f}",
            f"{each['median_ratio']:.4f}",
            f"{100 * each['furthest_off']:.2f} %",
            f"{each['told_apart']} of {each['repetitions']}",
            "yes" if each["as_it_should"] else "NO",
        )
        for each in pairs
    ]
    columns = ("pair", "true ratio", "median", "furthest off", "told apart", "as it should")
    print(table("Known pairs", columns, rows))
    print(f"Added to a function of 20 µs: {100 * added['added']:.2f} %")
    last = measure.time(spin, repeats=1)
    result = {
        "benchmark": "measure_self_check",
        "date": last.date,
        "machine": asdict(last.machine),
        "settings": {"threads": 1, "repetitions": options.repetitions, "max_time": options.max_time},
        "pairs": pairs,
        "overhead": added,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(each["as_it_should"] for each in pairs) and added["as_it_should"] else 1


if __name__ == "__main__":
    sys.exit(main())
