"""What this machine can do at most, as measured: matrix products by dtype, and copies."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch

from purestep import _checks
from purestep.measure import _format
from purestep.measure._machine import Machine, check_device, machine, tf32, thread_count
from purestep.measure.timing import time

_KEPT: dict[tuple[Machine, str, int], Ceilings] = {}

# Large enough for the rate to be level, small enough for a second of measuring in all.
_SIDE = {"cpu": 1024, "cuda": 8192}
_COPIED = {"cpu": 128 * 2**20, "cuda": 1024 * 2**20}
_DTYPES = {"cpu": ("float32", "float64", "bfloat16"), "cuda": ("float32", "tf32", "float64", "bfloat16", "float16")}


@dataclass(frozen=True)
class Ceilings:
    """The best rates seen on a machine.

    Attributes:
        matmul: floating-point operations a second in a square matrix product, by dtype. On CUDA ``"tf32"`` is float32
            with TF32 allowed, and ``"float32"`` without.
        copy: bytes a second, read and written, of a copy far larger than the caches. What fits into a cache can be
            faster.
        device, threads, machine, date: what it was measured on, with how many threads, and when (ISO).
    """

    matmul: Mapping[str, float]
    copy: float
    device: str
    threads: int
    machine: Machine
    date: str

    def __str__(self) -> str:
        rows = [(f"matmul, {name}", _format.rate(value, "FLOP/s")) for name, value in self.matmul.items()]
        rows.append(("copy, read and written", _format.rate(self.copy, "B/s")))
        title = f"Ceilings, {self.device}, {_format.count(self.threads, 'thread')}"
        return _format.table(title, ("", "best"), rows, notes=f"{self.machine}, {self.date}")

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self), indent=2)


def ceilings(
    device: torch.device | str = "cpu", *, threads: int | None = None, cache: str | os.PathLike[str] | None = None
) -> Ceilings:
    """Return this machine's measured rates; the second call returns the first one's.

    The best sample counts, since a ceiling is what can be reached. Measuring takes about two seconds.

    Args:
        device: ``"cpu"`` or a CUDA device.
        threads: torch's intra-op threads; as they are by default.
        cache: a JSON file that keeps the rates for later processes, by machine, device and threads.

    Raises:
        ValueError: a device that is not here, or a cache file that holds something else.
    """
    where = check_device("device", device)
    if threads is not None:
        _checks.integer("threads", threads, minimum=1)
    key = (machine(where), str(where), threads or torch.get_num_threads())
    path = None if cache is None else Path(cache)
    if path is not None and key not in _KEPT:
        _KEPT.update(_read(path))
    if key not in _KEPT:
        with thread_count(threads) as used:
            _KEPT[key] = _measured(where, used)
    if path is not None:
        entries = _read(path) | {key: _KEPT[key]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(each) for each in entries.values()], indent=2) + "\n")
    return _KEPT[key]


def _measured(device: torch.device, threads: int) -> Ceilings:
    matmul = {}
    side, generator = _SIDE[device.type], torch.Generator(device).manual_seed(0)
    for name in _DTYPES[device.type]:
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)
        # Random digits: on constant ones a GPU draws less power and clocks higher than it ever will in use.
        a, b = (torch.rand(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
        with tf32(name == "tf32"):
            best = time(torch.mm, a, b, min_time=0.2, max_time=0.4, warmup=2).min
        matmul[name] = 2 * side**3 / best
    source = torch.zeros(_COPIED[device.type] // 4, device=device)
    target = torch.empty_like(source)
    best = time(target.copy_, source, min_time=0.2, max_time=0.4, mutates=True).min
    return Ceilings(matmul, 2 * source.nbytes / best, str(device), threads, machine(device), date.today().isoformat())


def _read(path: Path) -> dict[tuple[Machine, str, int], Ceilings]:
    if not path.exists():
        return {}
    try:
        entries = [Ceilings(**each | {"machine": Machine(**each["machine"])}) for each in json.loads(path.read_text())]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"cache must be a file that ceilings() wrote, got {str(path)!r}: {error}") from error
    return {(each.machine, each.device, each.threads): each for each in entries}
