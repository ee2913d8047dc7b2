"""Functions against each other, in turns."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch

from purestep import _checks
from purestep.measure import _format
from purestep.measure._arguments import argument_sets, naming
from purestep.measure._machine import Machine, thread_count
from purestep.measure._preparing import Options, prepare
from purestep.measure._sampling import SAMPLE_SECONDS, Clock, Sampler, calibrate
from purestep.measure._statistics import Interval, median_interval
from purestep.measure.timing import Measurement, summary

# With fewer rounds than the first no interval reaches 99 %; beyond the last, more add little.
_FEWEST_ROUNDS, _ENOUGH_ROUNDS, _MOST_ROUNDS = 9, 21, 1_000

Ways = Mapping[str, Callable[..., Any]] | Iterable[tuple[str, Callable[..., Any]]]


@dataclass(frozen=True)
class Ratio:
    """The time of one function over that of the baseline.

    Attributes:
        value: the median of the rounds' ratios; 2 is twice as long.
        interval: where that median lies, by order statistics: ``(low, high, confidence)``.
        rounds: each round's ratio.
    """

    value: float
    interval: Interval
    rounds: tuple[float, ...] = field(repr=False, compare=False)

    @property
    def differs(self) -> bool:
        """Whether the interval leaves 1 out."""
        return 1.0 not in self.interval

    @property
    def verdict(self) -> str:
        """``no difference seen``, or by how much it is faster or slower."""
        if not self.differs:
            return "no difference seen"
        if self.value < 1:
            return (
                f"{1 / self.value:.2f} times as fast" if self.value < 0.8 else f"{100 * (1 - self.value):.1f} % faster"
            )
        return f"{self.value:.2f} times as long" if self.value > 1.25 else f"{100 * (self.value - 1):.1f} % slower"


@dataclass(frozen=True)
class Comparison:
    """Functions timed in turns in one run.

    Attributes:
        baseline: the name that ratios are to.
        measurements: of each function, by name. Their medians hold what the machine did meanwhile; the ratios do not.
        ratios: of each function to the baseline; the baseline's own is 1.
    """

    baseline: str
    measurements: Mapping[str, Measurement]
    ratios: Mapping[str, Ratio]

    @property
    def machine(self) -> Machine:
        """What it was measured on."""
        return self.measurements[self.baseline].machine

    def __str__(self) -> str:
        first = self.measurements[self.baseline]
        confidence = next((r.interval.confidence for name, r in self.ratios.items() if name != self.baseline), 0.0)
        columns = ("", "median", "IQR", "min", "ratio", f"{100 * confidence:.1f} % interval", "")
        rows = []
        for name, measured in self.measurements.items():
            ratio = self.ratios[name]
            low, high, _ = ratio.interval
            against = (
                ("1", "", "baseline")
                if name == self.baseline
                else (f"{ratio.value:.4f}", f"{low:.4f} to {high:.4f}", ratio.verdict)
            )
            times = (_format.seconds(value) for value in (measured.median, measured.iqr, measured.min))
            rows.append((name, *times, *against))
        title = f"{len(next(iter(self.ratios.values())).rounds)} rounds in turns, {first.device}, " + _format.count(
            first.threads, "thread"
        )
        return _format.table(title, columns, rows, notes=f"{self.machine}, {first.date}", words=(0, 6))

    def to_json(self) -> str:
        """Return figures, spread, settings, machine, versions and date as JSON; samples and rounds are left out."""
        first = self.measurements[self.baseline]
        results = {}
        for name, measured in self.measurements.items():
            ratio = self.ratios[name]
            results[name] = {
                "median_seconds": measured.median,
                "iqr_seconds": measured.iqr,
                "min_seconds": measured.min,
                "max_seconds": measured.max,
                "interval_seconds": list(measured.interval),
                "samples": measured.n,
                "calls": measured.calls,
                "ratio": ratio.value,
                "ratio_interval": list(ratio.interval),
                "verdict": "baseline" if name == self.baseline else ratio.verdict,
            }
        return json.dumps(
            {
                "date": first.date,
                "machine": asdict(self.machine),
                "device": first.device,
                "threads": first.threads,
                "settings": dict(first.settings),
                "baseline": self.baseline,
                "results": results,
            },
            indent=2,
        )

    def plot(self) -> Any:
        """Return a matplotlib figure of the ratios with their intervals; it needs matplotlib."""
        from purestep.measure._plots import plot_ratios

        ratios = {name: (each.value, each.interval.low, each.interval.high) for name, each in self.ratios.items()}
        return plot_ratios(self.baseline, ratios)


def compare(
    ways: Ways,
    *args: Any,
    inputs: Sequence[tuple[Any, ...]] | None = None,
    baseline: str | None = None,
    rounds: int | None = None,
    max_time: float = 3.0,
    confidence: float = 0.99,
    warmup: int = 3,
    threads: int | None = None,
    device: torch.device | str | None = None,
    flush_cache: bool = False,
    graph: bool = False,
    mutates: bool = False,
    clock: Clock | None = None,
) -> Comparison:
    """Time functions in turns, and return their ratios to a baseline with an interval.

    A round takes each function's sample four times: in a random order and back (A B B A), and so once more. What slows
    the machine for longer than a round slows them alike, a drift cancels, and none gains by its place. The round's
    ratio is that of the shortest sample of each, since what interrupts a sample only ever makes it longer: with two
    busy processes beside it on two cores, sums gave far wider intervals. The ratio reported is the median of the
    rounds', with an interval by order statistics that assumes nothing about the shape of the noise. An interval that
    contains 1 is reported as "no difference seen", which is what equal functions get in about ``confidence`` of the
    runs.

    Args:
        ways: functions by name, or ``(name, function)`` pairs; at least two.
        args, inputs: what each is called with, as in :func:`time`.
        baseline: the name that the others are divided by; the first by default.
        rounds: how many; by default as many as fit into ``max_time``, from 9 to 1000. The number is fixed before the
            first round: to go on until a difference shows would find one everywhere. Where fewer than 21 would fit,
            a round has two samples of each instead of four.
        max_time: seconds of measuring.
        confidence: of the ratios' intervals, from 0 to 1.
        warmup, threads, device, flush_cache, graph, mutates, clock: as in :func:`time`.

    Raises:
        TypeError, ValueError: fewer than two ways, a name twice, a baseline that is none of them, an option out of
            range, or what :func:`time` refuses.
        Exception: what a function raises, as it is, with a note that names it.
    """
    functions = _functions(ways)
    baseline = next(iter(functions)) if baseline is None else baseline
    if baseline not in functions:
        near = _checks.near_misses(str(baseline), functions)
        raise ValueError(f"baseline must be one of {_checks.listed(functions)}, got {baseline!r}{near}")
    if rounds is not None:
        _checks.integer("rounds", rounds, minimum=1)
    _checks.number("max_time", max_time, above=0)
    _checks.number("confidence", confidence, above=0, below=1)
    options = Options(warmup, threads, device, flush_cache, graph, mutates, clock)
    options.check()
    given = argument_sets(args, inputs)
    with thread_count(threads) as used:
        samplers, where = prepare(functions, given, options)
        calls = _calibrated(samplers, SAMPLE_SECONDS[where.type])
        rounds, turns = _plan(samplers, calls, rounds, max_time)
        samples, by_round = _take_turns(samplers, calls, rounds, turns)
    settings = options.settings({"warmup": warmup, "rounds": rounds, "turns": turns}, given)
    return Comparison(
        baseline=baseline,
        measurements={
            name: summary(name, samples[name], calls[name], confidence, where, used, settings) for name in functions
        },
        ratios={name: _ratio(by_round[name], by_round[baseline], confidence) for name in functions},
    )


def _functions(ways: Ways) -> dict[str, Callable[..., Any]]:
    pairs = list(ways.items() if isinstance(ways, Mapping) else ways)
    functions: dict[str, Callable[..., Any]] = {}
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and callable(pair[1])):
            raise TypeError(f"ways must be functions by name, as in {{'a': f, 'b': g}}, got {pair!r} among them")
        name, fn = pair
        if name in functions:
            raise ValueError(f"ways must have a name for each function, got {name!r} twice")
        functions[name] = fn
    if len(functions) < 2:
        raise ValueError(f"ways must hold at least two functions to compare, got {len(functions)}: time() times one")
    return functions


def _calibrated(samplers: Mapping[str, Sampler], seconds: float) -> dict[str, int]:
    calls = {}
    for name, sampler in samplers.items():
        with naming(name):
            calls[name] = calibrate(sampler, seconds)
    # What a sample costs once (taking up the caches, reading the clock) is shared by its calls. Functions of about the
    # same speed get the same number of them: otherwise the calibration's noise would be a difference between equals.
    most = 0
    for name in sorted(calls, key=lambda each: calls[each], reverse=True):
        if 2 * calls[name] < most or not most:
            most = calls[name]
        calls[name] = most
    return calls


def _plan(
    samplers: Mapping[str, Sampler], calls: Mapping[str, int], rounds: int | None, max_time: float
) -> tuple[int, int]:
    """Return the number of rounds, and of samples of each function in a round."""
    once, began = 0.0, perf_counter()
    for name, sampler in samplers.items():
        with naming(name):
            once += sampler.sample(calls[name])
    once = max(once, perf_counter() - began)  # with what is not in the samples, such as clearing a cache
    fit = max_time / max(once, 1e-9)
    turns = 4 if fit >= 4 * (rounds or _ENOUGH_ROUNDS) else 2
    return rounds or min(_MOST_ROUNDS, max(_FEWEST_ROUNDS, int(fit / turns))), turns


def _take_turns(
    samplers: Mapping[str, Sampler], calls: Mapping[str, int], rounds: int, turns: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the samples of each function, and its shortest of each round; seconds a call."""
    names = list(samplers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    # In a fixed cycle a function would always follow the same one, and take up the caches as that one leaves them; in a
    # random order equal functions are exchangeable, which is all that the interval of their ratio assumes.
    shuffle = random.Random(0)
    for _ in range(rounds):
        for _ in range(turns // 2):
            order = shuffle.sample(names, len(names))
            for name in (*order, *reversed(order)):
                with naming(name):
                    samples[name].append(samplers[name].sample(calls[name]) / calls[name])
    by_round = {
        name: [min(each[first : first + turns]) for first in range(0, len(each), turns)]
        for name, each in samples.items()
    }
    return samples, by_round


def _ratio(mine: Sequence[float], theirs: Sequence[float], confidence: float) -> Ratio:
    rounds = tuple(a / b for a, b in zip(mine, theirs, strict=True))
    return Ratio(statistics.median(rounds), median_interval(rounds, confidence), rounds)
