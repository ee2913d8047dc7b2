"""The loop does what a plain loop does, and refuses what it cannot run."""

from __future__ import annotations

import gc
import signal
import weakref
from itertools import islice

import pytest
import torch
from tensordict import TensorDict

import purestep as ps
from _fit import batches, donating, kept, plain_loop, same
from purestep import data
from purestep.checkpoint import latest
from purestep.fit import Stopped, evaluate, fit
from purestep.state import DonatedStateError


def pooled(metrics: list[dict], name: str) -> float:
    return sum(float(m[name].total) for m in metrics) / sum(float(m[name].weight) for m in metrics)


def test_it_is_the_plain_loop(job):
    state, seen = plain_loop(job, 20)
    result = fit(job.step, job.state(), batches(job), steps=20, log_every=8, progress=False)
    assert same(result.state, state)
    assert [entry["step"] for entry in result.history] == [8, 16, 20]
    for entry, window in zip(result.history, (seen[:8], seen[8:16], seen[16:]), strict=True):
        assert list(entry) == ["step", "loss", "accuracy", "grad_norm", "learning_rate"]
        for name in ("loss", "accuracy"):
            assert entry[name] == pytest.approx(pooled(window, name), rel=1e-14)
        assert entry["learning_rate"] == float(window[-1]["learning_rate"])
    assert result.validation == []


def test_a_donating_step_gives_the_same_and_no_donated_state_is_read(job):
    given = job.state()
    plain = fit(job.step, job.state(), batches(job), steps=7, log_every=3, progress=False)
    result = fit(donating(job.step), given, batches(job), steps=7, log_every=3, progress=False)
    assert same(result.state, plain.state)
    assert result.history == plain.history
    with pytest.raises(DonatedStateError):
        _ = given.params


@pytest.mark.compiler
def test_a_compiled_donating_step_gives_the_same(job, donated_step):
    stream = [job.batch(seed=number) for number in range(6)]  # of one length: the shared step is compiled once
    plain = fit(job.step, job.state(), stream, steps=6, log_every=3, progress=False)
    result = fit(donated_step, job.state(), stream, steps=6, log_every=3, progress=False)
    for name, leaf in plain.state.params.items():
        assert torch.allclose(result.state.params[name], leaf, rtol=1e-10, atol=1e-10)
    for one, other in zip(result.history, plain.history, strict=True):
        assert one == pytest.approx(other, rel=1e-10)


@pytest.mark.compiler
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_compiled_donating_step_is_finished_saved_and_resumed(number, job, donated_step, tmp_path):
    stream = [job.batch(seed=each) for each in range(6)]
    right = fit(donated_step, job.state(), stream, steps=6, progress=False)

    def interrupted(state, batch):
        if int(state.calls) == 2:
            signal.raise_signal(number)
        return donated_step(state, batch)

    with pytest.raises(Stopped) as caught:
        fit(interrupted, job.state(), stream, steps=6, progress=False, checkpoint=tmp_path)
    assert same(kept(tmp_path, job.state(1)), caught.value.fit.state)
    assert int(caught.value.fit.state.calls) == 3
    result = fit(donated_step, job.state(), stream, steps=6, progress=False, checkpoint=tmp_path, resume="auto")
    assert same(result.state, right.state)


@pytest.mark.compiler
def test_a_batch_that_a_compiled_step_cannot_be_traced_with_leaves_the_state_whole(job, donated_step, tmp_path):
    stream = [job.batch(), job.batch(), TensorDict({"z": torch.ones(8)}, [8])]
    with pytest.raises(KeyError) as caught:
        fit(donated_step, job.state(), stream, steps=3, progress=False, checkpoint=tmp_path)
    state = caught.value.fit.state  # nothing was written, though fit cannot know and saves nothing
    right = fit(donated_step, job.state(), stream[:2], steps=2, progress=False).state
    assert same(state, right)
    assert "may have written part" in caught.value.__notes__[-1]
    assert latest(tmp_path) is None


def most_alive(job, loop):
    """How many states are alive at once, at most, where ``loop(step, take)`` steps from ``take()``, and at the end."""
    kept, alive = [], []

    def count_alive():
        gc.collect()
        return sum(reference() is not None for reference in kept)

    def step(state, batch):
        after, metrics = job.step(state, batch)
        kept.append(weakref.ref(after.params["0.weight"]))
        alive.append(count_alive())
        return after, metrics

    states = [job.state()]
    kept.append(weakref.ref(states[0].params["0.weight"]))
    result = loop(step, states.pop)
    assert int(result.step) == 5
    return max(alive), count_alive()


def test_no_state_but_the_last_is_kept(job):
    """No more than a plain loop keeps, which is called as ``fit`` is: where Dynamo has hooked Python's calls, as other
    tests have it do, a caller holds what it hands over until the call is over."""

    def steps(step, state, stream):
        for batch in islice(stream, 5):
            state, _ = step(state, batch)
        return state

    def plain(step, take):
        return steps(step, take(), batches(job))

    def fitted(step, take):
        return fit(step, take(), batches(job), steps=5, log_every=2, progress=False).state

    assert most_alive(job, fitted) <= most_alive(job, plain)


def test_it_takes_the_batches_it_uses_and_no_more(job):
    stream = batches(job)
    fit(job.step, job.state(), stream, steps=3, progress=False)
    assert torch.equal(next(stream)["x"], job.batch(length=8, seed=3)["x"])


def test_it_stops_where_the_batches_do(job):
    result = fit(job.step, job.state(), list(islice(batches(job), 5)), steps=100, log_every=4, progress=False)
    assert int(result.state.step) == 5
    assert [entry["step"] for entry in result.history] == [4, 5]


def test_a_run_that_goes_on_counts_on(job, tmp_path):
    whole = fit(job.step, job.state(), batches(job), steps=12, log_every=4, progress=False)
    path = tmp_path / "run"
    half = fit(job.step, job.state(), batches(job), steps=6, log_every=4, progress=False, checkpoint=path)
    rest = fit(job.step, kept(path, job.state(1)), batches(job, 6), steps=6, log_every=4, progress=False)
    assert same(rest.state, whole.state)
    assert [entry["step"] for entry in half.history + rest.history] == [4, 6, 8, 12]
    assert rest.history[-1] == whole.history[-1]


def test_a_pipeline_of_batches(job):
    whole = job.batch(length=20)
    source = data.from_tensors({"x": whole["x"], "y": whole["y"]})
    train = data.pipeline(source, data.shuffled(20, seed=0), batch_size=8)
    test = data.pipeline(source, data.sequential(20), batch_size=8, epochs=1)
    evaluation = ps.eval_step(job.model, job.objective)
    result = fit(
        job.step,
        job.state(),
        train,
        steps=9,
        validate=lambda state: evaluate(evaluation, state, test),
        validate_every=3,
        progress=False,
    )
    assert [entry["step"] for entry in result.validation] == [3, 6, 9]
    assert result.validation[-1]["loss"] == pytest.approx(float(evaluation(result.state, whole)["loss"]), rel=1e-12)
    assert train.state_dict()["epoch"] == 2  # nine batches of three an epoch, and none beyond


def test_a_bare_loss_is_that_of_the_last_step(job):
    def objective(model, batch):
        return (model(batch["x"]) ** 2).mean()

    step = ps.train_step(job.model, objective, job.optimizer)
    state, losses = job.state(), []
    for batch in islice(batches(job), 4):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    result = fit(step, job.state(), batches(job), steps=4, log_every=2, progress=False)
    assert [entry["loss"] for entry in result.history] == [losses[1], losses[3]]


def _returns(value):
    return lambda state, batch: value


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"step": None}, TypeError, "step must be a function .* got None"),
        ({"state": {}}, TypeError, "state must be a TrainState .* got dict"),
        ({"batches": 3}, TypeError, "batches must be an iterable of batches, got 3 of type int"),
        ({"batches": {"x": torch.ones(2)}}, TypeError, "got a dict, which is one batch"),
        ({"batches": TensorDict({}, batch_size=[])}, TypeError, "got a TensorDict, which is one batch"),
        ({"batches": torch.ones(3, 2)}, TypeError, "got a Tensor, which is one batch"),
        ({"batches": []}, ValueError, "batches must yield at least one batch, got none from a list"),
        ({"batches": iter(())}, ValueError, "at least one batch, got none from a tuple_iterator .*only once"),
        ({"steps": 0}, ValueError, "steps must be an int of at least 1, got 0"),
        ({"steps": 2.0}, TypeError, "steps must be an int of at least 1, got 2.0 of type float"),
        ({"log_every": 0}, ValueError, "log_every must be an int of at least 1, got 0"),
        ({"log_every": True}, TypeError, "log_every must be an int of at least 1, got True"),
        ({"validate": "accuracy"}, TypeError, "validate must be a function state -> metrics or None"),
        ({"validate_every": 5}, ValueError, "validate must be given with validate_every=5, got None"),
        ({"validate": dict, "validate_every": -1}, ValueError, "validate_every must be an int of at least 1, got -1"),
        ({"validate": lambda state: 0.5}, TypeError, "validate must return a dict of metrics by name, got a float"),
        ({"validate": lambda state: {"a": "b"}}, TypeError, "metric 'a' must be ps.mean"),
        ({"loggers": print}, TypeError, "loggers must be a list or tuple of functions"),
        ({"loggers": [print, "tensorboard"]}, TypeError, r"loggers\[1\] must be a function .* got 'tensorboard'"),
        ({"checkpoint": 3}, TypeError, "checkpoint must be a folder for checkpoints, a .*Manager or None, got 3"),
        ({"checkpoint": __file__}, ValueError, "folder must be a folder for checkpoints, got the file"),
        ({"resume": 3}, TypeError, 'resume must be "auto", a checkpoint.s folder or None, got 3 of type int'),
        ({"resume": "auto"}, ValueError, 'checkpoint must be given with resume="auto"'),
        ({"resume": "/no/such"}, FileNotFoundError, "resume must be a checkpoint or a folder of them, got '/no/such'"),
        ({"resume": __file__}, ps.checkpoint.CheckpointError, "got the file .*a checkpoint is a folder"),
        ({"progress": None}, TypeError, "progress must be True or False, got None"),
        ({"step": _returns({"loss": 1})}, TypeError, r"step must return \(state, metrics\).* got a dict"),
        ({"step": _returns((1, 2, 3))}, TypeError, "got a tuple of 3 entries"),
    ],
)
def test_bad_arguments_are_named(job, changes, error, message):
    arguments = {"step": job.step, "state": job.state(), "batches": [job.batch()], "steps": 1, "progress": False}
    arguments |= changes
    step, state, stream = (arguments.pop(name) for name in ("step", "state", "batches"))
    with pytest.raises(error, match=message):
        fit(step, state, stream, **arguments)
