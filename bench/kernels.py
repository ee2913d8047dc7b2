"""A fused elementwise kernel against its bandwidth floor: docs/kernels.md walks through it.

    python bench/kernels.py [--device cpu|cuda] [--threads 1] [--max-time 3] [--json F]
    python bench/kernels.py --fill

The kernel is y = x * sigmoid(a x + b), which must read x and write y: what a copy of x into y does as well, so the copy
is its floor. Eager torch, op by op, moves 4.5 times as much. Each size of x and y is of its own: within the caches, and
far beyond them. On CUDA a kernel written by hand in Triton takes part, and calls are replayed as graphs, so that no
launch is in the figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from purestep import measure
from purestep.execution.compile import compiler_missing
from purestep.measure import _format
from purestep.measure._machine import Machine, check_device
from purestep.measure._sampling import cache_bytes

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for the CPU comes without
    triton = None

A, B = 1.702, 0.5
FLOATS = {"cpu": (2**16, 2**20, 2**25), "cuda": (2**20, 2**22, 2**27)}
# What each way reads and writes, in arrays of x's size: a product, a sum and a sigmoid have one in and one out each,
# and the last product two in and one out.
ARRAYS = {"copy": 2, "eager, as written": 9, "eager, in place": 9, "torch.compile": 2, "triton, by hand": 2}
FLOOR = "copy"
PAGE = Path(__file__).parent.parent / "docs" / "kernels.md"
OPENS, CLOSES = "<!-- bench/results/kernels.json -->", "<!-- /bench/results/kernels.json -->"


def gate(x: Tensor) -> Tensor:
    """x: any shape. As one writes it; eagerly that is four kernels and three temporaries."""
    return x * torch.sigmoid(A * x + B)


def gate_in_place(x: Tensor, y: Tensor) -> Tensor:
    """The same four kernels without a temporary."""
    return torch.mul(x, A, out=y).add_(B).sigmoid_().mul_(x)


def gate_into(x: Tensor, y: Tensor) -> Tensor:
    """For torch.compile: one kernel that reads x and writes y."""
    return y.copy_(gate(x))


if triton is not None:

    @triton.jit
    def _gate_kernel(x_pointer, y_pointer, count, a, b, BLOCK: tl.constexpr):  # noqa: N803
        # 64 bits: an offset beyond 2^31 elements would wrap.
        offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = offsets < count
        x = tl.load(x_pointer + offsets, mask=inside).to(tl.float32)
        tl.store(y_pointer + offsets, x * tl.sigmoid(a * x + b), mask=inside)


def gate_by_triton(x: Tensor, y: Tensor, block: int = 1024) -> Tensor:
    """x, y: contiguous, of one shape and device. Computes in float32, and rounds to y's dtype."""
    if x.shape != y.shape or x.device != y.device or not (x.is_contiguous() and y.is_contiguous()):
        raise ValueError(f"x and y must be contiguous, of one shape and device, got {x.shape} and {y.shape}")
    if x.numel():  # an empty grid cannot be launched
        _gate_kernel[(triton.cdiv(x.numel(), block),)](x, y, x.numel(), A, B, BLOCK=block)
    return y


def ways(x: Tensor, y: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return the ways that there are here, each a function that computes y (or, as written, a new tensor)."""
    found: dict[str, Callable[[], Tensor]] = {
        FLOOR: lambda: y.copy_(x),
        "eager, as written": lambda: gate(x),
        "eager, in place": lambda: gate_in_place(x, y),
    }
    if x.is_cuda or compiler_missing() is None:
        compiled = torch.compile(gate_into, fullgraph=True, dynamic=False)
        found["torch.compile"] = lambda: compiled(x, y)
    if x.is_cuda and triton is not None:
        found["triton, by hand"] = lambda: gate_by_triton(x, y)
    return found


def check(found: dict[str, Callable[[], Tensor]], x: Tensor) -> None:
    """Raise where a way computes something else: a fast wrong kernel is no result."""
    right = gate(x.double())
    for name, way in found.items():
        if name != FLOOR:
            torch.testing.assert_close(way().double(), right, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def measured(floats: int, rates: measure.Ceilings, options: argparse.Namespace) -> dict[str, Any]:
    """Time all ways at one size in turns; return what goes into the JSON."""
    device = torch.device(rates.device)
    x = torch.randn(floats, generator=torch.Generator().manual_seed(0)).to(device)
    y = torch.empty_like(x)
    found = ways(x, y)
    check(found, x)
    comparison = measure.compare(
        found,
        baseline=FLOOR,
        threads=options.threads,
        max_time=options.max_time,
        device=device,
        graph=device.type == "cuda",
    )
    kept = json.loads(comparison.to_json())
    results = kept["results"]
    for name, each in results.items():
        least = 2 * x.nbytes / each["median_seconds"]
        each["bytes_moved"] = ARRAYS[name] * x.nbytes
        each["moved_bytes_per_second"] = each["bytes_moved"] / each["median_seconds"]
        each["least_bytes_per_second"] = least
        each["ceiling_fraction"] = least / rates.copy
        # 1 over the ratio of the rounds, which took turns: not the quotient of two medians.
        each["floor_fraction"] = 1 / each["ratio"]
    return {
        "floats": floats,
        "least_bytes": 2 * x.nbytes,
        "in_cache": 2 * x.nbytes <= cache_bytes(device),
        "settings": kept["settings"],
        "results": results,
    }


def shown(work: dict[str, Any]) -> str:
    rows = []
    for name, each in work["results"].items():
        low, high, _ = each["ratio_interval"]
        rows.append(
            (
                name,
                _format.seconds(each["median_seconds"]),
                _format.seconds(each["iqr_seconds"]),
                _format.size(each["bytes_moved"]),
                _format.rate(each["moved_bytes_per_second"], "B/s"),
                _format.percent(each["ceiling_fraction"]),
                "1" if name == FLOOR else f"{each['ratio']:.3f} ({low:.3f} to {high:.3f})",
            )
        )
    columns = ("", "median", "IQR", "moved", "rate of that", "of the ceiling", "time over copy's")
    where = "within" if work["in_cache"] else "beyond"
    return _format.table(f"x and y: {_format.size(work['least_bytes'])}, {where} the last cache", columns, rows)


def fill(page: str, result: dict[str, Any]) -> str:
    """Return docs/kernels.md with the tables of a result between its two comments."""
    before, _, rest = page.partition(OPENS)
    _, _, after = rest.partition(CLOSES)
    tables = "\n\n".join(shown(work) for work in result["works"])
    machine = measure.Ceilings(
        matmul=result["ceilings"]["matmul_flops_per_second"],
        copy=result["ceilings"]["copy_bytes_per_second"],
        device=result["device"],
        threads=result["threads"],
        machine=Machine(**result["machine"]),
        date=result["date"],
    )
    return f"{before}{OPENS}\n\n```text\n{machine}\n\n{tables}\n```\n\n{CLOSES}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-time", type=float, default=3.0, help="seconds of each comparison")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "kernels.json")
    parser.add_argument(
        "--fill", action="store_true", help="measure nothing: put the JSON's tables into docs/kernels.md"
    )
    options = parser.parse_args()
    if options.fill:
        PAGE.write_text(fill(PAGE.read_text(), json.loads(options.json.read_text())))
        return
    device = check_device("--device", options.device)
    rates = measure.ceilings(device, threads=options.threads)
    print(rates, end="\n\n")
    works = []
    for floats in FLOATS[device.type]:
        works.append(measured(floats, rates, options))
        print(shown(works[-1]), end="\n\n")
    result = {
        "benchmark": "kernels",
        "kernel": f"y = x * sigmoid({A} x + {B}), float32",
        "date": rates.date,
        "machine": asdict(rates.machine),
        "triton": None if triton is None else triton.__version__,
        "device": rates.device,
        "threads": options.threads,
        "baseline": FLOOR,
        "ceilings": {"copy_bytes_per_second": rates.copy, "matmul_flops_per_second": dict(rates.matmul)},
        "works": works,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
