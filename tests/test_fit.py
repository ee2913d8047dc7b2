"""The loop does what a plain loop does, shows it, writes it down, and loses nothing when it is stopped."""

from __future__ import annotations

import gc
import os
import re
import signal
import threading
import weakref
from itertools import count, islice

import pytest
import torch
from tensordict import TensorDict

import purestep as ps
from purestep import data
from purestep.checkpoint import load, save
from purestep.execution import _boundary
from purestep.fit import _progress, evaluate, fit
from purestep.fit._window import Reading, Window
from purestep.state import DonatedStateError


def batches(job, first: int = 0):
    """An endless stream of ragged batches."""
    for number in count(first):
        yield job.batch(length=5 + number % 4, seed=number)


def plain_loop(job, steps: int):
    state, seen = job.state(), []
    for batch in islice(batches(job), steps):
        state, metrics = job.step(state, batch)
        seen.append(metrics)
    return state, seen


def pooled(metrics: list[dict], name: str) -> float:
    return sum(float(m[name].total) for m in metrics) / sum(float(m[name].weight) for m in metrics)


def donating(step):
    """What ``ps.compile(step, donate=True)`` does to its argument, without compiling."""

    def donated(state, batch):
        flat = _boundary.flatten_state(state)
        after, metrics = step(state, batch)
        for old, new in zip(flat.leaves, _boundary.flatten_state(after).leaves, strict=True):
            old.copy_(new)
        return _boundary.hand_over(state, flat, "donated"), metrics

    return donated


def counting(state, batch):
    """A step that trains nothing: its metrics are the batch's numbers."""
    after = state.replace(step=state.step + 1, calls=state.calls + 1)
    return after, {"loss": ps.mean(batch["x"]), "rate": state.calls * 0.5}


def numbers(*each: float) -> list[dict]:
    return [{"x": torch.tensor([value])} for value in each]


def same(one: ps.TrainState, other: ps.TrainState) -> bool:
    return bool((one == other).all())


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def __call__(self, step, scalars):
        self.calls.append((step, scalars))

    def close(self):
        self.closed += 1


# The loop


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


def most_alive(job, loop):
    """How many states are alive at once, at most, where ``loop(step, states)`` steps, and how many at the end."""
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
    result = loop(step, states)
    assert int(result.step) == 5
    return max(alive), count_alive()


def test_no_state_but_the_last_is_kept(job):
    def plain(step, states):
        state = states.pop()
        for batch in islice(batches(job), 5):
            state, _ = step(state, batch)
        return state

    def fitted(step, states):
        return fit(step, states.pop(), batches(job), steps=5, log_every=2, progress=False).state

    # No more than a plain loop keeps: the one given, and the one made.
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
    path = tmp_path / "run.safetensors"
    half = fit(job.step, job.state(), batches(job), steps=6, log_every=4, progress=False, checkpoint=path)
    rest = fit(job.step, load(path, like=job.state(1)), batches(job, 6), steps=6, log_every=4, progress=False)
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


# Metrics


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


# Validation, loggers, display


def test_validation_at_its_multiples_and_at_the_end(job):
    recorder, states = Recorder(), []
    evaluation, held_out = ps.eval_step(job.model, job.objective), [job.batch(6, seed=99), job.batch(3, seed=98)]

    def validate(state):
        states.append(int(state.step))
        return evaluate(evaluation, state, held_out)

    arguments = {"log_every": 2, "loggers": [recorder], "progress": False, "validate": validate}
    result = fit(job.step, job.state(), batches(job), steps=7, validate_every=3, **arguments)
    assert states == [3, 6, 7]
    assert [call[0] for call in recorder.calls] == [2, 3, 4, 6, 6, 7, 7]
    assert list(recorder.calls[1][1]) == ["val/loss", "val/accuracy"]
    assert result.validation[-1]["loss"] == float(evaluate(evaluation, result.state, held_out)["loss"])
    assert recorder.closed == 1
    states.clear()
    fit(job.step, job.state(), batches(job), steps=6, validate_every=3, **arguments)
    assert states == [3, 6]  # not twice at the end
    states.clear()
    fit(job.step, job.state(), batches(job), steps=6, **arguments)
    assert states == [6]


def test_loggers_get_the_history(job):
    one, seen = Recorder(), []
    result = fit(
        job.step,
        job.state(),
        batches(job),
        steps=5,
        log_every=2,
        progress=False,
        loggers=(one, lambda step, scalars: seen.append((step, scalars.pop("loss")))),
    )
    assert [{"step": step, **scalars} for step, scalars in one.calls] == result.history
    assert seen == [(entry["step"], entry["loss"]) for entry in result.history]


def test_lines_where_there_is_no_terminal(job, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a CI job that asks for colours has no terminal for a bar
    fit(job.step, job.state(), batches(job), steps=5, log_every=2, validate=lambda state: {"accuracy": 0.5})
    lines = capsys.readouterr().out.splitlines()
    number = r"[-+.e\d]+"
    for line, step in zip(lines[:3], (2, 4, 5), strict=True):
        pattern = rf"step {step}/5  loss {number}  accuracy {number}  grad_norm {number}  learning_rate {number}"
        assert re.fullmatch(rf"{pattern}  {number} steps/s", line), line
    assert lines[3:] == ["step 5/5  validation  accuracy 0.5"]


def test_silence(job, capsys):
    fit(job.step, job.state(), batches(job), steps=5, log_every=2, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(job, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    fit(job.step, job.state(), islice(batches(job), 5), steps=9, log_every=2, validate=lambda state: {"[odd]": 0.5})
    output = capsys.readouterr().out
    assert "5/9" in output
    assert "loss" in output
    assert "steps/s" in output
    assert "step 5/9  validation  [odd] 0.5" in output
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(_progress.display(shown=True, first=0, last=1), _progress.Lines)


# When it is stopped


def failing(step, at: int, error: BaseException):
    calls = count(1)

    def fails(state, batch):
        if next(calls) == at:
            raise error
        return step(state, batch)

    return fails


def test_the_checkpoint_is_the_last_state(job, tmp_path):
    path = tmp_path / "runs" / "run.safetensors"
    result = fit(job.step, job.state(), batches(job), steps=3, progress=False, checkpoint=path)
    assert same(load(path, like=job.state(1)), result.state)


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_what_a_step_raises_comes_out_with_the_last_good_state(job, tmp_path, error):
    path, recorder = tmp_path / "run.safetensors", Recorder()
    with pytest.raises(type(error)) as caught:
        fit(
            failing(job.step, 4, error),
            job.state(),
            batches(job),
            steps=9,
            log_every=2,
            progress=False,
            checkpoint=path,
            loggers=[recorder],
        )
    assert caught.value is error
    expected, _ = plain_loop(job, 3)
    assert same(error.fit.state, expected)
    assert [entry["step"] for entry in error.fit.history] == [2]
    assert same(load(path, like=job.state(1)), expected)
    assert recorder.closed == 1
    assert error.__notes__ == [f"fit stopped after step 3: its state is `error.fit.state`, and in {str(path)!r}"]


def test_a_batch_that_cannot_be_made(job, tmp_path):
    def stream():
        yield from islice(batches(job), 3)
        raise OSError("picture.png cannot be decoded")

    path = tmp_path / "run.safetensors"
    with pytest.raises(OSError, match="picture") as caught:
        fit(donating(job.step), job.state(), stream(), steps=9, progress=False, checkpoint=path)
    assert same(load(path, like=job.state(1)), plain_loop(job, 3)[0])
    assert same(caught.value.fit.state, plain_loop(job, 3)[0])


@pytest.mark.parametrize("place", ["validate", "logger"])
def test_a_validation_or_a_logger_that_fails(job, tmp_path, place):
    def fails(*arguments):
        raise RuntimeError("elsewhere")

    path = tmp_path / "run.safetensors"
    arguments = {"validate": fails, "validate_every": 2} if place == "validate" else {"loggers": [fails]}
    with pytest.raises(RuntimeError, match="elsewhere"):
        fit(
            donating(job.step),
            job.state(),
            batches(job),
            steps=9,
            log_every=2,
            progress=False,
            checkpoint=path,
            **arguments,
        )
    assert same(load(path, like=job.state(1)), plain_loop(job, 2)[0])


def test_a_donating_step_that_fails_does_not_overwrite_the_file(job, tmp_path):
    path = tmp_path / "run.safetensors"
    save(path, job.state(3))
    with pytest.raises(MemoryError) as caught:
        fit(
            failing(donating(job.step), 3, MemoryError()),
            job.state(),
            batches(job),
            steps=9,
            progress=False,
            checkpoint=path,
        )
    assert same(load(path, like=job.state()), job.state(3))
    assert "may have written part, for it donates" in caught.value.__notes__[0]
    assert int(caught.value.fit.state.step) == 2


def test_a_run_that_never_began_does_not_overwrite_the_file(job, tmp_path):
    path = tmp_path / "run.safetensors"
    save(path, job.state(3))
    with pytest.raises(ValueError, match="at first"):
        fit(
            failing(job.step, 1, ValueError("at first")),
            job.state(),
            batches(job),
            steps=9,
            progress=False,
            checkpoint=path,
        )
    assert same(load(path, like=job.state()), job.state(3))


def test_a_file_that_cannot_be_written_hides_nothing(job, tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("purestep.checkpoint.save_file", full)
    with pytest.raises(ValueError, match="bad") as caught:
        fit(
            failing(job.step, 3, ValueError("bad")),
            job.state(),
            batches(job),
            steps=9,
            progress=False,
            checkpoint=tmp_path / "a",
        )
    assert "could not be saved to" in caught.value.__notes__[0]
    with pytest.raises(OSError, match="No space") as caught:
        fit(job.step, job.state(), batches(job), steps=2, progress=False, checkpoint=tmp_path / "a")
    assert same(caught.value.fit.state, plain_loop(job, 2)[0])


def test_ctrl_c_in_a_step_is_heard_at_its_end(job, tmp_path):
    finished = []

    def step(state, batch):
        after = donating(job.step)
        if len(finished) == 2:
            signal.raise_signal(signal.SIGINT)
        result = after(state, batch)
        finished.append(1)
        return result

    path, before = tmp_path / "run.safetensors", signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(step, job.state(), batches(job), steps=9, progress=False, checkpoint=path)
    assert len(finished) == 3
    assert same(caught.value.fit.state, plain_loop(job, 3)[0])
    assert same(load(path, like=job.state(1)), plain_loop(job, 3)[0])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_is_heard_at_once(job):
    def step(state, batch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        fit(step, job.state(), batches(job), steps=9, progress=False)


def test_ctrl_c_outside_a_step_is_heard_at_once(job):
    def stream():
        yield from islice(batches(job), 2)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(job.step, job.state(), stream(), steps=9, progress=False)
    assert int(caught.value.fit.state.step) == 2


def test_another_handler_and_another_thread_are_left_alone(job):
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))

    def step(state, batch):
        signal.raise_signal(signal.SIGINT)
        return job.step(state, batch)

    try:
        fit(step, job.state(), batches(job), steps=2, progress=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1, 1]
    results = []
    thread = threading.Thread(
        target=lambda: results.append(fit(job.step, job.state(), batches(job), steps=2, progress=False))
    )
    thread.start()
    thread.join()
    # A thread may have another number of threads for its kernels, which sum in another order.
    right = plain_loop(job, 2)[0].params
    for name, value in results[0].state.params.items():
        torch.testing.assert_close(value, right[name], rtol=1e-12, atol=1e-14)


# What is refused, and how


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
        ({"checkpoint": 3}, TypeError, "path must be the name of a file, got 3"),
        ({"checkpoint": os.sep}, ValueError, "path must be the name of a file, got the folder"),
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
