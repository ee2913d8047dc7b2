"""The overhead of a training step: purestep's compiled, donated step against hand-written torch loops.

A three-layer MLP is small enough that a step's time is mostly what surrounds the mathematics. All ways train the same
model on the same batch with AdamW and a warm-up schedule; they run in turns, so that the machine's moods hit them
alike, and each round gives one ratio to the best hand-written loop. Prints one table and writes JSON.

    python bench/step_overhead.py [--threads 1] [--rounds 15] [--json bench/results/step_overhead.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from tensordict import TensorDict
from torch import nn

import purestep as ps

BATCH, INPUTS, HIDDEN, CLASSES = 32, 64, 64, 10
RATE = ps.schedules.warmup_cosine(peak=1e-3, warmup_steps=100, total_steps=100_000)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)
    )


def objective(model: nn.Module, batch: TensorDict) -> ps.Mean:
    return ps.mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="none"))


def torch_loop(batch: TensorDict, *, compile_model: bool, compile_optimizer: bool, fused: bool) -> Callable[[], None]:
    """A hand-written loop: zero_grad, forward, backward, step, scheduler step."""
    net = model()
    rate = torch.tensor(0.0) if compile_optimizer else 1.0
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, fused=fused)
    values = [float(RATE(step)) for step in range(20_000)]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: values[step % len(values)])
    forward = torch.compile(net) if compile_model else net
    update = torch.compile(optimizer.step) if compile_optimizer else optimizer.step
    x, y = batch["x"], batch["y"]

    def advance() -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward(x), y).backward()
        update()
        scheduler.step()

    return advance


def pure_step(batch: TensorDict, *, compiled: bool, donate: bool) -> Callable[[], None]:
    net = model()
    optimizer = ps.adamw(RATE)
    step = ps.train_step(net, objective, optimizer)
    if compiled:
        step = ps.compile(step, donate=donate)
    state = ps.init_state(net, optimizer, seed=0)

    def advance() -> None:
        nonlocal state
        state, _ = step(state, batch)

    return advance


def ways(batch: TensorDict) -> dict[str, Callable[[], None]]:
    return {
        "torch, eager, fused AdamW": torch_loop(batch, compile_model=False, compile_optimizer=False, fused=True),
        "torch, compiled model, fused AdamW": torch_loop(
            batch, compile_model=True, compile_optimizer=False, fused=True
        ),
        "torch, compiled model and optimizer": torch_loop(
            batch, compile_model=True, compile_optimizer=True, fused=False
        ),
        "purestep, eager": pure_step(batch, compiled=False, donate=False),
        "purestep, compiled": pure_step(batch, compiled=True, donate=False),
        "purestep, compiled, donated": pure_step(batch, compiled=True, donate=True),
    }


def seconds(way: Callable[[], None], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        way()
    return (time.perf_counter() - began) / calls


def measure(rounds: int, calls: int) -> dict[str, list[float]]:
    generator = torch.Generator().manual_seed(0)
    batch = TensorDict(
        {
            "x": torch.randn(BATCH, INPUTS, generator=generator),
            "y": torch.randint(0, CLASSES, (BATCH,), generator=generator),
        },
        batch_size=[BATCH],
    )
    runners = ways(batch)
    for way in runners.values():
        seconds(way, 100)
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, way in runners.items():
            times[name].append(seconds(way, calls))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=300, help="steps of each way in a round")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "step_overhead.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    times = measure(options.rounds, options.calls)
    medians = {name: statistics.median(each) for name, each in times.items()}
    best = min((name for name in medians if name.startswith("torch")), key=lambda name: medians[name])
    rows = {}
    table = Table(title=f"Three-layer MLP, batch {BATCH}, {options.threads} thread(s); ratio to: {best}")
    for column in ("step", "median µs", "min µs", "ratio", "ratio, quartiles"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, each in times.items():
        ratios = [mine / theirs for mine, theirs in zip(each, times[best], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows[name] = {
            "median_us": medians[name] * 1e6,
            "min_us": min(each) * 1e6,
            "ratio_to_best_torch": middle,
            "ratio_quartiles": [low, high],
        }
        table.add_row(
            name, f"{medians[name] * 1e6:.0f}", f"{min(each) * 1e6:.0f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}"
        )
    Console(width=120).print(table)
    about = {
        "benchmark": "step_overhead",
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "settings": {"threads": options.threads, "rounds": options.rounds, "calls": options.calls, "batch": BATCH},
        "best_torch": best,
        "results": rows,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
