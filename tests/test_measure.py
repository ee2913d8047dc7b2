"""The measuring room. Statistics and calibration are exact, on clocks that only the functions move; what a real clock
shows is judged by bench/measure_self_check.py."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import sys
import time

import pytest
import torch
from torch import nn

import purestep as ps
from purestep import measure
from purestep.measure import _format, suite
from purestep.measure._machine import Machine, machine
from purestep.measure._statistics import Interval, interquartile_range, median_interval

MACHINE = Machine("a processor", 4, 8 << 30, "", "Linux", "3.12", "2.13", "")
ROOF = measure.Ceilings({"float32": 1e11, "float64": 5e10}, 1e10, "cpu", 1, MACHINE, "2026-01-01")


class Clock:
    """Stands still but for what the functions made by ``takes`` let pass."""

    def __init__(self):
        self.now = 0.0
        self.slowness = 1.0
        self.called = []

    def __call__(self):
        return self.now

    def takes(self, seconds, name="f"):
        def fn(*args):
            self.called.append((name, args))
            self.now += self.slowness * seconds

        fn.__qualname__ = name
        return fn


# ------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    ("n", "confidence", "rank", "reached"),
    [
        (1, 0.95, 1, 0.0),
        (5, 0.95, 1, 1 - 2 * 0.5**5),  # five values cannot reach 95 %
        (6, 0.95, 1, 1 - 2 * 0.5**6),
        (10, 0.95, 2, 1 - 2 * 11 / 1024),
        (100, 0.95, 40, None),  # the textbook's ranks 40 and 61
        (7, 0.99, 1, 1 - 2 * 0.5**7),
        (8, 0.99, 1, 1 - 2 * 0.5**8),
    ],
)
def test_the_interval_of_a_median(n, confidence, rank, reached):
    values = [float(value) for value in range(1, n + 1)]
    interval = median_interval(values[::-1], confidence)
    assert (interval.low, interval.high) == (rank, n + 1 - rank)
    outside = 2 * sum(math.comb(n, k) for k in range(rank)) / 2**n
    assert interval.confidence == pytest.approx(1 - outside if reached is None else reached, abs=1e-12)


def test_the_interval_of_many_values_goes_on_as_it_did():
    low_exact = median_interval(range(5000), 0.99).low / 5000
    low_normal = median_interval(range(5001), 0.99).low / 5001
    assert low_exact == pytest.approx(low_normal, abs=1e-3)


def test_the_interval_covers_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 25, generator=generator, dtype=torch.float64).exp().pow(3).tolist()  # skewed
    true = math.exp(1.5)
    intervals = [median_interval(values, 0.9) for values in draws]
    covered = sum(true in interval for interval in intervals) / len(draws)
    assert covered == pytest.approx(intervals[0].confidence, abs=0.02)


def test_the_interquartile_range():
    assert interquartile_range([1.0]) == 0.0
    assert interquartile_range([1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (_format.seconds(12.345e-6), "12.35 µs"),
        (_format.seconds(2.0), "2.000 s"),
        (_format.seconds(0.0), "0.000 ns"),
        (_format.rate(1.234e12, "FLOP/s"), "1.234 TFLOP/s"),
        (_format.size(1536 * 1024), "1.500 MiB"),
        (_format.size(12), "12 B"),
        (_format.count(1, "call"), "1 call"),
        (_format.count(1000, "call"), "1,000 calls"),
    ],
)
def test_figures_have_units(text, right):
    assert text == right


# ------------------------------------------------------------------------------------------------------------- time


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


# ---------------------------------------------------------------------------------------------------------- compare


def names_timed(clock, names, rounds, turns):
    """The samples' functions in order: the last calls, each of which is one sample."""
    return "".join(name for name, _ in clock.called)[-len(names) * turns * rounds :]


def test_functions_take_turns():
    clock = Clock()
    result = measure.compare([("a", clock.takes(0.2, "a")), ("b", clock.takes(0.2, "b"))], clock=clock, rounds=9)
    timed = names_timed(clock, "ab", 9, 2)
    assert {timed[i : i + 4] for i in range(0, len(timed), 4)} == {"abba", "baab"}
    assert result.ratios["b"].value == pytest.approx(1.0)
    measure.compare({n: clock.takes(2e-3, n) for n in "abc"}, clock=clock, rounds=200, max_time=9.0)
    timed = names_timed(clock, "abc", 200, 4)
    turns = [timed[i : i + 6] for i in range(0, len(timed), 6)]
    assert all(turn == turn[::-1] and set(turn) == set("abc") for turn in turns)
    assert len(set(turns)) == 6  # each order of the three


def test_functions_of_about_the_same_speed_get_the_same_number_of_calls():
    clock = Clock()
    lengths = {"a": 1.0e-5, "b": 1.3e-5, "c": 1.8e-5, "slow": 9e-5, "slower": 1e-4, "once": 1.0}
    result = measure.compare({n: clock.takes(t, n) for n, t in lengths.items()}, clock=clock, rounds=1)
    calls = {name: measured.calls for name, measured in result.measurements.items()}
    assert calls["a"] == calls["b"] == calls["c"] > calls["slow"] == calls["slower"] > calls["once"] == 1


def test_a_sample_of_several_calls_has_one_before_it():
    clock = Clock()
    cold = 5.0

    def other():
        nonlocal cold
        cold, clock.now = 5.0, clock.now + 2e-3

    def sensitive():
        nonlocal cold
        cold, clock.now = 1.0, clock.now + cold * 1e-4

    result = measure.compare({"sensitive": sensitive, "other": other}, clock=clock, rounds=20)
    assert result.measurements["sensitive"].max == pytest.approx(1e-4)


@pytest.mark.parametrize("ratio", [0.5, 0.98, 1.0, 1.02, 3.0])
def test_the_ratio_does_not_see_the_machine_slow_down(ratio):
    clock = Clock()

    def drifting(seconds):
        fn = clock.takes(seconds)

        def drift():
            clock.slowness = 1 + clock.now  # twice as slow after a second
            fn()

        return drift

    result = measure.compare({"base": drifting(2e-3), "other": drifting(2e-3 * ratio)}, clock=clock, rounds=101)
    seen = result.ratios["other"]
    assert seen.value == pytest.approx(ratio, rel=1e-2 if ratio == 3.0 else 5e-3)
    assert seen.differs == (ratio != 1.0)
    assert result.ratios["base"].value == 1.0


def test_interruptions_are_not_taken_for_a_difference():
    clock = Clock()
    generator = torch.Generator().manual_seed(3)
    hit = (torch.rand(100_000, generator=generator) < 0.3).tolist()

    def noisy(seconds):
        fn = clock.takes(seconds)

        def call():
            clock.slowness = 4.0 if hit[len(clock.called)] else 1.0
            fn()

        return call

    result = measure.compare({"a": noisy(2e-3), "b": noisy(2e-3), "c": noisy(2.02e-3)}, clock=clock, rounds=101)
    assert result.ratios["b"].verdict == "no difference seen"
    assert result.ratios["c"].verdict == "1.0 % slower"


def test_the_number_of_rounds_is_fixed_by_the_time():
    clock = Clock()
    assert len(measure.compare({n: clock.takes(1e-3) for n in "ab"}, clock=clock).ratios["a"].rounds) > 300
    clock = Clock()
    slow = measure.compare({n: clock.takes(1.0) for n in "ab"}, clock=clock)
    assert len(slow.ratios["a"].rounds) == 9
    assert slow.measurements["a"].n == 18
    assert slow.ratios["b"].interval.confidence > 0.99


def test_a_comparison_is_a_table_and_json():
    clock = Clock()
    ways = {"plain": clock.takes(2e-3), "fast": clock.takes(1e-3), "same": clock.takes(2e-3)}
    result = measure.compare(ways, clock=clock, rounds=30, threads=1, baseline="plain")
    text = str(result)
    assert "30 rounds in turns, cpu, 1 thread" in text
    for fragment in ("2.000 ms", "0.5000", "2.00 times as fast", "no difference seen", "baseline", str(result.machine)):
        assert fragment in text
    kept = json.loads(result.to_json())
    assert kept["baseline"] == "plain"
    assert kept["results"]["fast"]["ratio"] == pytest.approx(0.5)
    assert {"date", "machine", "device", "threads", "settings"} < set(kept)
    assert kept["machine"]["torch"] == torch.__version__
    figure = result.plot()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(ways)


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (1.01, 0.99, 1.02, "no difference seen"),
        (0.5, 0.4, 0.6, "2.00 times as fast"),
        (0.9, 0.85, 0.95, "10.0 % faster"),
        (1.1, 1.05, 1.15, "10.0 % slower"),
        (3.0, 2.0, 4.0, "3.00 times as long"),
    ],
)
def test_the_verdict(value, low, high, verdict):
    assert measure.Ratio(value, Interval(low, high, 0.99), ()).verdict == verdict


# ------------------------------------------------------------------------------------------------------- bad input


def changes_its_argument(x):
    return x.add_(1)


def changes_unseen(x):
    x.numpy()[0] = 7.0  # no version counter sees this


def grows(values, x):
    values.append(1)


def fails(*args):
    raise KeyError("inside")


def on_another_machine():
    mine = measure.time(torch.add, torch.ones(1), 1, repeats=1)
    return mine.relative_to(dataclasses.replace(mine, machine=MACHINE))


def with_other_threads():
    mine = measure.time(torch.add, torch.ones(1), 1, repeats=1)
    return mine.relative_to(dataclasses.replace(mine, threads=mine.threads + 3))


def net():
    return nn.Linear(4, 3)


def step_and_state():
    model, optimizer = net(), ps.sgd(0.1)
    return ps.train_step(model, lambda m, b: ps.mean(m(b["x"])), optimizer), ps.init_state(model, optimizer, seed=0)


def no_file(tmp_path):
    (tmp_path / "rates.json").write_text('{"a": 1}')
    return measure.ceilings("cpu", cache=tmp_path / "rates.json", threads=17)


def noop():
    return None


BATCH = {"x": torch.ones(6, 4)}
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")

# Each row: the call, the exception, and what the message must contain: the argument, its value, what would be right.
ROWS = {
    "zero repeats": (lambda: measure.time(noop, repeats=0), ValueError, ("repeats must be an int of at least 1", "0")),
    "negative rounds": (
        lambda: measure.compare({"a": noop, "b": noop}, rounds=-2),
        ValueError,
        ("rounds must be an int of at least 1", "-2"),
    ),
    "no warm-up": (lambda: measure.time(noop, warmup=0), ValueError, ("warmup must be an int of at least 1", "0")),
    "repeats that are no int": (lambda: measure.time(noop, repeats=2.5), TypeError, ("repeats must be an int", "2.5")),
    "no threads": (lambda: measure.time(noop, threads=0), ValueError, ("threads must be an int of at least 1", "0")),
    "times in the wrong order": (
        lambda: measure.time(noop, min_time=2.0, max_time=1.0),
        ValueError,
        ("max_time must be a finite number at least 2", "1.0"),
    ),
    "a certain interval": (
        lambda: measure.time(noop, confidence=1.0),
        ValueError,
        ("confidence must be", "above 0 and below 1", "1.0"),
    ),
    "no function": (lambda: measure.time(3), TypeError, ("fn must be a function", "got 3 of type int")),
    "inputs that are no tuples": (
        lambda: measure.time(torch.neg, inputs=[torch.ones(2)]),
        ValueError,
        ("inputs must be a sequence of tuples", "one of type Tensor", "inputs=[(x,), (y,)]"),
    ),
    "no inputs": (lambda: measure.time(torch.neg, inputs=[]), ValueError, ("inputs must be", "at least one, got none")),
    "arguments twice": (
        lambda: measure.time(torch.neg, 1, inputs=[(1,)]),
        ValueError,
        ("give either args or inputs", "1 args"),
    ),
    "a function that changes its argument": (
        lambda: measure.time(changes_its_argument, torch.ones(3)),
        ValueError,
        ("changes_its_argument changed its argument", "tensor args[0] of shape (3,)", "mutates=True"),
    ),
    "a change that no counter sees": (
        lambda: measure.time(changes_unseen, torch.ones(3)),
        ValueError,
        ("changes_unseen changed its argument", "tensor args[0]"),
    ),
    "one of several inputs that is changed": (
        lambda: measure.time(changes_its_argument, inputs=[(torch.ones(3),), (torch.ones(2),)]),
        ValueError,
        ("tensor inputs[0][0]",),
    ),
    "a changed tensor in a nesting": (
        lambda: measure.time(lambda batch: batch["a"][1].zero_(), {"a": (1, torch.ones(2))}),
        ValueError,
        ("tensor args[0]['a'][1] of shape (2,)",),
    ),
    "a changed module": (
        lambda: measure.time(_train, nn.BatchNorm1d(2)),
        ValueError,
        ("_train changed its argument", "args[0].running_mean"),
    ),
    "a list that grows": (
        lambda: measure.time(grows, [], torch.ones(1)),
        ValueError,
        ("grows changed its argument", "the list args[0]"),
    ),
    "one that changes its argument, compared": (
        lambda: measure.compare({"pure": torch.neg, "inplace": torch.neg_}, torch.ones(3)),
        ValueError,
        ("inplace changed its argument", "args[0]"),
    ),
    "a device that nobody has": (
        lambda: measure.time(noop, device="gpu"),
        ValueError,
        ("device must be 'cpu' or 'cuda'", "'gpu'"),
    ),
    "another device": (
        lambda: measure.ceilings("meta"),
        ValueError,
        ("device must be 'cpu' or 'cuda', got 'meta'",),
    ),
    "an argument on another device": (
        lambda: measure.time(torch.neg, torch.ones(2, device="meta")),
        ValueError,
        ("the device of what neg takes and returns must be 'cpu' or 'cuda'", "'meta'"),
    ),
    "a graph on the CPU": (
        lambda: measure.time(torch.neg, torch.ones(2), graph=True),
        ValueError,
        ("graph=True needs a CUDA device", "'cpu'"),
    ),
    "one function to compare": (
        lambda: measure.compare({"a": noop}),
        ValueError,
        ("ways must hold at least two functions", "got 1"),
    ),
    "names that repeat": (
        lambda: measure.compare([("a", noop), ("b", noop), ("a", noop)]),
        ValueError,
        ("ways must have a name for each function", "'a' twice"),
    ),
    "ways without names": (
        lambda: measure.compare([noop, noop]),
        TypeError,
        ("ways must be functions by name", "{'a': f, 'b': g}"),
    ),
    "a baseline that is none": (
        lambda: measure.compare({"eager": noop, "compiled": noop}, baseline="eagre"),
        ValueError,
        ("baseline must be one of 'eager', 'compiled', got 'eagre'", "did you mean 'eager'"),
    ),
    "results of another machine": (
        on_another_machine,
        ValueError,
        ("baseline must be measured on the same machine", "a processor", "measure.compare"),
    ),
    "results with other threads": (
        with_other_threads,
        ValueError,
        ("baseline must be measured with the same threads", "measure.compare"),
    ),
    "memory of no function": (lambda: measure.memory(3), TypeError, ("fn must be a function", "3")),
    "memory of what cannot be sent": (
        lambda: measure.memory(lambda: None),
        ValueError,
        ("fn and args must be picklable", "<lambda>", "start='fork'"),
    ),
    "an unknown start": (
        lambda: measure.memory(noop, start="thread"),
        ValueError,
        ("start must be 'spawn' or 'fork', got 'thread'",),
    ),
    "a report of no state": (
        lambda: measure.report(step_and_state()[0], {}, BATCH),
        TypeError,
        ("state must be a TrainState", "dict"),
    ),
    "a report of no step": (
        lambda: measure.report(3, step_and_state()[1], BATCH),
        TypeError,
        ("step must be a function", "3"),
    ),
    "a report of a step that returns no state": (
        lambda: measure.report(lambda s, b: b, step_and_state()[1], BATCH, ceilings=roof()),
        TypeError,
        ("step must return (state, metrics)", "dict", "measure.time(step, state, batch)"),
    ),
    "ceilings of another machine": (
        lambda: measure.report(*step_and_state(), BATCH, ceilings=ROOF),
        ValueError,
        ("ceilings must be measured on the same machine", "a processor"),
    ),
    "ceilings that are none": (
        lambda: measure.report(*step_and_state(), BATCH, ceilings=1e9),
        TypeError,
        ("ceilings must be what measure.ceilings(device) returned", "1000000000.0"),
    ),
    "a benchmark that is none": (
        lambda: suite.run(["stepp"]),
        ValueError,
        ("NAME must be one of", "'step'", "got 'stepp'", "did you mean 'step'"),
    ),
    "a benchmark's name that is taken": (
        lambda: suite.benchmark("step", title=""),
        ValueError,
        ("name must be free, got 'step'",),
    ),
}


def _train(module):
    return module(torch.ones(3, 2))


@pytest.mark.parametrize("name", ROWS)
def test_the_message(name):
    call, error, fragments = ROWS[name]
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


@NO_CUDA
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_device_that_is_absent(device):
    for call in (
        lambda: measure.time(noop, device=device),
        lambda: measure.compare({"a": noop, "b": noop}, device=device),
        lambda: measure.memory(noop, device=device),
        lambda: measure.ceilings(device),
        lambda: suite.run([], device=device),
    ):
        with pytest.raises(ValueError, match=rf"device must be a device that is here, got '{device}': torch"):
            call()


def test_a_damaged_cache_of_ceilings(tmp_path):
    with pytest.raises(ValueError, match=r"cache must be a file that ceilings\(\) wrote"):
        no_file(tmp_path)


def test_what_a_function_raises_comes_out_as_it_is():
    with pytest.raises(KeyError, match="inside") as caught:
        measure.time(fails)
    assert caught.value.__notes__ == ["raised by fails while it was measured"]
    with pytest.raises(KeyError, match="inside") as caught:
        measure.compare({"good": noop, "bad": fails})
    assert caught.value.__notes__ == ["raised by bad while it was measured"]


def test_a_function_that_fails_later_is_named_as_well():
    calls = iter(range(30))
    with pytest.raises(StopIteration) as caught:
        measure.compare({"good": noop, "tired": lambda: next(calls)}, rounds=9)
    assert caught.value.__notes__ == ["raised by tired while it was measured"]


def test_nothing_to_synchronise_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match=r"noop takes no tensor and returned nothing to synchronise on \(a NoneType\)"):
        measure.time(noop)
    measure.time(noop, device="cpu", repeats=1)
    measure.time(torch.neg, torch.ones(1), repeats=1)  # a tensor says where


def test_writing_is_allowed_where_it_is_the_work():
    x = torch.zeros(3)
    measure.time(changes_its_argument, x, mutates=True, repeats=2)
    assert x[0] > 0


# ----------------------------------------------------------------------------------------------------------- memory


def twelve_mebibytes(x):
    return (x + 1) * 2 + torch.ones(1 << 20)


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_the_peak_of_a_call(start):
    x = torch.zeros(1 << 20)
    use = measure.memory(twelve_mebibytes, x, start=start)
    # A forked process has this one's heap, and fills the holes in it before it asks for more.
    assert use.added == pytest.approx(12 * 2**20, rel=0.1 if start == "spawn" else 0.5)
    assert use.peak > use.added + x.nbytes
    assert "added by the call" in repr(use)


def test_a_failure_in_the_process():
    with pytest.raises(KeyError, match="inside") as caught:
        measure.memory(fails, start="fork")
    assert "fails, in a process of its own" in caught.value.__notes__[0]


def test_a_process_that_takes_too_long():
    with pytest.raises(TimeoutError, match=r"took longer than timeout=0\.2 seconds"):
        measure.memory(time.sleep, 30, start="fork", timeout=0.2)


def test_a_process_that_ends_without_an_answer():
    with pytest.raises(RuntimeError, match=r"_exit ended without an answer \(exit code 9"):
        measure.memory(os._exit, 9, start="fork", warmup=1)


# ---------------------------------------------------------------------------------------- ceilings and the report


def roof():
    return dataclasses.replace(ROOF, machine=machine(torch.device("cpu")), threads=torch.get_num_threads())


@pytest.fixture
def small_ceilings(monkeypatch):
    module = sys.modules["purestep.measure.ceilings"]
    monkeypatch.setattr(module, "_KEPT", {})
    monkeypatch.setattr(module, "_SIDE", {"cpu": 64})
    monkeypatch.setattr(module, "_COPIED", {"cpu": 1 << 20})
    counted = []
    real = module._measured
    monkeypatch.setattr(module, "_measured", lambda *args: counted.append(args) or real(*args))
    return counted


def test_ceilings_are_measured_once_in_a_process_and_once_in_a_file(small_ceilings, monkeypatch, tmp_path):
    before = torch.get_rng_state()
    first = measure.ceilings(threads=1)
    assert set(first.matmul) == {"float32", "float64", "bfloat16"}
    assert all(rate > 1e6 for rate in (*first.matmul.values(), first.copy))
    assert measure.ceilings("cpu", threads=1) is first
    assert torch.equal(before, torch.get_rng_state())
    path = tmp_path / "kept" / "rates.json"
    measure.ceilings(threads=1, cache=path)
    assert len(small_ceilings) == 1
    module = sys.modules["purestep.measure.ceilings"]
    monkeypatch.setattr(module, "_KEPT", {})
    assert measure.ceilings(threads=1, cache=path) == first
    assert len(small_ceilings) == 1
    assert json.loads(first.to_json())["threads"] == 1
    assert "matmul, float32" in str(first)


def test_a_report_of_an_eager_step(job):
    state, batch = job.state(), job.batch(length=8)
    kept = state.clone()
    seen = measure.report(job.step, state, batch, tokens=lambda b: 5 * len(b), max_time=0.1, ceilings=roof())
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(kept), strict=True))
    assert (seen.examples, seen.tokens, seen.device, seen.dtype) == (8, 40, "cpu", "float64")
    assert (seen.graphs, seen.graph_breaks, seen.recompilations, seen.launches) == (0, 0, 0, None)
    # 4 -> 6 without an input gradient, and 6 -> 3 with one; two operations a product.
    assert seen.flops == 2 * 8 * (2 * 4 * 6 + 3 * 6 * 3)
    everything = sum(leaf.nbytes for leaf in leaves(state))
    fixed = state.key.nbytes
    assert seen.bytes_moved == 2 * everything - fixed + sum(leaf.nbytes for leaf in batch.values())
    assert seen.steps_per_second == 1 / seen.seconds
    assert seen.examples_per_second == pytest.approx(8 / seen.seconds)
    assert seen.tokens_per_second == pytest.approx(40 / seen.seconds)
    assert seen.compute_fraction == pytest.approx(seen.flops / seen.seconds / 5e10)
    assert seen.bandwidth_fraction == pytest.approx(seen.bytes_moved / seen.seconds / 1e10)
    assert seen.roofline_fraction == max(seen.compute_fraction, seen.bandwidth_fraction)


def leaves(tree):
    return [tree] if isinstance(tree, torch.Tensor) else [leaf for value in tree.values() for leaf in leaves(value)]


def test_a_report_is_a_table_a_picture_and_json(job):
    seen = measure.report(job.step, job.state(), job.batch(), max_time=0.05, ceilings=roof())
    text = str(seen)
    for fragment in ("steps", "examples", "matrix work", "memory moved", "0 graphs, 0 breaks, 0 compiled again"):
        assert fragment in text
    assert "tokens" not in text
    kept = json.loads(seen.to_json())
    assert kept["flops"] == seen.flops
    assert kept["machine"]["torch"] == torch.__version__
    assert kept["ceilings"]["matmul"]["float64"] == 5e10
    assert "% of the roof" in seen.plot().axes[0].texts[0].get_text()


def test_a_step_without_a_matrix_product_has_no_roofline():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.weight * x

    model, optimizer = Scale(), ps.sgd(0.1)
    step = ps.train_step(model, lambda m, b: ps.mean(m(b["x"])), optimizer)
    seen = measure.report(step, ps.init_state(model, optimizer, seed=0), BATCH, repeats=2, ceilings=roof())
    assert seen.flops == 0
    with pytest.raises(ValueError, match="a roofline needs counted FLOPs, got 0"):
        seen.plot()


def test_a_step_that_depends_on_values_is_counted_all_the_same(job):
    def step(state, batch):
        state, metrics = job.step(state, batch)
        return state, metrics if float(batch["x"].sum()) > -1e9 else {}

    seen = measure.report(step, job.state(), job.batch(), repeats=2, ceilings=roof())
    assert seen.flops == 2 * 8 * (2 * 4 * 6 + 3 * 6 * 3)


@pytest.mark.compiler
def test_a_report_of_a_donating_step(job, donated_step):
    state = job.state()
    donated_step(state.clone(), job.batch())  # compiled already: the count of graphs is of what the report compiles
    seen = measure.report(donated_step, state, job.batch(), max_time=0.1, ceilings=roof())
    assert int(state.step) == 0
    assert (seen.graphs, seen.graph_breaks, seen.recompilations) == (0, 0, 0)
    assert seen.flops == 2 * 8 * (2 * 4 * 6 + 3 * 6 * 3)


@pytest.mark.compiler
def test_graphs_are_counted():
    from purestep.measure._work import Compilations

    compiled = torch.compile(lambda x: x + 1, backend="eager")
    counts = Compilations()
    compiled(torch.ones(2))
    compiled(torch.ones(2))
    assert counts.so_far() == (1, 0)
    compiled(torch.ones(2, dtype=torch.float64))
    assert counts.so_far() == (2, 0)


# ----------------------------------------------------------------------------------------------------------- suite


def test_the_suite_runs_benchmarks_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "_KNOWN", dict(suite._KNOWN))
    x = torch.ones(4)

    @suite.benchmark("signs", title="Two ways to change a sign")
    def signs(device):
        return {"neg": lambda: torch.neg(x), "mul": lambda: -1 * x}

    assert suite.benchmarks()["signs"] is signs
    said = []
    results = suite.run(
        ["signs"],
        max_time=0.05,
        threads=1,
        json_path=tmp_path / "new" / "signs.json",
        png_path=tmp_path / "signs.png",
        say=said.append,
    )
    assert said[0].startswith("Two ways to change a sign\n")
    assert json.loads((tmp_path / "new" / "signs.json").read_text())["signs"]["baseline"] == "neg"
    assert results["signs"].baseline == "neg"
    assert (tmp_path / "signs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["step", "shuffle"])
def test_what_the_suite_compares_runs(name, monkeypatch):
    monkeypatch.setattr(suite, "compiler_missing", lambda: "not now: it takes seconds")
    before = torch.get_rng_state()
    functions = suite.benchmarks()[name].functions(torch.device("cpu"))
    for fn in functions.values():
        fn()
    assert torch.equal(before, torch.get_rng_state())


# ------------------------------------------------------------------------------------------------------------ CUDA

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


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


@pytest.mark.cuda
@ON_CUDA
def test_memory_and_launches_on_cuda():
    x = torch.zeros(1 << 20, device="cuda")
    assert measure.memory(eight_mebibytes, x).added == 8 * 2**20
    from purestep.measure._work import count_launches

    assert count_launches(lambda: eight_mebibytes(x)) == 2


def eight_mebibytes(x):
    return (x + 1) * 2


# ---------------------------------------------------------------------------------------------------- public names


def test_the_public_names():
    assert list(measure.__all__) == sorted(measure.__all__)
    for name in measure.__all__:
        assert getattr(measure, name).__doc__
