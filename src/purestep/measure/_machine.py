"""What a figure was measured on: the machine, its devices, and the number of threads."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from purestep import _checks


@dataclass(frozen=True)
class Machine:
    """The hardware and the versions behind a figure.

    Attributes:
        processor: the CPU's model and the instructions that torch uses of it.
        cores: logical cores that this process may run on.
        memory: bytes of main memory; 0 where the system does not say.
        accelerator: the model of the CUDA device; empty on the CPU.
        system, python, torch, cuda: names and versions; ``cuda`` is empty in a torch without it.
    """

    processor: str
    cores: int
    memory: int
    accelerator: str
    system: str
    python: str
    torch: str
    cuda: str

    @property
    def hardware(self) -> tuple[str, int, int, str]:
        """What must agree for two figures to be comparable; versions may differ, since they are often the question."""
        return self.processor, self.cores, self.memory >> 30, self.accelerator

    def __str__(self) -> str:
        where = f"{self.accelerator}, {self.processor}" if self.accelerator else self.processor
        return f"{where}, {self.cores} cores, {self.memory / 2**30:.0f} GiB, torch {self.torch}, Python {self.python}"


def machine(device: torch.device) -> Machine:
    """Return what this process runs on, with the given device."""
    processor, memory = _processor(), _memory()
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return Machine(
        processor=processor,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=memory,
        accelerator=accelerator,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda or "",
    )


def check_same_hardware(name: str, mine: Machine, theirs: Machine) -> None:
    """Raise ``ValueError`` where two figures are of different hardware."""
    if mine.hardware != theirs.hardware:
        raise ValueError(
            f"{name} must be measured on the same machine, got one of [{theirs}] beside one of [{mine}]: measure both "
            "in one run, with measure.compare"
        )


@functools.cache
def _processor() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


@functools.cache
def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


class AbsentDeviceError(ValueError):
    """A device that could be measured and is not here: a test that needs it is skipped, one that misspells it fails."""


def check_device(name: str, device: torch.device | str) -> torch.device:
    """Return the device, with its index, if it is a CPU or a CUDA device that is here; raise otherwise."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{name} must be 'cpu' or 'cuda', got {device!r}: {error}") from error
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        raise ValueError(f"{name} must be 'cpu' or 'cuda', got {str(device)!r}: other devices are not measured yet")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        why = "finds no device" if torch.version.cuda else "is built without CUDA"
        raise AbsentDeviceError(
            f"{name} must be a device that is here, got {str(device)!r}: torch {torch.__version__} {why}"
        )
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= count:
        raise AbsentDeviceError(
            f"{name} must be a device that is here, got {str(device)!r}: there are {count}, from cuda:0"
        )
    return torch.device("cuda", index)


def cuda_in_use() -> bool:
    """Whether this process has begun to use a CUDA device: a function may then run there and say so by nothing."""
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def tf32_allowed() -> bool:
    """Whether CUDA's float32 products may round their factors to TF32."""
    # `allow_tf32` raises where a program has set `fp32_precision`; this is right whichever of them was set.
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in CUDA's float32 products, and put it back afterwards."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@contextlib.contextmanager
def thread_count(threads: int | None) -> Iterator[int]:
    """Run with that many intra-op threads (``None``: as they are), and put the number back afterwards."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(_checks.integer("threads", threads, minimum=1))
    try:
        yield threads or before
    finally:
        if threads is not None:
            torch.set_num_threads(before)
