"""measure.time. Calibration is exact, on a clock that only the functions move; what a real clock shows is judged by
bench/measure_self_check.py."""

from __future__ import annotations

import dataclasses
import functools
import statistics

import pytest
import torch

from _measuring import ON_CUDA, Clock
from purestep import measure
from purestep.measure import timing
from purestep.measure._statistics import Interval, interquartile_range


@pytest.mark.parametrize("seconds", [1e-8, 2e-5, 0.9e-3, 5e-3, 2.0])
def test_a_sample_is_long_enough_and_not_longer(seconds):
    clock = Clock()
    measured = measure.time(clock.takes(seconds), clock=clock, repeats=5)
    sample = measured.calls * seconds
    assert sample >= 1e-3 * (1 - 1e-9)
    assert measured.calls == 1 or sample < 2e-3
    assert measured.median == pytest.approx(seconds)
    assert len(clock.called) < 15 * measured.calls + 60  # calibration does not cost more than the measuring


def test_an_interruption_does_not_spoil_the_calibration():
    clock = Clock()
    plain = clock.takes(1e-5)

    def interrupted():
        clock.slowness = 500 if len(clock.called) in (4, 30) else 1
        plain()

    assert measure.time(interrupted, clock=clock, repeats=2).calls >= 100


def test_the_statistics_of_samples():
    clock = Clock()
    lengths = iter([1.0] * 4 + [9.0, 1.0, 3.0, 2.0, 7.0])  # a warm-up and three to calibrate, then five samples

    def fn():
        clock.now += next(lengths)

    measured = measure.time(fn, clock=clock, repeats=5, warmup=1)
    # A call longer than 0.1 s is sampled once to calibrate.
    samples = measured.samples
    assert (measured.n, measured.calls) == (5, 1)
    assert measured.median == statistics.median(samples)
    assert (measured.min, measured.max) == (min(samples), max(samples))
    assert measured.iqr == interquartile_range(samples)
    assert measured.interval == Interval(min(samples), max(samples), 1 - 2**-4)


def test_samples_are_taken_until_the_median_is_known():
    clock = Clock()
    steady = measure.time(clock.takes(1e-3), clock=clock, min_time=0.1, max_time=5.0)
    assert steady.n * steady.median == pytest.approx(0.1, rel=0.05)
    turns = iter(range(10**9))

    def restless():
        clock.now += 1e-3 * (1 + next(turns) % 2)

    unsteady = measure.time(restless, clock=clock, min_time=0.1, max_time=0.5)
    assert sum(unsteady.samples) == pytest.approx(0.5, rel=0.05)


def test_inputs_take_turns():
    clock = Clock()
    measure.time(clock.takes(1e-3), inputs=[(1,), (2,), (3,)], clock=clock, repeats=6, warmup=3)
    timed = [args[0] for _, args in clock.called][-6:]
    assert sorted(timed) == [1, 1, 2, 2, 3, 3]
    assert timed[:3] == timed[3:]


def test_it_is_warmed_up_before():
    clock = Clock()
    fn = clock.takes(1.0)
    measure.time(fn, clock=clock, warmup=7, repeats=1)
    assert len(clock.called) == 7 + 1 + 1  # warm-up, calibration, sample


def test_threads_are_set_meanwhile_and_put_back():
    before, seen = torch.get_num_threads(), set()
    measured = measure.time(lambda: seen.add(torch.get_num_threads()), threads=2, repeats=1)
    assert (seen, measured.threads, torch.get_num_threads()) == ({2}, 2, before)
    with pytest.raises(KeyError):
        measure.time(lambda: {}["x"], threads=2, repeats=1)
    assert torch.get_num_threads() == before


def test_the_cache_is_flushed_between_single_calls():
    measured = measure.time(torch.add, torch.ones(4), 1, flush_cache=True, repeats=3)
    assert (measured.calls, measured.n) == (1, 3)
    assert measured.settings["flush_cache"] is True


def test_clearing_the_cache_is_in_the_time_allowed(monkeypatch):
    began = [0.0]

    class Slow:  # an hour of clearing before a microsecond of work
        single, most_calls = True, 1

        def sample(self, calls):
            began[0] += 3600.0
            return 1e-6

    monkeypatch.setattr(timing, "perf_counter", lambda: began[0])
    samples = timing._sample(Slow(), 1, None, (0.2, 2.0), 0.01, 0.95)
    assert len(samples) == timing._FEWEST_SAMPLES


def test_a_partial_function_has_a_name():
    assert measure.time(functools.partial(torch.add, torch.ones(2)), 1, repeats=1).name == "add"


def test_a_measurement_is_readable_and_survives_json():
    clock = Clock()
    measured = measure.time(clock.takes(20e-6, "work"), clock=clock, threads=1, min_time=0.01, max_time=0.01)
    assert repr(measured).startswith("Measurement(work: median 20.00 µs, ")
    assert repr(measured).endswith("cpu, 1 thread)")
    again = measure.Measurement.from_json(measured.to_json())
    assert again == measured
    assert again.samples == measured.samples
    assert again.relative_to(measured) == 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        measured.median = 0.0


def test_a_real_clock_runs():
    measured = measure.time(torch.add, torch.ones(8), 1, min_time=0.01, max_time=0.02)
    assert 0 < measured.min <= measured.interval.low <= measured.median <= measured.interval.high <= measured.max
    assert measured.calls > 1
    assert measured.name == "add"


@pytest.mark.cuda
@ON_CUDA
@pytest.mark.parametrize("options", [{}, {"flush_cache": True}, {"graph": True}, {"graph": True, "flush_cache": True}])
def test_cuda_times_are_the_devices(options):
    a = torch.rand(4096, 4096, device="cuda")
    seen = measure.time(torch.mm, a, a, max_time=0.5, **options)
    assert seen.device == "cuda:0"
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began.record()
    for _ in range(50):
        torch.mm(a, a)
    ended.record()
    torch.cuda.synchronize()
    assert seen.median == pytest.approx(began.elapsed_time(ended) / 50e3, rel=0.2)


@pytest.mark.cuda
@ON_CUDA
def test_a_graph_hides_the_launches():
    x = torch.rand(64, device="cuda")
    assert measure.time(torch.neg, x, graph=True).median < 0.7 * measure.time(torch.neg, x).median


@pytest.mark.cuda
@ON_CUDA
def test_time_agrees_with_do_bench():
    testing = pytest.importorskip("triton.testing")
    a = torch.rand(4096, 4096, device="cuda")
    other = testing.do_bench(lambda: torch.mm(a, a), return_mode="median") / 1e3
    assert measure.time(torch.mm, a, a, flush_cache=True).median == pytest.approx(other, rel=0.03)


def test_the_public_names():
    assert list(measure.__all__) == sorted(measure.__all__)
    for name in measure.__all__:
        assert getattr(measure, name).__doc__
