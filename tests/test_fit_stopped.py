"""The loop loses nothing when it is stopped: by an error, by Ctrl-C, or by a disk that is full."""

from __future__ import annotations

import signal
import threading
from itertools import count, islice

import pytest
import torch

import purestep as ps
from _fit import Recorder, batches, donating, kept, plain_loop, same
from purestep.checkpoint import Manager
from purestep.fit import fit


def failing(step, at: int, error: BaseException):
    calls = count(1)

    def fails(state, batch):
        if next(calls) == at:
            raise error
        return step(state, batch)

    return fails


def test_the_checkpoint_is_the_last_state(job, tmp_path):
    path = tmp_path / "runs" / "run"
    result = fit(job.step, job.state(), batches(job), steps=3, progress=False, checkpoint=path)
    assert same(kept(path, job.state(1)), result.state)


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_what_a_step_raises_comes_out_with_the_last_good_state(job, tmp_path, error):
    path, recorder = tmp_path / "run", Recorder()
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
    assert same(kept(path, job.state(1)), expected)
    assert recorder.closed == 1
    assert error.__notes__ == [f"fit stopped after step 3: its state is `error.fit.state`, and in {str(path)!r}"]


def test_a_batch_that_cannot_be_made(job, tmp_path):
    def stream():
        yield from islice(batches(job), 3)
        raise OSError("picture.png cannot be decoded")

    path = tmp_path / "run"
    with pytest.raises(OSError, match="picture") as caught:
        fit(donating(job.step), job.state(), stream(), steps=9, progress=False, checkpoint=path)
    assert same(kept(path, job.state(1)), plain_loop(job, 3)[0])
    assert same(caught.value.fit.state, plain_loop(job, 3)[0])


@pytest.mark.parametrize("place", ["validate", "logger"])
def test_a_validation_or_a_logger_that_fails(job, tmp_path, place):
    def fails(*arguments):
        raise RuntimeError("elsewhere")

    path = tmp_path / "run"
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
    assert same(kept(path, job.state(1)), plain_loop(job, 2)[0])


def test_a_donating_step_that_fails_does_not_overwrite_the_file(job, tmp_path):
    path = tmp_path / "run"
    with Manager(path) as manager:
        manager.save(job.state(3))
    with pytest.raises(MemoryError) as caught:
        fit(
            failing(donating(job.step), 3, MemoryError()),
            job.state(),
            batches(job),
            steps=9,
            progress=False,
            checkpoint=path,
        )
    assert same(kept(path, job.state()), job.state(3))
    assert "may have written part, for it donates" in caught.value.__notes__[0]
    assert int(caught.value.fit.state.step) == 2


def test_the_state_that_a_failing_step_was_given_is_whole(job, tmp_path):
    given = []

    def objective(model, batch):
        if len(given) == 3:
            raise ZeroDivisionError("in the objective")
        return job.objective(model, batch)

    plain = ps.train_step(job.model, objective, job.optimizer)

    def step(state, batch):
        given.append((state, state.clone()))
        return plain(state, batch)

    with pytest.raises(ZeroDivisionError) as caught:
        fit(step, job.state(), batches(job), steps=9, progress=False, checkpoint=tmp_path)
    assert all(same(state, before) for state, before in given)
    assert same(caught.value.fit.state, given[-1][1])
    assert same(kept(tmp_path, job.state(1)), given[-1][1])


def test_a_run_that_never_began_does_not_overwrite_the_file(job, tmp_path):
    path = tmp_path / "run"
    with Manager(path) as manager:
        manager.save(job.state(3))
    with pytest.raises(ValueError, match="at first"):
        fit(
            failing(job.step, 1, ValueError("at first")),
            job.state(),
            batches(job),
            steps=9,
            progress=False,
            checkpoint=path,
        )
    assert same(kept(path, job.state()), job.state(3))


def test_a_file_that_cannot_be_written_hides_nothing(job, tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("purestep.checkpoint._files.save_file", full)
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


def test_ctrl_c_in_a_step_is_heard_at_its_end(job):
    finished = []

    def step(state, batch):
        after = donating(job.step)
        if len(finished) == 2:
            signal.raise_signal(signal.SIGINT)
        result = after(state, batch)
        finished.append(1)
        return result

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(step, job.state(), batches(job), steps=9, progress=False)
    assert len(finished) == 3
    assert same(caught.value.fit.state, plain_loop(job, 3)[0])
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
