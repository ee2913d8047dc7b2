"""The metrics of the loop and of an evaluation are pooled exactly, and read once a window."""

from __future__ import annotations

from itertools import count

import pytest
import torch

import purestep as ps
from _fit import Recorder, counting, numbers
from purestep import data
from purestep.fit import evaluate, fit
from purestep.fit._window import Reading, Window


def test_the_device_is_read_once_a_window(monkeypatch):
    reads = []
    for name in ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__"):
        original = getattr(torch.Tensor, name)

        def noted(self, *args, _name=name, _original=original, **kwargs):
            reads.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, noted)
    model = torch.nn.Linear(1, 1)
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    stream = numbers(*range(100))
    reads.clear()
    fit(counting, state, stream, steps=100, log_every=20, progress=False, loggers=[Recorder()])
    assert reads == ["__int__"] + ["tolist"] * 5  # where the state starts, and the windows


def test_a_window_that_arrives_late_is_not_waited_for(monkeypatch):
    asked = []

    def arrived(self):
        asked.append(1)
        return False

    monkeypatch.setattr(Reading, "arrived", arrived)
    model = torch.nn.Linear(1, 1)
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    recorder, taken = Recorder(), []

    def step(state, batch):
        taken.append(len(recorder.calls))
        return counting(state, batch)

    def validate(state):
        return {"steps": state.step, "half": 0.5}

    result = fit(
        step, state, numbers(*range(7)), steps=7, log_every=2, loggers=[recorder], progress=False, validate=validate
    )
    assert taken == [0, 0, 0, 0, 1, 1, 2]  # each window is written down by the end of the next
    assert [entry["loss"] for entry in result.history] == [0.5, 2.5, 4.5, 6.0]
    assert [call[0] for call in recorder.calls] == [2, 4, 6, 7, 7]
    assert recorder.calls[-1] == (7, {"val/steps": 7.0, "val/half": 0.5})
    assert result.validation == [{"step": 7, "steps": 7.0, "half": 0.5}]
    monkeypatch.undo()
    polled = fit(counting, state, numbers(*range(7)), steps=7, log_every=2, progress=False)
    assert polled.history == result.history


def test_a_window_that_arrives_between_windows_is_written_then(monkeypatch):
    answers = iter([False, False, True, True, True, True])  # at the end of the window, then at each step
    monkeypatch.setattr(Reading, "arrived", lambda self: next(answers))
    recorder, seen = Recorder(), []
    state = ps.init_state(torch.nn.Linear(1, 1), ps.sgd(0.1), seed=0)

    def step(state, batch):
        seen.append(len(recorder.calls))
        return counting(state, batch)

    fit(step, state, numbers(*range(10)), steps=10, log_every=5, loggers=[recorder], progress=False)
    assert seen == [0] * 7 + [1] * 3


def test_long_counts_do_not_stop(job):
    def step(state, batch):
        many = torch.tensor(2.0**24)
        return {"seen": ps.Mean(batch * 3, batch), "loss": ps.Mean(many, many) + ps.Mean(batch, batch)}

    ones = [torch.tensor(2.0**24), *(torch.ones(()) for _ in range(100))]
    metrics = evaluate(step, job.state(), ones)
    assert float(metrics["seen"].weight) == 2**24 + 100
    assert float(metrics["seen"].total) == 3 * (2**24 + 100)
    assert float(metrics["loss"].terms[0].weight) == 2**24 * 101
    assert float(metrics["loss"]) == 2.0


def test_evaluate_is_exact_over_ragged_batches(job):
    step, whole = ps.eval_step(job.model, job.objective), job.batch(length=23)
    once = step(job.state(), whole)
    metrics = evaluate(step, job.state(), whole.split([1, 9, 0, 13]))
    for name in ("loss", "accuracy"):
        assert float(metrics[name]) == pytest.approx(float(once[name].total) / float(once[name].weight), rel=1e-14)
    again = ps.merge(metrics, metrics)
    assert float(again["loss"]) == pytest.approx(float(once["loss"]), rel=1e-14)
    assert set(ps.values(metrics)) == {"loss", "accuracy"}


def test_the_first_batch_is_not_changed_by_the_second():
    window = Window(last_bare=False)
    first = ps.Mean(torch.tensor(1.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    window.add({"m": first})
    window.add({"m": first})
    assert float(first.total) == 1.0
    early = window.pooled()["m"]
    assert float(early.total) == 2.0


def test_other_metrics_merge_by_themselves(job):
    class Highest:
        def __init__(self, top):
            self.top = top

        def merge(self, other):
            return Highest(torch.maximum(self.top, other.top))

        def value(self):
            return self.top

    def step(state, batch):
        return {
            "top": Highest(batch["x"].max()),
            "count": ps.Mean(torch.tensor(3), torch.tensor(2)),
            "last": batch["x"],
        }

    metrics = evaluate(step, job.state(), numbers(1.0, 5.0, 2.0))
    assert list(metrics) == ["top", "count", "last"]
    assert float(metrics["top"].value()) == 5.0
    assert float(metrics["count"]) == 1.5
    assert float(metrics["last"]) == 2.0


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        (lambda i: [1.0], TypeError, "metrics must be a dict .* got list"),
        (lambda i: {"step": torch.ones(())}, ValueError, 'a metric is named "step"'),
        (lambda i: {"norms": torch.ones(3)}, ValueError, r"metric 'norms' must be one real number .* shape \(3,\)"),
        (
            lambda i: {f"m{i}": torch.ones(())},
            ValueError,
            "same names and terms for every batch, got 'm0' and then 'm1'",
        ),
        (
            lambda i: {"loss": ps.mean(torch.ones(2)) if i else ps.mean(torch.ones(2)) + ps.mean(torch.ones(2))},
            ValueError,
            "got 'loss of 2 terms' and then 'loss'",
        ),
        (lambda i: {"name": "text"}, TypeError, "metric 'name' must be ps.mean"),
    ],
)
def test_bad_metrics_are_named(job, metrics, error, message):
    calls = count()

    def step(state, batch):
        return state, metrics(next(calls))

    with pytest.raises(error, match=message):
        fit(step, job.state(), [job.batch()] * 2, steps=2, progress=False)


def test_bad_evaluations_are_named(job):
    step = ps.eval_step(job.model, lambda model, batch: model(batch["x"]).sum())
    one = [job.batch()]
    assert float(evaluate(step, job.state(), one)["loss"]) == float(step(job.state(), one[0])["loss"])
    endless = data.pipeline(data.from_tensors({"x": torch.ones(4, 4)}), data.sequential(4), batch_size=2)
    for batches_, error, message in (
        (one * 2, TypeError, "this loss was a bare tensor"),
        ([], ValueError, "at least one batch, got none from a list"),
        (job.batch(), TypeError, "got a TensorDict, which is one batch"),
        (endless, ValueError, "batches must end, got an endless pipeline: make it with epochs=1"),
    ):
        with pytest.raises(error, match=message):
            evaluate(step, job.state(), batches_)
    with pytest.raises(TypeError, match="step must be a function"):
        evaluate(None, job.state(), one)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_history_is_the_same_and_no_step_waits():
    state = ps.init_state(torch.nn.Linear(1, 1), ps.sgd(0.1), seed=0)
    stream = numbers(*range(10))
    there = [{"x": batch["x"].cuda()} for batch in stream]
    here = fit(counting, state, stream, steps=10, log_every=4, progress=False)

    def step(state, batch):
        torch.cuda.set_sync_debug_mode("error")  # from the first step on, whatever waits for the device raises
        return counting(state, batch)

    recorder = Recorder()
    try:
        result = fit(step, state.to("cuda"), there, steps=10, log_every=4, progress=False, loggers=[recorder])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.history == here.history
    assert len(recorder.calls) == 3
