"""measure.compare, on a clock that only the functions move."""

from __future__ import annotations

import itertools
import json
import sys

import pytest
import torch

from _measuring import Clock
from purestep import measure
from purestep.measure._statistics import Interval


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


def test_clearing_the_cache_is_in_the_time_allowed(monkeypatch):
    now = itertools.count(step=10.0)
    monkeypatch.setattr(sys.modules["purestep.measure.comparing"], "perf_counter", lambda: next(now))
    clock = Clock()
    result = measure.compare({n: clock.takes(1e-3) for n in "ab"}, clock=clock, max_time=3.0)
    assert len(result.ratios["a"].rounds) == 9  # the fewest, since one turn takes ten seconds


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
