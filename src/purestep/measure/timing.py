"""The time of one function."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from time import perf_counter
from typing import Any

import torch

from purestep import _checks
from purestep.measure import _format
from purestep.measure._arguments import argument_sets, name_of, naming
from purestep.measure._machine import Machine, check_same_hardware, machine, thread_count
from purestep.measure._preparing import Options, prepare
from purestep.measure._sampling import SAMPLE_SECONDS, Clock, Sampler, calibrate
from purestep.measure._statistics import Interval, interquartile_range, median_interval

# As many samples as an interval of 95 % needs to be narrower than the range, and how many there are at least where a
# few take up all the time.
_ENOUGH_SAMPLES, _FEWEST_SAMPLES = 8, 3


@dataclass(frozen=True)
class Measurement:
    """The time of a call, from ``n`` samples of ``calls`` calls each. All times are seconds a call.

    Attributes:
        name: of the function.
        median, min, max: of the samples.
        iqr: distance between the samples' quartiles.
        n: number of samples.
        calls: calls in a row in each sample.
        interval: where the median lies, by order statistics: ``(low, high, confidence)``. It takes samples for
            independent; a slow drift of the machine makes it too narrow, and only :func:`compare` cancels that.
        device: where it ran. CUDA times are the device's own.
        threads: intra-op threads of torch.
        settings: the other options.
        machine, date: what it was measured on, and when (ISO).
        samples: each sample's seconds a call, in the order of measuring.
    """

    name: str
    median: float
    iqr: float
    min: float
    max: float
    n: int
    calls: int
    interval: Interval
    device: str
    threads: int
    settings: Mapping[str, Any]
    machine: Machine
    date: str
    samples: tuple[float, ...] = field(repr=False, compare=False)

    def __repr__(self) -> str:
        low, high, confidence = self.interval
        return (
            f"Measurement({self.name}: median {_format.seconds(self.median)}, {100 * confidence:.0f} % from "
            f"{_format.seconds(low)} to {_format.seconds(high)}, IQR {_format.seconds(self.iqr)}, min "
            f"{_format.seconds(self.min)}; {_format.count(self.n, 'sample')} of {_format.count(self.calls, 'call')}, "
            f"{self.device}, {_format.count(self.threads, 'thread')})"
        )

    def relative_to(self, baseline: Measurement) -> float:
        """Return this median over the baseline's.

        The two were measured one after the other, so the ratio holds what the machine did in between: of two functions
        that can run in one process, :func:`compare` gives the ratio with its interval.

        Raises:
            ValueError: they are of different machines, devices, or numbers of threads.
        """
        check_same_hardware("baseline", self.machine, baseline.machine)
        for what in ("device", "threads"):
            mine, theirs = getattr(self, what), getattr(baseline, what)
            if mine != theirs:
                raise ValueError(
                    f"baseline must be measured with the same {what}, got {theirs!r} beside {mine!r}: measure both in "
                    "one run, with measure.compare"
                )
        return self.median / baseline.median

    def to_json(self) -> str:
        """Return everything as JSON, the samples included; :meth:`from_json` reads it."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """Return the measurement that :meth:`to_json` wrote."""
        fields = json.loads(text)
        return cls(
            **fields
            | {
                "interval": Interval(*fields["interval"]),
                "machine": Machine(**fields["machine"]),
                "samples": tuple(fields["samples"]),
            }
        )


def time(
    fn: Callable[..., Any],
    *args: Any,
    inputs: Sequence[tuple[Any, ...]] | None = None,
    repeats: int | None = None,
    min_time: float = 0.2,
    max_time: float = 2.0,
    precision: float = 0.01,
    confidence: float = 0.95,
    warmup: int = 3,
    threads: int | None = None,
    device: torch.device | str | None = None,
    flush_cache: bool = False,
    graph: bool = False,
    mutates: bool = False,
    clock: Clock | None = None,
) -> Measurement:
    """Return how long a call takes.

    The function is called ``warmup`` times (what it compiles, it compiles then), then as often as shows how many calls
    in a row take 1 ms on the CPU and 5 ms on CUDA, which is one sample: reading the clock then costs nothing that
    counts. Samples are taken for ``min_time``, and on until the interval of the median is within ``precision``, or
    ``max_time`` has passed.

    Args:
        fn, args: the function, and what it is called with.
        inputs: in place of ``args``, several tuples of arguments that take turns, so that one call does not find in
            the cache what the call before left there.
        repeats: exactly so many samples instead.
        min_time, max_time: seconds of measuring, clearing a cache included; there are three samples at least.
        precision: half the interval's width relative to the median, at which there are samples enough.
        confidence: of the interval, from 0 to 1.
        warmup: calls before anything is timed, at least 1.
        threads: torch's intra-op threads meanwhile; as they are by default.
        device: ``"cpu"``: wall time; ``"cuda"``: time between events on the device. By default, where the arguments
            and results are; to be said of a function that returns no tensor, where CUDA is in use.
        flush_cache: clear the last cache (on CUDA the second level) before each sample, which is one call then.
        graph: on CUDA, capture the calls of a sample as one graph and time its replay: no launches. ``fn`` must be
            capturable.
        mutates: writing into its arguments is the function's work; otherwise that is an error.
        clock: seconds, in place of ``time.perf_counter`` on the CPU.

    Raises:
        TypeError, ValueError: an option out of range; a device that is not here; a function that changes its
            arguments; with CUDA in use, one that says by no tensor where it runs, or ``device`` is not where its
            tensors are.
        Exception: what the function raises, as it is, with a note.
    """
    if repeats is not None:
        _checks.integer("repeats", repeats, minimum=1)
    _checks.number("min_time", min_time, minimum=0)
    _checks.number("max_time", max_time, minimum=min_time)
    _checks.number("precision", precision, above=0)
    _checks.number("confidence", confidence, above=0, below=1)
    options = Options(warmup, threads, device, flush_cache, graph, mutates, clock)
    options.check()
    named = {name_of(_function("fn", fn)): fn}
    given = argument_sets(args, inputs)
    with thread_count(threads) as used, naming(next(iter(named))):
        samplers, where = prepare(named, given, options)
        (name, sampler), *_ = samplers.items()
        calls = calibrate(sampler, SAMPLE_SECONDS[where.type])
        samples = _sample(sampler, calls, repeats, (min_time, max_time), precision, confidence)
    return summary(name, samples, calls, confidence, where, used, options.settings({"warmup": warmup}, given))


def _sample(
    sampler: Sampler,
    calls: int,
    repeats: int | None,
    times: tuple[float, float],
    precision: float,
    confidence: float,
) -> list[float]:
    """Take samples until there are ``repeats``, or enough by time and precision; seconds a call."""
    samples: list[float] = []
    spent, looked_at, began = 0.0, _ENOUGH_SAMPLES, perf_counter()
    while True:
        took = sampler.sample(calls)
        samples.append(took / calls)
        if repeats is not None:
            if len(samples) == repeats:
                return samples
            continue
        # What is not in the samples takes time as well: clearing a cache takes longer than a short function runs.
        spent = max(spent + took, perf_counter() - began)
        if spent >= times[1] and len(samples) >= _FEWEST_SAMPLES:
            return samples
        # The interval is looked at each time that the samples have become a quarter more, since it is sorted for.
        if spent >= times[0] and len(samples) >= looked_at:
            looked_at = len(samples) * 5 // 4
            low, high, _ = median_interval(samples, confidence)
            if high - low <= 2 * precision * statistics.median(samples):
                return samples


def summary(
    name: str,
    samples: Sequence[float],
    calls: int,
    confidence: float,
    device: torch.device,
    threads: int,
    settings: Mapping[str, Any],
) -> Measurement:
    """Return the statistics of samples, in seconds a call."""
    return Measurement(
        name=name,
        median=statistics.median(samples),
        iqr=interquartile_range(samples),
        min=min(samples),
        max=max(samples),
        n=len(samples),
        calls=calls,
        interval=median_interval(samples, confidence),
        device=str(device),
        threads=threads,
        settings=dict(settings),
        machine=machine(device),
        date=date.today().isoformat(),
        samples=tuple(samples),
    )


def _function(name: str, value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {value!r} of type {type(value).__name__}")
    return value
