"""Does the measuring room see what is there, and only that? What a real clock shows, judged.

    python bench/measure_self_check.py [--repetitions 20] [--max-time 2] [--device cpu|cuda] [--json F]

Known pairs are told apart, or not, over repetitions: a sleep of 1.00 and 1.02 ms, a function and itself, a loop of
products and one 3 % longer; the last two once more beside a busy process. What measuring adds to a function of 20 µs
is its time by measure.time over that by a bare loop, in turns. With ``--device cuda``, times on the device are held
against triton.testing.do_bench's (at most 3 % apart) and the profiler's (5 %). The exit status is 1 where something is
not as it should be.
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
from time import perf_counter, perf_counter_ns, sleep
from typing import Any

import torch

from purestep import measure
from purestep.measure import _format
from purestep.measure._format import table
from purestep.measure._machine import check_device
from purestep.measure._statistics import median_interval


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
        measure.compare({"first": first, "second": second}, max_time=options.max_time, threads=1, device="cpu").ratios[
            "second"
        ]
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


def overhead(title: str, fn: Callable[[], Any], rounds: int = 15) -> dict[str, Any]:
    """``measure.time`` over a bare loop with a clock around it: 40 samples of 50 calls each, in turns."""
    ratios, times = [], []
    for number in range(rounds):
        both = (bare_loop, timed) if number % 2 else (timed, bare_loop)
        seconds = {way: way(fn) for way in both}
        ratios.append(seconds[timed] / seconds[bare_loop])
        times.append(seconds[bare_loop])
    added = statistics.median(ratios) - 1
    low, high, confidence = median_interval(ratios, 0.99)
    return {
        "function": title,
        "bare_seconds": statistics.median(times),
        "added": added,
        "added_interval": [low - 1, high - 1, confidence],
        "rounds": rounds,
        "as_it_should": abs(added) < 0.02,
    }


def bare_loop(fn: Callable[[], Any]) -> float:
    """The median of 40 loops of 50 calls, in seconds a call."""
    loops = []
    for _ in range(40):
        began = perf_counter()
        for _ in repeat(None, 50):
            fn()
        loops.append((perf_counter() - began) / 50)
    return statistics.median(loops)


def timed(fn: Callable[[], Any]) -> float:
    return measure.time(fn, repeats=40, threads=1, device="cpu").median


def on_cuda(rounds: int = 9) -> list[dict[str, Any]]:
    """Our times beside ``triton.testing.do_bench``'s (cold cache) and the profiler's (calls in a row), in turns.

    The kernels take a millisecond about: of shorter ones the events hold the gaps between launches, which the profiler
    leaves out.
    """
    from triton.testing import do_bench

    a = torch.rand(4096, 4096, device="cuda")
    x, y = torch.rand(2**27, device="cuda"), torch.empty(2**27, device="cuda")
    works: dict[str, Callable[[], Any]] = {
        "a product of 4096 x 4096": lambda: torch.mm(a, a),
        "a copy of 512 MiB": lambda: y.copy_(x),
        "a sum of 2^27 numbers": lambda: x.sum(),
    }
    checks = []
    for title, fn in works.items():
        cold, warm = [], []
        for _ in range(rounds):
            ours = measure.time(fn, flush_cache=True, max_time=0.5).median
            cold.append(ours / (do_bench(fn, warmup=25, rep=500, return_mode="median") / 1e3))
            warm.append(measure.time(fn, max_time=0.5).median / profiled(fn))
        for other, ratios, limit in (("triton.testing.do_bench", cold, 0.03), ("torch.profiler", warm, 0.05)):
            off = statistics.median(ratios) - 1
            checks.append({"work": title, "beside": other, "off": off, "ratios": ratios, "limit": limit})
            checks[-1]["as_it_should"] = abs(off) < limit
    return checks


def profiled(fn: Callable[[], Any], calls: int = 50) -> float:
    """Seconds of the device a call, by the profiler: the sum of the kernels' own durations."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    fn()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            fn()
        torch.cuda.synchronize()
    kernels = (e for e in profiler.events() or () if e.device_type == DeviceType.CUDA and not e.is_user_annotation)
    return sum(event.time_range.elapsed_us() for event in kernels) / 1e6 / calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--max-time", type=float, default=2.0, help="seconds of each comparison")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "measure_self_check.json")
    options = parser.parse_args()
    check_device("--device", options.device)
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
    added = [
        overhead("a spin of 20 µs", spin),
        overhead("three products of 64 x 64", products(3)),
    ]
    beside = on_cuda() if options.device == "cuda" else []
    show(pairs, added, beside)
    last = measure.time(torch.neg, torch.ones(1, device=options.device), repeats=1)
    result = {
        "benchmark": "measure_self_check",
        "date": last.date,
        "machine": asdict(last.machine),
        "settings": {"threads": 1, "repetitions": options.repetitions, "max_time": options.max_time},
        "pairs": pairs,
        "overhead": added,
        "cuda": beside or None,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(each["as_it_should"] for each in (*pairs, *added, *beside)) else 1


def show(pairs: list[dict[str, Any]], added: list[dict[str, Any]], beside: list[dict[str, Any]]) -> None:
    rows = [
        (
            each["pair"],
            f"{each['true_ratio']:.2f}",
            f"{each['median_ratio']:.4f}",
            f"{100 * each['furthest_off']:.2f} %",
            f"{each['told_apart']} of {each['repetitions']}",
            yes(each),
        )
        for each in pairs
    ]
    columns = ("pair", "true ratio", "median", "furthest off", "told apart", "as it should")
    print(table("Known pairs", columns, rows), end="\n\n")
    rows = [
        (
            each["function"],
            _format.seconds(each["bare_seconds"]),
            f"{100 * each['added']:.2f} %",
            "{:.2f} to {:.2f} %".format(*(100 * end for end in each["added_interval"][:2])),
            yes(each),
        )
        for each in added
    ]
    columns = ("function", "in a bare loop", "measuring adds", "99 % interval", "below 2 %")
    print(table("What measuring adds", columns, rows), end="\n\n")
    if not beside:
        print("Agreement with triton.testing.do_bench and torch.profiler was not checked: it takes --device cuda.")
        return
    rows = [
        (each["work"], each["beside"], f"{100 * each['off']:.2f} %", f"{100 * each['limit']:.0f} %", yes(each))
        for each in beside
    ]
    columns = ("work", "ours is off from", "by", "at most", "as it should")
    print(table("On CUDA", columns, rows, words=(0, 1)))


def yes(each: dict[str, Any]) -> str:
    return "yes" if each["as_it_should"] else "NO"


if __name__ == "__main__":
    sys.exit(main())
