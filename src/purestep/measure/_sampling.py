"""One sample: the seconds of a number of calls in a row, on the CPU by a monotonic clock, on CUDA by events.

The loop is our own rather than that of ``torch.utils.benchmark.Timer``: samples of several functions take turns, sets
of arguments rotate, and the clock can be replaced, none of which ``Timer.blocked_autorange`` does. What it does well is
kept: many calls a sample, a fixed number of threads, the median.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch

from purestep.measure._arguments import Inputs

Clock = Callable[[], float]

# Reading the clock twice costs 0.1 µs, and recording two events on an idle device some 5 µs of waiting for the first
# launch: each is 0.1 % of a sample of this many seconds at most. Longer samples would be interrupted more often.
SAMPLE_SECONDS = {"cpu": 1e-3, "cuda": 5e-3}
_MOST_CALLS = 1_000_000
_GRAPHED_CALLS = 1_000


class Sampler(Protocol):
    """Times calls in a row, with one before them where there are several; ``single``: a sample is always one call."""

    single: bool
    most_calls: int

    def sample(self, calls: int) -> float:
        """Return the seconds that ``calls`` calls in a row took, all of them together."""


class CpuSampler:
    """Wall time."""

    def __init__(self, fn: Callable[..., Any], inputs: Inputs, *, flush_cache: bool, clock: Clock | None) -> None:
        self._fn, self._clock = fn, clock or perf_counter
        self._rotation = itertools.cycle(inputs)
        self._only = inputs[0] if len(inputs) == 1 else None
        self._cache = torch.empty(2 * cache_bytes(torch.device("cpu")), dtype=torch.uint8) if flush_cache else None
        self.single, self.most_calls = flush_cache, _MOST_CALLS

    def sample(self, calls: int) -> float:
        fn, clock = self._fn, self._clock
        # One set of arguments needs no rotation, whose own memory would be another for each function compared.
        turns = (
            itertools.repeat(self._only, calls) if self._only is not None else itertools.islice(self._rotation, calls)
        )
        if self._cache is not None:
            self._cache.add_(1)
        elif calls > 1:  # what another function left in the caches is not this one's to pay for
            fn(*next(self._rotation))
        with _no_collection():
            began = clock()
            for args in turns:
                fn(*args)
            return clock() - began


class CudaSampler:
    """Device time between two events on the current stream.

    Without ``flush_cache`` and ``graph`` a function of small kernels is bound by their launches, as it is in use. With
    ``flush_cache`` a sample is one call, launched while the device still clears its cache, so that launches are hidden
    as far as that takes; with ``graph`` all calls of a sample are one captured graph, launched at once.
    """

    def __init__(
        self, fn: Callable[..., Any], inputs: Inputs, device: torch.device, *, flush_cache: bool, graph: bool
    ) -> None:
        self._fn, self._device, self._inputs = fn, device, inputs
        self._rotation = itertools.cycle(inputs)
        self._graph: tuple[int, torch.cuda.CUDAGraph] | None = None
        self._graphed = graph
        self.single, self.most_calls = flush_cache, _GRAPHED_CALLS if graph else _MOST_CALLS
        self._cache: torch.Tensor | None = None
        if flush_cache:
            self._cache = torch.empty(max(2 * cache_bytes(device), 256 * 2**20), dtype=torch.uint8, device=device)

    def sample(self, calls: int) -> float:
        with torch.cuda.device(self._device), _no_collection():
            run = self._captured(calls).replay if self._graphed else None
            began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()  # what other streams still do is not ours
            if self._cache is not None:
                self._cache.zero_()
            elif calls > 1 and run is None:  # as on the CPU; the device is also busy while the first call is launched
                self._fn(*next(self._rotation))
            began.record()
            if run is not None:
                run()
            else:
                for args in itertools.islice(self._rotation, calls):
                    self._fn(*args)
            ended.record()
            ended.synchronize()
            return began.elapsed_time(ended) / 1e3

    def _captured(self, calls: int) -> torch.cuda.CUDAGraph:
        if self._graph is None or self._graph[0] != calls:
            self._graph = None  # its memory goes before the next one is captured
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries set themselves up outside the capture
                for args in self._inputs:
                    self._fn(*args)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for args in itertools.islice(self._rotation, calls):
                    self._fn(*args)
            graph.replay()
            self._graph = calls, graph
        return self._graph[1]


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """The garbage collector waits until a sample is over: a pause would hit one function of many."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def make_sampler(
    fn: Callable[..., Any],
    inputs: Inputs,
    device: torch.device,
    *,
    flush_cache: bool,
    graph: bool,
    clock: Clock | None,
) -> Sampler:
    """Return what times ``fn`` on a device."""
    if device.type == "cuda":
        return CudaSampler(fn, inputs, device, flush_cache=flush_cache, graph=graph)
    if graph:
        raise ValueError(f"graph=True needs a CUDA device, got device={str(device)!r}: the CPU has no graphs to replay")
    return CpuSampler(fn, inputs, flush_cache=flush_cache, clock=clock)


def calibrate(sampler: Sampler, seconds: float) -> int:
    """Return the number of calls with which a sample takes about ``seconds``; one call where one takes longer."""
    if sampler.single:
        return 1
    calls = 1
    while True:
        took = _shortest(sampler, calls, seconds)
        if took >= seconds or calls >= sampler.most_calls:
            return calls
        # At most ten times as many: the first samples are short, and their times rough.
        wanted = 1.1 * calls * seconds / max(took, seconds / 1e9)
        calls = min(sampler.most_calls, 10 * calls, max(calls + 1, int(wanted)))


def _shortest(sampler: Sampler, calls: int, seconds: float) -> float:
    """The shortest of three samples, since an interruption makes a short function look long; of one, where it is long
    beyond any interruption."""
    took = sampler.sample(calls)
    for _ in range(2):
        if took > 100 * seconds:
            break
        took = min(took, sampler.sample(calls))
    return took


def cache_bytes(device: torch.device) -> int:
    """Bytes of the last cache before memory: the CPU's largest (64 MiB where the system does not say), CUDA's L2."""
    if device.type == "cuda":
        return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(path.read_text().strip().removesuffix("K")) * 2**10)
    return max(sizes, default=64 * 2**20)
