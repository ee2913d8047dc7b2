"""What accumulation costs: a step of k micro-batches against k gradients alone and one update, and its peak memory.

The gradient alone is a compiled ``grad_step`` of one micro-batch, the update alone a compiled, donated ``update_step``:
a step of k micro-batches cannot do less than k of the one and one of the other. Memory is what a call adds to what is
resident, in a process of its own, for micro-batches of one size.

    python bench/accumulation_cost.py [--parts 8] [--max-time 20] [--memory] [--json FILE]
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import platform
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import purestep as ps
from purestep import measure

EXAMPLES, INPUTS, WIDTH, CLASSES = 64, 256, 512, 10
OPTIMIZER = ps.chain(ps.clip_by_global_norm(1.0), ps.adamw(1e-3))


def model(depth: int = 3) -> nn.Module:
    torch.manual_seed(0)
    sizes = [INPUTS, *[WIDTH] * depth]
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


def objective(model: nn.Module, batch: Any) -> ps.Mean:
    return ps.mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="none"))


def batch_of(examples: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(examples, INPUTS, generator=generator),
        "y": torch.randint(0, CLASSES, (examples,), generator=generator),
    }


def times(parts: int, max_time: float, threads: int) -> dict[str, measure.Comparison]:
    """Return, for each way to run a step, the step beside ``parts`` gradients and an update."""
    net = model()
    whole, part = batch_of(EXAMPLES * parts), batch_of(EXAMPLES)
    pieces = [{k: v[i * EXAMPLES : (i + 1) * EXAMPLES] for k, v in whole.items()} for i in range(parts)]

    def bound(compiled: Callable[..., Any]) -> Callable[[], None]:
        gradient, update = compiled(ps.grad_step(net, objective)), compiled(ps.update_step(OPTIMIZER))
        state = ps.init_state(net, OPTIMIZER, seed=0)
        kept = gradient(state, part)

        def alone() -> None:
            nonlocal state
            for piece in pieces:
                gradient(state, piece)
            state, _ = update(state, kept)

        return alone

    def stepping(compiled: Callable[..., Any], **options: Any) -> Callable[[], None]:
        step = compiled(ps.train_step(net, objective, OPTIMIZER, **options))
        state = ps.init_state(net, OPTIMIZER, seed=0)

        def advance() -> None:
            nonlocal state
            state, _ = step(state, whole)

        return advance

    donated = functools.partial(ps.compile, donate=True)
    results = {}
    for name, compiled in (("eager", lambda step: step), ("compiled, donated", donated)):
        ways = {f"{parts} gradients and an update": bound(compiled), "one step": stepping(compiled, accumulate=parts)}
        if name != "eager":
            ways["one step, scanned"] = stepping(compiled, accumulate=parts, loop="scan")
        results[name] = measure.compare(ways, threads=threads, max_time=max_time, device="cpu")
        print(f"{name}\n{results[name]}\n")
    return results


@functools.cache
def _accumulating(parts: int) -> Any:
    net = model()
    return ps.grad_step(net, objective, accumulate=parts), ps.init_state(net, OPTIMIZER, seed=0)


def gradient_of(parts: int, batch: Any) -> Any:
    step, state = _accumulating(parts)
    return step(state, batch)


def peaks() -> dict[str, float]:
    """Return MiB that an eager gradient adds, by its number of micro-batches of 1,024 examples."""
    return {
        str(parts): measure.memory(gradient_of, parts, batch_of(1024 * parts)).added / 2**20
        for parts in (1, 2, 4, 8, 16)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-time", type=float, default=20.0)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "accumulation_cost.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    memory = peaks()
    compared = times(options.parts, options.max_time, options.threads)
    table = Table(title="MiB that an eager gradient adds, by micro-batches of 1,024 examples")
    for parts in memory:
        table.add_column(parts, justify="right")
    table.add_row(*(f"{peak:.1f}" for peak in memory.values()))
    Console(width=100).print(table)
    result = {
        "benchmark": "accumulation_cost",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "settings": {"parts": options.parts, "threads": options.threads, "examples": EXAMPLES, "width": WIDTH},
        "memory_mib": memory,
        "results": {
            name: {
                way: {"median": c.measurements[way].median, "ratio": ratio.value, "interval": list(ratio.interval)}
                for way, ratio in c.ratios.items()
            }
            for name, c in compared.items()
        },
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
