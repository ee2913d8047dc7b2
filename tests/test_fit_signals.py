"""SIGTERM and SIGINT: a run with a checkpoint saves itself and says that it can be resumed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from itertools import islice

import pytest
import torch
from tensordict import TensorDict

import purestep as ps
from _fit import batches, donating, kept, plain_loop, same
from _runs import STEPS, Run
from purestep.checkpoint import Manager, latest, read_manifest
from purestep.fit import Stopped, fit

SIGNALS = (signal.SIGINT, signal.SIGTERM)
fork = multiprocessing.get_context("fork")


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.fixture(autouse=True)
def the_handlers_are_put_back():
    before = handlers()
    yield
    assert handlers() == before
    assert before == [signal.default_int_handler, signal.SIG_DFL]


@pytest.fixture(scope="module")
def whole():
    run = Run()
    return run, run.fit()


def at(number, what):
    """A step that does something else at one of its calls."""

    def of(step):
        def other(state, batch):
            if int(state.calls) == number:
                what()
            return step(state, batch)

        return other

    return of


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("donates", [False, True])
def test_a_step_is_finished_and_the_run_is_saved(number, donates, job, tmp_path):
    step = at(3, lambda: signal.raise_signal(number))(donating(job.step) if donates else job.step)
    with pytest.raises(Stopped) as caught:
        fit(step, job.state(), batches(job), steps=9, progress=False, checkpoint=tmp_path)
    stopped = caught.value
    assert isinstance(stopped, SystemExit)
    assert (stopped.code, stopped.signal, str(stopped)) == (75, number, f"stopped by {number.name}")
    assert same(stopped.fit.state, plain_loop(job, 4)[0])
    assert same(kept(tmp_path, job.state(1)), plain_loop(job, 4)[0])
    assert stopped.__notes__ == [f"fit stopped after step 4: its state is `error.fit.state`, and in {str(tmp_path)!r}"]
    Manager(tmp_path).close()  # it was let go of


def in_a_step(run, number):
    return {"step": at(13, lambda: signal.raise_signal(number))(run.step)}


def in_the_data(run, number):
    class Interrupted:
        state_dict, load_state_dict = run.batches.state_dict, run.batches.load_state_dict

        def __iter__(self):
            for position, batch in enumerate(run.batches):
                if position == 13:  # the pipeline is one batch further than the run
                    signal.raise_signal(number)
                    raise AssertionError("not reached")
                yield batch

    return {"batches": Interrupted()}


def in_a_validation(run, number):
    def validate(state):
        if int(state.calls) == 12:
            signal.raise_signal(number)
            raise AssertionError("not reached")
        return run.validate(state)

    return {"validate": validate}


def in_a_logger(run, number):
    def log(at, scalars):
        if at == 15:
            signal.raise_signal(number)
        run.log(at, scalars)

    return {"loggers": [log]}


def in_an_observation(run, number):
    def observe(state, metrics):
        if int(state.calls) == 12:
            signal.raise_signal(number)
        return run.machine.observe(state, metrics)

    return {"observe": observe}


PLACES = {in_a_step: 14, in_the_data: 13, in_a_validation: 12, in_a_logger: 15, in_an_observation: 12}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_wherever_it_comes_the_resumed_run_is_the_unbroken_one(place, number, whole, tmp_path):
    first, second = Run(), Run()
    with pytest.raises(Stopped):
        first.fit(**place(first, number), checkpoint=tmp_path)
    assert read_manifest(latest(tmp_path)).calls == PLACES[place]
    result = second.fit(checkpoint=tmp_path, resume="auto")
    assert same(result.state, whole[1].state)
    assert first.seen | second.seen == whole[0].seen
    records = {number: {**first.records.get(number, {}), **second.records.get(number, {})} for number in range(99)}
    assert {number: records[number] for number in whole[0].records} == whole[0].records


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_save_under_way_is_finished(asynchronous, job, tmp_path):
    with Manager(tmp_path, every=2, asynchronous=asynchronous) as manager:
        write, written = manager._write, []

        def interrupted(number, what):
            if not written:
                os.kill(os.getpid(), signal.SIGTERM)  # heard by the main thread, whichever writes
            write(number, what)
            written.append(number)

        manager._write = interrupted
        with pytest.raises(Stopped):
            fit(job.step, job.state(), batches(job), steps=200, progress=False, checkpoint=manager)
        assert written[0] == 2
        assert same(kept(tmp_path, job.state(1)), plain_loop(job, written[-1])[0])


def test_in_the_last_validation_the_run_is_saved_already(job, tmp_path):
    def validate(state):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("not reached")

    with pytest.raises(Stopped):
        fit(job.step, job.state(), batches(job), steps=3, progress=False, checkpoint=tmp_path, validate=validate)
    result = fit(
        job.step,
        job.state(),
        batches(job, 3),
        steps=3,
        progress=False,
        checkpoint=tmp_path,
        resume="auto",
        validate=lambda state: {"loss": torch.tensor(1.0)},
    )
    assert result.validation == [{"step": 3, "loss": 1.0}]


def test_before_the_first_step_there_is_nothing_to_save(job, tmp_path):
    def stream():
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("not reached")
        yield

    with pytest.raises(Stopped) as caught:
        fit(job.step, job.state(), stream(), steps=3, progress=False, checkpoint=tmp_path)
    assert same(caught.value.fit.state, job.state())
    assert latest(tmp_path) is None


def test_batches_that_swallow_it_do_not_keep_the_run_going(job, tmp_path):
    def stream():
        for number, batch in enumerate(batches(job)):
            try:
                if number == 2:
                    signal.raise_signal(signal.SIGINT)
            except BaseException:
                pass
            yield batch

    with pytest.raises(Stopped) as caught:
        fit(job.step, job.state(), stream(), steps=9, progress=False, checkpoint=tmp_path)
    assert int(caught.value.fit.state.calls) == 3


def test_it_says_so_where_progress_is_shown(job, tmp_path, capsys):
    step = at(1, lambda: signal.raise_signal(signal.SIGTERM))(job.step)
    with pytest.raises(Stopped):
        fit(step, job.state(), batches(job), steps=9, checkpoint=tmp_path)
    assert capsys.readouterr().out == f"stopped by SIGTERM after step 2; resume from {str(tmp_path)!r}\n"


def test_the_error_of_a_step_is_not_hidden(job, tmp_path):
    def fails():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad") as caught:
        fit(at(2, fails)(job.step), job.state(), batches(job), steps=9, progress=False, checkpoint=tmp_path)
    assert "SIGTERM was heard as well" in caught.value.__notes__[0]
    assert same(kept(tmp_path, job.state(1)), plain_loop(job, 2)[0])


def test_a_stop_that_cannot_be_saved_does_not_say_that_it_was(job, tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("purestep.checkpoint._files.save_file", full)
    step = at(1, lambda: signal.raise_signal(signal.SIGTERM))(job.step)
    with pytest.raises(OSError, match="No space left") as caught:
        fit(step, job.state(), batches(job), steps=9, progress=False, checkpoint=tmp_path)
    assert same(caught.value.fit.state, plain_loop(job, 2)[0])
    assert "fit was stopped by SIGTERM after step 2: its state is `error.fit.state`" in caught.value.__notes__[0]
    assert os.listdir(tmp_path) == [".lock"]


# A second signal.


@pytest.mark.parametrize("numbers", [(2, 2), (2, 15), (15, 2), (15, 15)])
def test_a_second_signal_leaves_at_once_and_saves_nothing(numbers, job, tmp_path):
    def both():
        for number in numbers:
            signal.raise_signal(number)
        raise AssertionError("not reached")

    with Manager(tmp_path, every=2) as manager, pytest.raises(SystemExit) as caught:
        fit(at(3, both)(job.step), job.state(), batches(job), steps=9, progress=False, checkpoint=manager)
    assert not isinstance(caught.value, Stopped)
    assert caught.value.code == 128 + numbers[1]
    assert read_manifest(latest(tmp_path)).calls == 2
    Manager(tmp_path).close()


def test_a_second_signal_while_the_first_one_s_checkpoint_is_written(job, tmp_path):
    with Manager(tmp_path, every=2) as manager:
        write = manager._write

        def interrupted(number, what):
            if number == 4:
                signal.raise_signal(signal.SIGTERM)
            write(number, what)

        manager._write = interrupted
        step = at(3, lambda: signal.raise_signal(signal.SIGTERM))(job.step)
        with pytest.raises(SystemExit) as caught:
            fit(step, job.state(), batches(job), steps=9, progress=False, checkpoint=manager)
    assert caught.value.code == 143
    assert read_manifest(latest(tmp_path)).calls == 2


def test_a_second_signal_while_a_write_in_the_background_is_waited_for(job, tmp_path):
    held = threading.Event()
    manager = Manager(tmp_path, every=2, asynchronous=True)
    write = manager._write

    def slowly(number, what):
        write(number, what)
        if number == 4:
            for signalled in SIGNALS:
                os.kill(os.getpid(), signalled)  # the main thread waits for this write, to start the next
                time.sleep(0.2)
            assert held.wait(60)

    manager._write = slowly
    with pytest.raises(SystemExit) as caught:
        fit(job.step, job.state(), batches(job), steps=99, progress=False, checkpoint=manager)
    assert caught.value.code == 143
    assert manager.closed
    assert manager._writer.busy
    held.set()
    manager._writer.wait()
    assert read_manifest(latest(tmp_path)).calls == 4


# In processes of their own.


def in_a_process(target, *arguments):
    """Start a function in a process, and wait until it says that it is where it should be."""
    ready = fork.Event()
    process = fork.Process(target=target, args=(ready, *arguments))
    process.start()
    assert ready.wait(60)
    return process


def ended(process):
    process.join(60)
    assert process.exitcode is not None, "it does not end"
    return process.exitcode


class Endless:
    """A source whose fourth batch never comes."""

    def __len__(self):
        return 40

    def fetch(self, indices):
        if 12 in indices:
            time.sleep(600)
        return TensorDict({"x": torch.ones(len(indices), 4)}, [len(indices)])


def waits_for_data(ready, folder, method):
    data = ps.data.pipeline(Endless(), ps.data.sequential(40), batch_size=4, workers=1, prefetch=1, method=method)
    model, optimizer = torch.nn.Linear(4, 3), ps.sgd(0.1)
    plain = ps.train_step(model, lambda model, batch: ps.mean(model(batch["x"])), optimizer)

    def step(state, batch):
        if int(state.calls) == 2:  # the last one that there is a batch for
            ready.set()
        return plain(state, batch)

    fit(step, ps.init_state(model, optimizer, seed=0), data, steps=9, progress=False, checkpoint=folder)


@pytest.mark.parametrize("method", ["thread", "process"])
def test_a_batch_that_never_comes_is_not_waited_for(method, tmp_path):
    process = in_a_process(waits_for_data, tmp_path, method)
    process.join(0.2)  # by now it waits; if it does not yet, the step is finished first, which is as right
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 75
    assert read_manifest(latest(tmp_path)).calls == 3


def without_a_checkpoint(ready, job):
    def step(state, batch):
        ready.set()
        time.sleep(600)

    fit(step, job.state(), batches(job), steps=9, progress=False)


def test_without_a_checkpoint_sigterm_ends_the_process(job):
    process = in_a_process(without_a_checkpoint, job)
    process.terminate()
    assert ended(process) == -signal.SIGTERM


def test_a_process_that_is_forked_meanwhile_is_ended_by_sigterm(job, tmp_path):
    codes = []

    def validate(state):
        process = in_a_process(_sleeps)
        process.terminate()
        codes.append(ended(process))
        return {"loss": torch.tensor(1.0)}

    fit(job.step, job.state(), batches(job), steps=2, progress=False, checkpoint=tmp_path, validate=validate)
    assert codes == [-signal.SIGTERM]


def _sleeps(ready):
    assert handlers() == [signal.default_int_handler, signal.SIG_DFL]
    ready.set()
    time.sleep(600)


# Handlers of others.


@pytest.mark.parametrize("number", SIGNALS)
def test_a_handler_of_the_program_s_own_is_left_alone(number, job, tmp_path):
    heard = []
    before = signal.signal(number, lambda *_: heard.append(1))
    try:
        step = at(1, lambda: signal.raise_signal(number))(job.step)
        fit(step, job.state(), batches(job), steps=3, progress=False, checkpoint=tmp_path)
    finally:
        signal.signal(number, before)
    assert heard == [1]


def test_a_signal_that_is_ignored_stays_ignored(job, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        step = at(1, lambda: signal.raise_signal(signal.SIGINT))(job.step)
        fit(step, job.state(), batches(job), steps=3, progress=False, checkpoint=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_sets_no_handler(job, tmp_path):
    found = []

    def step(state, batch):
        found.append(handlers())
        return job.step(state, batch)

    def run():
        fit(step, job.state(), list(islice(batches(job), 2)), steps=2, progress=False, checkpoint=tmp_path)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [[signal.default_int_handler, signal.SIG_DFL]] * 2


def test_a_run_in_a_run(job, tmp_path):
    """The inner one finds a handler that is not Python's own, and leaves it."""

    def validate(state):
        inner = fit(
            job.step, job.state(), batches(job), steps=1, progress=False, checkpoint=tmp_path / str(int(state.calls))
        )
        return {"loss": inner.state.params["0.weight"].sum()}

    step = at(2, lambda: signal.raise_signal(signal.SIGTERM))(job.step)
    with pytest.raises(Stopped):
        fit(
            step,
            job.state(),
            batches(job),
            steps=STEPS,
            progress=False,
            checkpoint=tmp_path / "outer",
            validate=validate,
            validate_every=1,
        )
