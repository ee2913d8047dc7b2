"""The memory of an update at its peak: purestep's, compiled and donated, against torch's in place.

Parameters, gradients and the optimizer's state, and what the update needs beside them, each in a process of its own.
torch's is its fused kernel where it has one, and foreach elsewhere.

    python bench/optimizer_memory.py [adamw sgd ...] [--layers 24] [--width 512] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tensordict import TensorDict
from torch import Tensor, nn

import _pure_ways
from _report import RESULTS, Way, versions
from optimizers import RATE, RULES
from purestep import measure
from purestep.measure._machine import machine

FUSED = ("sgd", "adam", "adamw", "adagrad")
MIB = 2**20


@functools.cache
def _way(library: str, name: str, layers: int, width: int) -> tuple[Way, int]:
    """The update, and the bytes of the parameters, the gradients and the state."""
    ours, theirs, options, _, _ = RULES[name]
    generator = torch.Generator().manual_seed(0)
    values, grads = (
        {f"{layer:03d}": 0.02 * torch.randn(width, width, generator=generator) for layer in range(layers)}
        for _ in range(2)
    )
    if library == "purestep":
        rule = ours(RATE, **options)
        kept = list(rule.init(TensorDict(values)).values(include_nested=True, leaves_only=True))
        way = _pure_ways.update(rule, values, grads)
    else:
        parameters = [nn.Parameter(value) for value in values.values()]
        for parameter, grad in zip(parameters, grads.values(), strict=True):
            parameter.grad = grad
        kind: dict[str, Any] = {} if name == "muon" else {"fused": True} if name in FUSED else {"foreach": True}
        optimizer = theirs(parameters, lr=RATE, **options, **kind)
        optimizer.step()
        way = optimizer.step
        kept = [leaf for entry in optimizer.state.values() for leaf in entry.values() if isinstance(leaf, Tensor)]
    return way, sum(leaf.nbytes for leaf in (*values.values(), *grads.values(), *kept))


def update(library: str, name: str, layers: int, width: int) -> None:
    _way(library, name, layers, width)[0]()


def peak(library: str, name: str, layers: int, width: int) -> dict[str, float]:
    """Return what is held between updates and what one adds to it, in MiB."""
    added = measure.memory(update, library, name, layers, width, warmup=2).added
    held = _way(library, name, layers, width)[1]
    _way.cache_clear()
    return {"held_mib": held / MIB, "added_mib": added / MIB, "peak_mib": (held + added) / MIB}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(RULES), metavar="NAME")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--json", type=Path, default=RESULTS / "optimizer_memory.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title=f"An update of {options.layers} float32 matrices of {options.width}×{options.width}, in MiB")
    for column in ("", "torch holds", "and adds", "purestep holds", "and adds", "peak, of torch's"):
        table.add_column(column, justify="right")
    rows = {}
    for name in options.names:
        torchs, ours = (peak(library, name, options.layers, options.width) for library in ("torch", "purestep"))
        ratio = ours["peak_mib"] / torchs["peak_mib"]
        rows[name] = {"torch": torchs, "purestep": ours, "ratio": ratio}
        figures = (torchs["held_mib"], torchs["added_mib"], ours["held_mib"], ours["added_mib"])
        table.add_row(name, *(f"{figure:.1f}" for figure in figures), f"{ratio:.3f}")
    Console(width=100).print(table)
    result = {
        "benchmark": "optimizer_memory",
        "date": datetime.date.today().isoformat(),
        "machine": dataclasses.asdict(machine(torch.device("cpu"))),
        "versions": versions(),
        "sizes": {"layers": options.layers, "width": options.width},
        "results": rows,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
