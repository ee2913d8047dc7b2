"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import importlib
import json
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import pytest
import torch
import purestep as ps


def make(device):
    model = torch.nn.Linear(4, 3, device=device)
    optimizer = ps.sgd(0.1)
    step = ps.train_step(model, lambda m, b: ps.mean(m(b["x"]).square()), optimizer)
    return step, ps.init_state(model, optimizer, seed=0), {"x": torch.ones(6, 4, device=device)}


@pytest.mark.parametrize("device", ["cpu", "cuda:77"])
def test_a_step(step_benchmark, device):
    step, state, batch = make(step_benchmark.device(device))
    report = step_benchmark(step, state, batch, tokens=12, rounds=3, steps=2, threads=1)
    assert int(state.step) == 0
    if report is not None:
        assert report.tokens == 12


def test_a_bad_argument(step_benchmark):
    with pytest.raises(ValueError, match="rounds must be an int of at least 1, got 0"):
        step_benchmark(*make("cpu"), rounds=0)
    with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda', got 'cdua'"):
        step_benchmark.device("cdua")
    step_benchmark(*make("cpu"), rounds=1, steps=1)
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run TESTS; the plugin is named where no installed entry point brings it."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark takes it for its own run's
    pytester.makepyfile(TESTS)
    known = any(entry.name == "purestep" for entry in entry_points(group="pytest11"))
    named = [] if known else ["-p", "purestep.measure.pytest_plugin"]
    quiet = ("-p", "no:cacheprovider", "-p", "no:xdist")
    return lambda *options: pytester.runpytest_inprocess(*named, *quiet, *options)


def test_figures_go_into_extra_info(run, pytester, monkeypatch):
    # The ceilings are kept small: measuring them for real takes seconds.
    ceilings = importlib.import_module("purestep.measure.ceilings")  # purestep.measure.ceilings is its function
    monkeypatch.setattr(ceilings, "_SIDE", {"cpu": 32})
    monkeypatch.setattr(ceilings, "_COPIED", {"cpu": 4096})
    done = run("-rs", "--benchmark-json=out.json")
    done.assert_outcomes(passed=2, skipped=1)
    done.stdout.fnmatch_lines(["*SKIPPED*device must be a device that is here, got 'cuda:77'*"])
    kept = json.loads((pytester.path / "out.json").read_text())["benchmarks"][0]
    extra = kept["extra_info"]
    assert (extra["device"], extra["threads"], extra["steps"], extra["graph_breaks"]) == ("cpu", 1, 2, 0)
    assert extra["flops"] == 2 * 6 * 4 * 3 * 2
    assert extra["tokens_per_second"] == pytest.approx(12 / extra["seconds"])
    assert kept["stats"]["rounds"] == 3


def test_a_disabled_benchmark_takes_one_step(run):
    run("--benchmark-disable", "-k", "cpu").assert_outcomes(passed=1)


def test_without_pytest_benchmark_it_says_what_to_install(run):
    done = run("-rs", "-p", "no:benchmark", "-k", "cpu")
    done.assert_outcomes(skipped=1)
    done.stdout.fnmatch_lines(["*step_benchmark needs pytest-benchmark: pip install pytest-benchmark*"])
