"""The values of many steps by every schedule, each beside the torch expression that one would write in its place.

    python bench/schedule_values.py [--steps 1000000] [--max-time 2] [NAME ...]

A schedule and its expression take turns, and a row's ratio is to its own expression. Two rows are of all of them, one
after the other. The bar is 1.5.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from _report import RESULTS, Bench, Setting, build, record
from _schedule_ways import Pair, pairs
from purestep import measure

BAR = 1.5
EXPRESSIONS, SCHEDULES = "all the expressions, in a row", "all the schedules, in a row"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="constructors; all by default")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--max-time", type=float, default=2.0, help="seconds of measuring, of each constructor")
    parser.add_argument("--json", type=Path, default=RESULTS / "schedule_values.json")
    options = parser.parse_args()
    chosen = {name: pair for name, pair in pairs().items() if not options.names or name in options.names}
    if not chosen:
        sys.exit(f"NAME must be one of {', '.join(pairs())}, got {' '.join(options.names)}")
    result = run(chosen, options.steps, options.max_time)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    slow = {name: row["ratio"] for name, row in result["results"].items() if row["ratio"] > BAR}
    print(f"above {BAR}: {', '.join(f'{name} ({ratio:.2f})' for name, ratio in slow.items()) or 'none'}")
    return 0


def run(chosen: dict[str, Pair], steps: int, max_time: float) -> dict[str, Any]:
    """Return what ``_report.run`` would, with each constructor's row out of a comparison of its own."""
    setting = Setting()
    setting.apply()
    given = torch.arange(steps).double()
    bench = Bench("schedule_values", f"{steps:,} steps of each schedule", lambda setting: {}, {"steps": steps})

    def compared(pair: dict[str, Any]) -> dict[str, Any]:
        made, seconds, _ = build({name: lambda way=way: way for name, way in pair.items()})
        comparison = measure.compare(made, max_time=max_time, threads=setting.threads)
        return record(bench, setting, comparison, seconds, {}, max_time=max_time)

    result = compared(
        {
            EXPRESSIONS: lambda: [pair.expression(given) for pair in chosen.values()],
            SCHEDULES: lambda: [pair.schedule(given) for pair in chosen.values()],
        }
    )
    for name, pair in chosen.items():
        rows = compared({"expression": lambda p=pair: p.expression(given), name: lambda p=pair: p.schedule(given)})
        result["results"][name] = rows["results"][name]
        low, high, _ = rows["results"][name]["ratio_interval"]
        print(f"{name:24} {rows['results'][name]['ratio']:.3f}  ({low:.3f} to {high:.3f})", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
