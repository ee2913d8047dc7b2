"""What comes before the first sample: options, the warm-up, and where a function runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from purestep import _checks
from purestep.measure._arguments import Inputs, Untouched, device_of, named_tensors, naming
from purestep.measure._machine import check_device, cuda_in_use
from purestep.measure._sampling import Clock, Sampler, make_sampler


@dataclass(frozen=True)
class Options:
    """How functions are measured: what :func:`time` and :func:`compare` have in common."""

    warmup: int
    threads: int | None
    device: torch.device | str | None
    flush_cache: bool
    graph: bool
    mutates: bool
    clock: Clock | None

    def check(self) -> None:
        """Raise where an option cannot be; the device and the number of threads are checked where they are used."""
        _checks.integer("warmup", self.warmup, minimum=1)
        if self.threads is not None:
            _checks.integer("threads", self.threads, minimum=1)
        if self.device is not None:
            check_device("device", self.device)

    def settings(self, more: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
        """What goes into the record."""
        return {"flush_cache": self.flush_cache, "graph": self.graph, "inputs": len(inputs), **more}


def prepare(
    functions: Mapping[str, Callable[..., Any]], inputs: Inputs, options: Options
) -> tuple[dict[str, Sampler], torch.device]:
    """Warm each function up, find out where it runs, and return what takes its samples.

    Raises:
        ValueError: a function changes its arguments; they run on different devices; or nothing says where one runs.
    """
    found: dict[str, torch.device] = {}
    for name, fn in functions.items():
        with naming(name):
            watched = None if options.mutates else Untouched(inputs)
            result = fn(*inputs[0])
            if watched is not None:
                watched.check(name)
            found[name] = _device(name, inputs, result, options.device)
            del result
            for call in range(1, max(options.warmup, len(inputs))):
                fn(*inputs[call % len(inputs)])
            if watched is not None:
                watched.check(name)
    if len(set(found.values())) > 1:
        raise ValueError(
            "functions must run on one device to be compared, got "
            + ", ".join(f"{name!r} on {device}" for name, device in found.items())
        )
    where = next(iter(found.values()))
    samplers = {
        name: make_sampler(fn, inputs, where, flush_cache=options.flush_cache, graph=options.graph, clock=options.clock)
        for name, fn in functions.items()
    }
    return samplers, where


def _device(name: str, inputs: Inputs, result: Any, asked: torch.device | str | None) -> torch.device:
    """Return where a function runs; raise where the time taken there would not be the function's."""
    returned = device_of(named_tensors(result, ""))
    found = device_of(named_tensors((inputs, result), ""))
    if asked is not None:
        where = check_device("device", asked)
        _check_asked(name, where, found, returned)
        return where
    if returned is None and cuda_in_use() and (found is None or found.type == "cpu"):
        raise ValueError(
            f"{name} returned nothing to synchronise on (a {type(result).__name__}), takes no tensor on a CUDA device, "
            "and this process uses CUDA: say device='cuda' or device='cpu', or let it return what it computes"
        )
    return torch.device("cpu") if found is None else check_device(f"the device of what {name} takes and returns", found)


def _check_asked(name: str, where: torch.device, found: torch.device | None, returned: torch.device | None) -> None:
    if found is not None and found.type == "cuda":
        if where.type == "cpu":
            why = "a clock would see the launches and not the work"
        elif found != where:
            why = "events there would not see the work"
        else:
            return
        raise ValueError(f"device must be where {name} runs, got {str(where)!r} beside a tensor on {found}: {why}")
    if where.type == "cuda" and returned is not None:
        raise ValueError(
            f"device must be where {name} runs, got {str(where)!r}, but all that it takes and returns is on "
            f"{returned}: there is nothing to synchronise on. Let it return what it computes on the device; or say "
            "device='cpu' where it waits for its result"
        )
