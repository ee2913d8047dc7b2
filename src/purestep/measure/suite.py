"""Benchmarks by name: what ``purestep bench`` runs, on this machine and against torch itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from purestep import _checks
from purestep.data.orders import shuffled
from purestep.execution.compile import compile, compiler_missing
from purestep.measure._machine import check_device
from purestep.measure.comparing import Comparison, compare
from purestep.objectives import mean
from purestep.optimizers import adamw
from purestep.schedules import warmup_cosine
from purestep.state import init_state
from purestep.step import train_step

Functions = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Benchmark:
    """Functions to be compared on a device.

    Attributes:
        name: what it is called by.
        title: what is compared, in a line.
        functions: given a device, the functions by name; the first is the baseline. They take no arguments.
    """

    name: str
    title: str
    functions: Callable[[torch.device], Functions]


_KNOWN: dict[str, Benchmark] = {}


def benchmark(name: str, *, title: str) -> Callable[[Callable[[torch.device], Functions]], Benchmark]:
    """Make a function of a device, which returns functions by name, a benchmark that :func:`run` finds by name.

    Raises:
        ValueError: a name that is taken.
    """
    if name in _KNOWN:
        raise ValueError(f"name must be free, got {name!r}, which is the benchmark {_KNOWN[name].title!r}")

    def register(functions: Callable[[torch.device], Functions]) -> Benchmark:
        _KNOWN[name] = Benchmark(name, title, functions)
        return _KNOWN[name]

    return register


def benchmarks() -> Mapping[str, Benchmark]:
    """Return the benchmarks there are, by name."""
    return dict(_KNOWN)


def run(
    names: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    max_time: float = 3.0,
    json_path: Path | None = None,
    png_path: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Comparison]:
    """Run benchmarks one after the other, print each table, and write the files asked for.

    Args:
        names: of benchmarks; none is all of them.
        device, threads, max_time: as in :func:`purestep.measure.compare`.
        json_path: gets one object, by name.
        png_path: gets the figure; with several benchmarks, each has its name put before the suffix.
        say: what prints.

    Raises:
        ValueError: a name that there is not, or a device that is not here.
    """
    chosen = list(dict.fromkeys(names)) or list(_KNOWN)
    for name in chosen:
        if name not in _KNOWN:
            near = _checks.near_misses(name, _KNOWN)
            raise ValueError(f"NAME must be one of {_checks.listed(_KNOWN)}, got {name!r}{near}")
    where = check_device("device", device)
    results = {}
    for name in chosen:
        made = _KNOWN[name].functions(where)
        results[name] = compare(made, device=where, threads=threads, max_time=max_time)
        say(f"{_KNOWN[name].title}\n{results[name]}\n")
        if png_path is not None:
            path = png_path if len(chosen) == 1 else png_path.with_stem(f"{png_path.stem}-{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            results[name].plot().savefig(path, dpi=150)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: json.loads(result.to_json()) for name, result in results.items()}
        json_path.write_text(json.dumps(whole, indent=2) + "\n")
    return results


@benchmark("step", title="One step of a three-layer MLP with AdamW and a schedule, batch 32")
def _step(device: torch.device) -> Functions:
    generator = torch.Generator().manual_seed(0)
    batch = {
        "x": torch.randn(32, 64, generator=generator).to(device),
        "y": torch.randint(0, 10, (32,), generator=generator).to(device),
    }
    rate = warmup_cosine(peak=1e-3, warmup_steps=100, total_steps=100_000)

    def net() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = (nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
            return nn.Sequential(*layers).to(device)

    def objective(model: Any, batch: Any) -> Any:
        return mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="none"))

    model = net()
    rival = torch.optim.AdamW(model.parameters(), lr=1.0, fused=True)
    values = rate(torch.arange(20_000)).tolist()  # the loop is not charged for the schedule's mathematics
    scheduler = torch.optim.lr_scheduler.LambdaLR(rival, lambda step: values[step % len(values)])

    def by_hand() -> None:
        rival.zero_grad()
        F.cross_entropy(model(batch["x"]), batch["y"]).backward()
        rival.step()
        scheduler.step()

    def driven(*, compiled: bool) -> Callable[[], None]:
        optimizer = adamw(rate)
        step: Callable[..., Any] = train_step(net(), objective, optimizer)
        if compiled:
            step = compile(step, donate=True)
        state = init_state(net(), optimizer, seed=0)

        def advance() -> None:
            nonlocal state
            state, _ = step(state, batch)

        return advance

    functions = {"torch, eager, fused AdamW": by_hand, "purestep, eager": driven(compiled=False)}
    if device.type == "cuda" or compiler_missing() is None:
        functions["purestep, compiled, donated"] = driven(compiled=True)
    return functions


@benchmark("shuffle", title="The first 4,096 indices of a shuffled epoch of 10 million")
def _shuffle(device: torch.device) -> Functions:
    size, first = 10_000_000, torch.arange(4096, device=device)
    order = shuffled(size, seed=0)
    generator = torch.Generator(device).manual_seed(0)
    return {
        "torch.randperm": lambda: torch.randperm(size, generator=generator, device=device)[:4096],
        "purestep, keyed bijection": lambda: order(0, first),
    }
