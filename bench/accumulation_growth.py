"""How memory and compile time grow with the number of micro-batches.

Memory is what an eager gradient adds to what is resident, in a process of its own, for micro-batches of 1,024
examples. Compile time is that of a step of micro-batches of 64, unrolled and scanned, each in a process of its own with
inductor's caches off.

    python bench/accumulation_growth.py [--parts 1 2 4 8 16] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import purestep as ps
from _report import RESULTS, versions
from accumulation_cost import OPTIMIZER, batch_of, model, objective
from purestep import measure
from purestep.measure._machine import machine

CPU = torch.device("cpu")


@functools.cache
def _accumulating(parts: int) -> Any:
    net = model()
    return ps.grad_step(net, objective, accumulate=parts), ps.init_state(net, OPTIMIZER, seed=0)


def gradient_of(parts: int, batch: Any) -> Any:
    step, state = _accumulating(parts)
    return step(state, batch)


def compiling(parts: int, loop: str) -> float:
    """Return the seconds of a step's first call, of which all but a little is compilation."""
    net = model()
    step = ps.compile(ps.train_step(net, objective, OPTIMIZER, accumulate=parts, loop=loop), donate=True)
    state, batch = ps.init_state(net, OPTIMIZER, seed=0), batch_of(64 * parts, CPU)
    began = time.perf_counter()
    step(state, batch)
    return time.perf_counter() - began


def in_a_process(parts: int, loop: str) -> float:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import accumulation_growth as here; "
    code += f"print(here.compiling({parts}, {loop!r}))"
    cold = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=cold, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--json", type=Path, default=RESULTS / "accumulation_growth.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for parts in options.parts:
        row = {"added_mib": measure.memory(gradient_of, parts, batch_of(1024 * parts, CPU)).added / 2**20}
        if parts > 1:
            row |= {f"{loop}_compile_seconds": in_a_process(parts, loop) for loop in ("python", "scan")}
        rows[f"{parts} micro-batches"] = row
    table = Table(title="By the number of micro-batches")
    columns = ("added_mib", "python_compile_seconds", "scan_compile_seconds")
    for column in ("", *columns):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[column]:.1f}" if column in row else "" for column in columns))
    Console(width=100).print(table)
    result = {
        "benchmark": "accumulation_growth",
        "date": datetime.date.today().isoformat(),
        "machine": dataclasses.asdict(machine(CPU)),
        "versions": versions(),
        "results": rows,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
