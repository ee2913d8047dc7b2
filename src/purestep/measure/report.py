"""A training step, measured: how fast it is, what it computes and moves, and how far from the machine's limit."""

from __future__ import annotations

import inspect
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from purestep import _batches, _checks
from purestep.measure import _format
from purestep.measure._arguments import device_of, name_of, named_tensors, naming
from purestep.measure._drive import Drive, Step
from purestep.measure._machine import check_device, check_same_hardware, machine, tf32_allowed, thread_count
from purestep.measure._work import Compilations, count_launches, work_of
from purestep.measure.ceilings import Ceilings
from purestep.measure.ceilings import ceilings as measured_ceilings
from purestep.measure.memory import MemoryUse, peak_of
from purestep.measure.timing import Measurement, time
from purestep.state import TrainState

_NAMES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True)
class StepReport:
    """What a training step costs.

    Attributes:
        name, device: of the step.
        timing: of one step, in seconds.
        examples: in the batch (its dimension 0).
        tokens: in the batch, where they were asked for.
        flops: floating-point operations of the step's matrix products, convolutions and attention, forward and
            backward, by torch's counter; elementwise work is not in it. ``None`` where the step could not be counted.
        bytes_moved: the least that must be moved: the state read, what changes of it written, the batch read.
            Activations come on top where they do not stay in a cache.
        memory: the peak during a step; ``None`` where the system does not say. On the CPU it is this process's.
        compile_seconds: of the first call beyond what a step takes: compiling, and loading libraries.
        graphs: graphs that torch compiled for it in the first call; 0 for an eager step, or one compiled before.
        graph_breaks: counted by Dynamo.
        recompilations: graphs compiled in later calls, all with the same batch: anything but 0 is a fault.
        launches: kernels a step on CUDA, by torch's profiler; ``None`` on the CPU, which launches none.
        ceilings: the machine's measured rates.
        dtype: of the ceiling that ``flops`` are held against.
    """

    name: str
    device: str
    timing: Measurement
    examples: int
    tokens: int | None
    flops: int | None
    bytes_moved: int
    memory: MemoryUse | None
    compile_seconds: float
    graphs: int
    graph_breaks: int
    recompilations: int
    launches: int | None
    ceilings: Ceilings
    dtype: str

    @property
    def seconds(self) -> float:
        """Median time of a step."""
        return self.timing.median

    @property
    def steps_per_second(self) -> float:
        """Steps a second."""
        return 1 / self.seconds

    @property
    def examples_per_second(self) -> float:
        """Examples a second."""
        return self.examples / self.seconds

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens a second, where they were asked for."""
        return None if self.tokens is None else self.tokens / self.seconds

    @property
    def matmul_ceiling(self) -> float:
        """The machine's rate of matrix products in ``dtype``, in FLOP/s."""
        return self.ceilings.matmul[self.dtype]

    @property
    def compute_fraction(self) -> float | None:
        """The step's FLOP/s over the machine's."""
        return None if self.flops is None else self.flops / self.seconds / self.matmul_ceiling

    @property
    def bandwidth_fraction(self) -> float:
        """The step's least bytes a second over the machine's copy rate; above 1 where the state stays in a cache."""
        return self.bytes_moved / self.seconds / self.ceilings.copy

    @property
    def roofline_fraction(self) -> float:
        """The least time that the ceilings allow over the step's: the larger of the two fractions."""
        return max(self.compute_fraction or 0.0, self.bandwidth_fraction)

    def figures(self) -> dict[str, Any]:
        """Return the figures by name, as JSON can hold them."""
        return {
            "seconds": self.seconds,
            "interval_seconds": list(self.timing.interval),
            "iqr_seconds": self.timing.iqr,
            "steps_per_second": self.steps_per_second,
            "examples_per_second": self.examples_per_second,
            "tokens_per_second": self.tokens_per_second,
            "flops": self.flops,
            "bytes_moved": self.bytes_moved,
            "peak_bytes": None if self.memory is None else self.memory.peak,
            "added_bytes": None if self.memory is None else self.memory.added,
            "compute_fraction": self.compute_fraction,
            "bandwidth_fraction": self.bandwidth_fraction,
            "roofline_fraction": self.roofline_fraction,
            "compile_seconds": self.compile_seconds,
            "graphs": self.graphs,
            "graph_breaks": self.graph_breaks,
            "recompilations": self.recompilations,
            "launches": self.launches,
        }

    def to_json(self) -> str:
        """Return the figures with settings, ceilings, machine, versions and date as JSON."""
        ceilings = asdict(self.ceilings)
        del ceilings["machine"]
        return json.dumps(
            {
                "step": self.name,
                "date": self.timing.date,
                "machine": asdict(self.timing.machine),
                "device": self.device,
                "threads": self.timing.threads,
                "examples": self.examples,
                "tokens": self.tokens,
                "dtype": self.dtype,
                **self.figures(),
                "ceilings": ceilings,
            },
            indent=2,
        )

    def __str__(self) -> str:
        low, high, confidence = self.timing.interval
        fast = _format.rate
        interval = f"{100 * confidence:.0f} %: {_format.seconds(low)} to {_format.seconds(high)}"
        rows = [
            ("time", _format.seconds(self.seconds), interval),
            ("steps", fast(self.steps_per_second, "/s"), ""),
            ("examples", fast(self.examples_per_second, "/s"), f"{self.examples:,} a step"),
        ]
        if self.tokens is not None:
            rows.append(("tokens", fast(self.tokens / self.seconds, "/s"), f"{self.tokens:,} a step"))
        if self.flops is not None and self.compute_fraction is not None:
            of = f"{fast(self.flops, 'FLOP')} a step; {_format.percent(self.compute_fraction)} of {self.dtype} products"
            rows.append(("matrix work", fast(self.flops / self.seconds, "FLOP/s"), of))
        moved = (
            f"{_format.size(self.bytes_moved)} a step at least; {_format.percent(self.bandwidth_fraction)} of a copy"
        )
        rows.append(("memory moved", fast(self.bytes_moved / self.seconds, "B/s"), moved))
        if self.memory is not None:
            rows.append(
                ("peak memory", _format.size(self.memory.peak), f"{_format.size(self.memory.added)} by the step")
            )
        if self.launches is not None:
            rows.append(("kernels", f"{self.launches:,}", "a step"))
        again = f"{_format.count(self.graphs, 'graph')}, {_format.count(self.graph_breaks, 'break')}, "
        rows.append(
            ("first call", _format.seconds(self.compile_seconds), f"{again}{self.recompilations} compiled again")
        )
        title = f"{self.name}, {self.device}, {_format.count(self.timing.threads, 'thread')}"
        return _format.table(
            title, ("", "", ""), rows, notes=f"{self.timing.machine}, {self.timing.date}", words=(0, 2)
        )

    def plot(self) -> Any:
        """Return a matplotlib figure of the step under the machine's roofline; it needs matplotlib."""
        from purestep.measure._plots import plot_roofline

        if not self.flops:
            raise ValueError(f"a roofline needs counted FLOPs, got {self.flops}: the step has no matrix product")
        return plot_roofline(
            f"{self.name}, {self.device}, {_format.count(self.timing.threads, 'thread')}, {self.dtype}",
            flops=self.flops,
            bytes_moved=self.bytes_moved,
            seconds=self.seconds,
            peak=self.matmul_ceiling,
            bandwidth=self.ceilings.copy,
        )


def report(
    step: Step,
    state: TrainState,
    batch: Any,
    *,
    tokens: int | Callable[[Any], int] | None = None,
    repeats: int | None = None,
    max_time: float = 2.0,
    threads: int | None = None,
    ceilings: Ceilings | None = None,
    dtype: str | None = None,
) -> StepReport:
    """Measure a training step on one batch.

    The step is driven from a clone of the state, each time from the state it returned last, so a step that donates is
    measured as it is used, and the state given stays readable and as it was.

    Args:
        step: ``(state, batch) -> (state, metrics)``, eager or from :func:`purestep.compile`.
        state: where it starts; its device is where it is measured.
        batch: the one batch for all steps.
        tokens: how many tokens the batch has, or a function of the batch that counts them.
        repeats, max_time, threads: as in :func:`purestep.measure.time`.
        ceilings: the machine's rates; measured, once in a process, by default.
        dtype: of the products that the step's are held against, such as ``"bfloat16"`` under autocast, where the
            parameters do not say it; by default that of most parameters.

    Raises:
        TypeError, ValueError: no step, state or batch; a step that returns something else; ceilings of another machine
            or without the dtype.
        Exception: what the step raises, with a note.
    """
    _check(step, state)
    examples = _batches.batch_length(batch)
    tokens = tokens(batch) if callable(tokens) else tokens
    if tokens is not None:
        _checks.integer("tokens", tokens, minimum=0)
    device = check_device("state's device", (device_of(named_tensors(state, "state")) or "cpu"))
    with thread_count(threads) as used:
        rates = _ceilings(ceilings, device, used)
        against = _dtype(dtype, state, rates)
        drive, compilations = Drive(step, state.clone(), batch), Compilations()
        with naming(name_of(step)):
            first = drive.timed()
            graphs, _ = compilations.so_far()
            warm = statistics.median(drive.timed() for _ in range(3))
            # A step that is long beyond interruptions needs no 2 s of samples.
            timing = time(drive, repeats=repeats, max_time=max_time, min_time=min(0.2, max_time), device=device)
            later, breaks = compilations.so_far()
            memory = _peak(drive, device)
            launches = count_launches(drive) if device.type == "cuda" else None
            work = work_of(inspect.unwrap(step), state, batch)
    return StepReport(
        name=name_of(step),
        device=str(device),
        timing=timing,
        examples=examples,
        tokens=tokens,
        flops=work.flops,
        bytes_moved=work.bytes_read + work.bytes_written,
        memory=memory,
        compile_seconds=max(0.0, first - warm),
        graphs=graphs,
        graph_breaks=breaks,
        recompilations=later - graphs,
        launches=launches,
        ceilings=rates,
        dtype=against,
    )


def _check(step: Any, state: Any) -> None:
    if not callable(step):
        raise TypeError(f"step must be a function (state, batch) -> (state, metrics), got {step!r}")
    if not isinstance(state, TrainState):
        raise TypeError(f"state must be a TrainState (ps.init_state makes one), got {type(state).__name__}")


def _ceilings(given: Ceilings | None, device: torch.device, threads: int) -> Ceilings:
    if given is None:
        return measured_ceilings(device, threads=threads)
    if not isinstance(given, Ceilings):
        raise TypeError(f"ceilings must be what measure.ceilings(device) returned, got {given!r}")
    check_same_hardware("ceilings", machine(device), given.machine)
    return given


def _peak(drive: Drive, device: torch.device) -> MemoryUse | None:
    try:
        with peak_of(device) as use:
            drive()
    except RuntimeError as error:
        if "/proc" not in str(error):
            raise
        return None
    return use()


def _dtype(asked: str | None, state: TrainState, rates: Ceilings) -> str:
    """The dtype asked for, or that of most parameters, as the ceilings name it."""
    if asked is not None:
        if asked not in rates.matmul:
            raise ValueError(f"dtype must be one of {_checks.listed(rates.matmul)}, got {asked!r}")
        return asked
    sizes: dict[str, int] = {}
    for leaf in state.params.values():
        name = _NAMES.get(leaf.dtype, "float32")
        sizes[name] = sizes.get(name, 0) + leaf.numel()
    name = max(sizes, key=lambda each: sizes[each])
    if name == "float32" and "tf32" in rates.matmul and tf32_allowed():
        name = "tf32"
    return name if name in rates.matmul else "float32"
