"""A run that is taken up again has the bits of the unbroken one: state, batches, averages, validations, best so far."""

from __future__ import annotations

import os
from itertools import count, islice
from pathlib import Path

import pytest
import torch

import purestep as ps
from _fit import batches as ragged
from _fit import same
from _runs import LOG_EVERY, STEPS, Run, pipeline
from purestep import laws
from purestep.checkpoint import CheckpointLockedError, Manager, latest, load, read_manifest, save
from purestep.fit import fit


@pytest.fixture(scope="module")
def whole():
    run = Run()
    return run, run.fit()


def check(halves, result, whole):
    """The pieces of a run together saw, and became, what the unbroken one did."""
    right, unbroken = whole
    assert same(result.state, unbroken.state)
    seen, records = {}, {}
    for half in halves:
        seen |= half.seen
        for number, scalars in half.records.items():
            records.setdefault(number, {}).update(scalars)
    assert seen == right.seen
    # (A run that ends in the middle of a window tells of that much of it.)
    logged = {n: {name: records[n].get(name) for name in scalars} for n, scalars in right.records.items()}
    assert logged == right.records


class AwayError(Exception):
    """What interrupts a run here."""


def in_a_step(run, at):
    def step(state, batch):
        if int(state.calls) == at:
            raise AwayError
        return run.step(state, batch)

    return {"step": step}


def in_the_data(run, at):
    class Fails:
        state_dict, load_state_dict = run.batches.state_dict, run.batches.load_state_dict

        def __iter__(self):
            for number, batch in enumerate(run.batches):
                if number == at:
                    raise AwayError
                yield batch

    return {"batches": Fails()}


def in_a_logger(run, at):
    def logger(number, scalars):
        if number >= at:
            raise AwayError

    return {"loggers": [run.log, logger]}


def in_a_validation(run, at):
    def validate(state):
        if int(state.calls) >= at:
            raise AwayError
        return run.validate(state)

    return {"validate": validate}


def at_the_end(run, at):
    return {"steps": at}


WAYS = (in_a_step, in_the_data, in_a_logger, in_a_validation, at_the_end)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("at", [1, 8, 13, 20])
def test_it_has_the_bits_of_the_unbroken_run(way, at, whole, tmp_path):
    first, second = Run(), Run()
    try:
        first.fit(**way(first, at), checkpoint=tmp_path)
    except AwayError:
        pass
    else:
        assert way is at_the_end
    result = second.fit(checkpoint=tmp_path, resume="auto")
    check([first, second], result, whole)
    assert min(second.seen) == max(first.seen) + 1


def test_stopped_at_every_step_in_turn(tmp_path):
    right, halves = Run(full=True), []
    whole = right, right.fit()
    for number in range(1, STEPS + 1):
        halves.append(Run(full=True))
        result = halves[-1].fit(number, checkpoint=tmp_path, resume="auto")
        assert list(halves[-1].seen) == [number]
    check(halves, result, whole)


@pytest.mark.compiler
def test_compiled_and_donating(tmp_path):
    whole, first, second = Run(), Run(), Run()
    step = ps.compile(whole.plain_step, donate=True)
    for run in (whole, first, second):  # of one compiled step, for each compilation takes seconds
        run.step_of_run, run.batches = step, pipeline(run.data, drop_last=True)
    unbroken = whole.fit()
    with pytest.raises(AwayError):
        first.fit(**in_a_logger(first, 8), checkpoint=tmp_path)
    check([first, second], second.fit(checkpoint=tmp_path, resume="auto"), (whole, unbroken))
    laws.check_resumable(step, whole.state(), pipeline(whole.data, drop_last=True), at=3, more=4)


def test_in_the_background(whole, tmp_path):
    first, second = Run(), Run()
    with Manager(tmp_path, every=3, asynchronous=True) as manager:
        with pytest.raises(AwayError):
            first.fit(**in_a_step(first, 13), checkpoint=manager)
        assert read_manifest(manager.latest()).calls == 13
        result = second.fit(checkpoint=manager, resume="auto")
    check([first, second], result, whole)


def test_from_an_older_checkpoint_by_its_path(whole, tmp_path):
    first, second = Run(), Run()
    with Manager(tmp_path / "a", every=3, keep_last=None) as manager:
        first.fit(13, checkpoint=manager)
    assert sorted(name for name in os.listdir(tmp_path / "a") if name[0] != ".") == [
        f"step-{number:09d}" for number in (3, 6, 9, 12, 13)
    ]
    result = second.fit(resume=tmp_path / "a" / "step-000000006", checkpoint=tmp_path / "b")
    assert list(second.seen) == list(range(7, STEPS + 1))
    check([first, second], result, whole)
    third = Run()
    with pytest.raises(ValueError, match=r"no checkpoint of a later step.* at step 6: '.*step-000000013'"):
        third.fit(resume=str(tmp_path / "a" / "step-000000006"), checkpoint=tmp_path / "a")
    assert third.seen == {}


def test_from_the_newest_of_a_folder_without_saving_anything(whole, tmp_path):
    first, second = Run(), Run()
    first.fit(9, checkpoint=tmp_path)
    check([first, second], second.fit(resume=tmp_path), whole)
    assert latest(tmp_path).name == "step-000000009"


# How many steps a run has.


def test_the_same_call_again_finishes_the_run_and_once_more_does_nothing(whole, tmp_path):
    for steps in (9, STEPS):
        Run().fit(steps, checkpoint=tmp_path, resume="auto")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    run = Run()
    result = run.fit(checkpoint=tmp_path, resume="auto")
    assert run.seen == {}
    assert same(result.state, whole[1].state)
    assert result.history == []
    assert [entry["step"] for entry in result.validation] == [STEPS]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"} == before


def test_a_run_that_is_longer_than_it_is_to_be_is_complete(tmp_path):
    Run().fit(9, checkpoint=tmp_path)
    run = Run()
    assert int(run.fit(5, checkpoint=tmp_path, resume="auto").state.calls) == 9
    assert run.seen == {}


def test_steps_count_from_the_state_that_is_handed_in(tmp_path):
    run = Run()
    begun = run.fit(6).state
    run.fit(4, state=begun, checkpoint=tmp_path)
    again = Run()
    result = again.fit(7, state=begun, checkpoint=tmp_path, resume="auto")
    assert list(again.seen) == [11, 12, 13]
    assert int(result.state.calls) == 13


def test_a_run_whose_batches_have_come_to_their_end_is_complete(tmp_path):
    def once(run):
        source = ps.data.from_tensors(run.data)
        return ps.data.pipeline(source, ps.data.sequential(23), batch_size=5, epochs=2)

    first, second, third = Run(), Run(), Run()
    assert int(first.fit(100, batches=once(first), checkpoint=tmp_path).state.calls) == 10
    result = second.fit(100, batches=once(second), checkpoint=tmp_path, resume="auto")
    assert second.seen == {}
    assert int(result.state.calls) == 10
    longer = ps.data.pipeline(
        ps.data.from_tensors(third.data), ps.data.sequential(23), batch_size=5, epochs=3
    )  # there is more now
    third.fit(100, batches=longer, checkpoint=tmp_path, resume="auto")
    assert list(third.seen) == [11, 12, 13, 14, 15]
    assert third.seen[11] == [0, 1, 2, 3, 4]


def test_auto_begins_where_there_is_nothing(whole, tmp_path):
    run = Run()
    result = run.fit(checkpoint=tmp_path / "new", resume="auto")
    check([run], result, whole)


def test_a_new_run_does_not_mix_with_an_older_one(tmp_path):
    Run().fit(9, checkpoint=tmp_path)
    run = Run()
    with pytest.raises(ValueError, match=r"no checkpoint of a later step.*at step 0: '.*step-000000009' is there"):
        run.fit(5, checkpoint=tmp_path)
    assert run.seen == {}
    assert latest(tmp_path).name == "step-000000009"


def test_a_state_that_is_further_than_the_checkpoint(tmp_path):
    run = Run()
    Run().fit(3, checkpoint=tmp_path)
    state = run.fit(5).state
    with pytest.raises(ValueError, match=r"resume must be a checkpoint of this run, which begins with .* step 5, got"):
        run.fit(5, state=state, checkpoint=tmp_path, resume="auto")


def test_a_damaged_one_is_passed_over(whole, tmp_path):
    first, second = Run(), Run()
    with Manager(tmp_path, every=4) as manager:
        first.fit(12, checkpoint=manager)
    data = next((tmp_path / "step-000000012").glob("*.safetensors"))
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="step-000000012"):
        result = second.fit(checkpoint=tmp_path, resume="auto")
    assert list(second.seen) == list(range(9, STEPS + 1))
    check([first, second], result, whole)


# The batches.


def test_a_list_goes_on_after_the_batches_that_were_used(job, tmp_path):
    stream = list(islice(ragged(job), 12))
    right = fit(job.step, job.state(), stream, steps=12, progress=False)
    fit(job.step, job.state(), stream, steps=5, progress=False, checkpoint=tmp_path)
    assert read_manifest(latest(tmp_path)).data == {"batches": 5}
    result = fit(job.step, job.state(), stream, steps=100, progress=False, checkpoint=tmp_path, resume="auto")
    assert same(result.state, right.state)
    result = fit(job.step, job.state(), stream, steps=100, progress=False, checkpoint=tmp_path, resume="auto")
    assert same(result.state, right.state)
    with pytest.raises(ValueError, match=r"batches must be the list of the run .* used 12 of them, got one of 3"):
        fit(job.step, job.state(), stream[:3], steps=100, progress=False, checkpoint=tmp_path, resume="auto")


def test_a_generator_goes_on_with_what_it_yields_next(job, tmp_path):
    right = fit(job.step, job.state(), ragged(job), steps=9, progress=False)
    fit(job.step, job.state(), ragged(job), steps=5, progress=False, checkpoint=tmp_path)
    result = fit(job.step, job.state(), ragged(job, 5), steps=9, progress=False, checkpoint=tmp_path, resume="auto")
    assert same(result.state, right.state)
    with pytest.raises(ValueError, match="batches must yield at least one batch, got none from a tuple_iterator"):
        fit(job.step, job.state(), iter(()), steps=20, progress=False, checkpoint=tmp_path, resume="auto")


def test_a_loader_goes_on(job, tmp_path):
    whole = job.batch(length=20)
    rows = [{"x": whole["x"][i], "y": whole["y"][i]} for i in range(20)]

    def batches():
        return ps.data.loader(rows, batch_size=4, shuffle=True)

    def run(steps, **options):
        return fit(job.step, job.state(), batches(), steps=steps, progress=False, **options).state

    right = run(5)
    run(3, checkpoint=tmp_path)
    assert same(run(5, checkpoint=tmp_path, resume="auto"), right)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (
            lambda run: iter([1]),
            TypeError,
            r"batches must be able to go on .* ps\.data\.pipeline .*; got a list_iterat",
        ),
        (lambda run: [1] * 9, ValueError, "batches must be those of the run that is resumed, whose place is"),
        (
            lambda run: ps.data.pipeline(ps.data.from_tensors(run.data), ps.data.sequential(23), batch_size=5),
            ValueError,
            "order",
        ),
    ],
)
def test_batches_that_are_not_those_of_the_run(batches, error, message, tmp_path):
    run = Run()
    run.fit(3, checkpoint=tmp_path)
    with pytest.raises(error, match=message):
        run.fit(batches=batches(run), checkpoint=tmp_path, resume="auto")
    assert latest(tmp_path).name == "step-000000003"


def test_a_checkpoint_without_a_place(tmp_path):
    run = Run()
    save(tmp_path / "mine", run.fit(6).state)
    with pytest.raises(ValueError, match=r"resume must be a checkpoint with the place of the batches, got '.*mine'"):
        run.fit(resume=tmp_path / "mine")
    save(tmp_path / "mine", run.state(), data=run.batches, extra={"fit": "mine"})
    assert int(run.fit(3, resume=tmp_path / "mine").state.calls) == 3


def test_a_place_that_json_cannot_hold_is_refused_before_the_first_step(job, tmp_path):
    class Batches(list):
        def state_dict(self):
            return {"place": (1, 2)}

        def load_state_dict(self, state): ...

    class Stateful(Batches):
        __iter__ = list.__iter__

    stateful = type("Stateful", (), {**vars(Batches), "__iter__": lambda self: iter([job.batch()])})()
    with pytest.raises(TypeError, match=r"batches\.state_dict\(\)\['place'\] must be made of dicts"):
        fit(job.step, job.state(), stateful, steps=2, progress=False, checkpoint=tmp_path)


# What is saved.


def test_the_optimizer_is_that_of_the_step(job, tmp_path):
    fit(job.step, job.state(), ragged(job), steps=2, progress=False, checkpoint=tmp_path)
    manifest = read_manifest(latest(tmp_path))
    assert manifest.optimizer["name"] == "chain"
    assert ps.compile(job.step).optimizer is job.step.optimizer is job.optimizer
    assert ps.sam_step(job.model, job.objective, job.optimizer, rho=0.1).optimizer is job.optimizer
    run = Run()
    run.fit(2, checkpoint=tmp_path / "other")
    assert read_manifest(latest(tmp_path / "other")).optimizer is None  # of a function of one's own


def test_every_so_many_steps(tmp_path):
    saves = []
    with Manager(tmp_path, every=4, keep_last=2, keep_every=8) as manager:
        plain = manager.save

        def noted(state, **options):
            saves.append((int(state.calls), options["scores"]))
            return plain(state, **options)

        manager.save = noted
        Run().fit(18, checkpoint=manager)
    assert [number for number, _ in saves] == [4, 8, 12, 16, 18]
    assert all(list(scores) == ["val/loss"] for number, scores in saves if number % 4 == 0)
    assert saves[-1] == (18, None)  # before the last validation, which may take long
    assert sorted(name for name in os.listdir(tmp_path) if name[0] != ".") == [
        f"step-{number:09d}" for number in (8, 16, 18)
    ]


def test_the_best_so_far_outlives_the_process(tmp_path):
    options = {"every": 4, "keep_last": 1, "keep_best": 1, "best": ("val/loss", "min")}
    losses = {4: 3.0, 8: 1.0, 12: 2.0, 14: 5.0, 16: 4.0, 20: 6.0, 24: 7.0}

    def run_to(steps):
        run = Run()
        with Manager(tmp_path, **options) as manager:
            run.fit(
                steps,
                checkpoint=manager,
                resume="auto",
                observe=None,
                validate=lambda state: {"loss": torch.tensor(losses[int(state.calls)])},
            )
            return manager.best().name

    assert [run_to(steps) for steps in (4, 14, STEPS)] == ["step-000000004", "step-000000008", "step-000000008"]
    assert read_manifest(tmp_path / f"step-{STEPS:09d}").scores == {"val/loss": 7.0}  # the last one is judged too


def test_a_last_step_that_is_saved_anyway_is_judged_all_the_same(job, tmp_path):
    with Manager(tmp_path, every=2, best=("val/loss", "min")) as manager:
        fit(
            job.step,
            job.state(),
            list(islice(ragged(job), 4)),
            steps=9,
            progress=False,
            checkpoint=manager,
            validate=lambda state: {"loss": torch.tensor(1.5)},
        )
        assert manager.best().name == "step-000000004"
    assert read_manifest(latest(tmp_path)).scores == {"val/loss": 1.5}


def test_metrics_of_all_kinds_go_on_in_the_middle_of_a_window(tmp_path):
    """Means of one and two terms, a confusion matrix, a bare tensor, and a metric that keeps a plain number."""

    def step(state, batch):
        x = batch["x"]
        after = state.replace(step=state.step + 1, calls=state.calls + 1)
        return after, {
            "mean": ps.mean(x),
            "two": ps.mean(x) + ps.mean(x.square()),
            "matrix": ps.metrics.accuracy(x[:, None] * torch.tensor([-1.0, 1.0]), (x > 0.1).long()),
            "rate": x.sum(),
        }

    stream = [{"x": torch.randn(3 + n % 3, generator=torch.Generator().manual_seed(n))} for n in range(20)]
    model = torch.nn.Linear(1, 1)

    def run(steps, **options):
        state = ps.init_state(model, ps.sgd(0.1), seed=0)
        return fit(step, state, stream, steps=steps, log_every=10, progress=False, **options).history

    right = run(20)
    for number in (3, 4, 17):
        run(number, checkpoint=tmp_path, resume="auto")
    assert run(20, checkpoint=tmp_path, resume="auto") == right[1:]


class Summed:
    """A metric that nobody has told torch about."""

    def __init__(self, total):
        self.total = total

    def merge(self, other):
        return Summed(self.total + other.total)

    def value(self):
        return torch.tensor(self.total)


def test_a_metric_that_cannot_be_kept_is_named(job, tmp_path):
    def step(state, batch):
        return job.step(state, batch)[0], {"own": Summed(1.0)}

    with pytest.raises(TypeError, match=r"metric 'own' must be made of tensors and numbers to be kept .*register"):
        fit(step, job.state(), ragged(job), steps=2, progress=False, checkpoint=tmp_path)
    fit(step, job.state(), ragged(job), steps=2, log_every=2, progress=False, checkpoint=tmp_path)  # no open window


def test_another_step_s_metrics_do_not_fit_an_open_window(job, tmp_path):
    fit(job.step, job.state(), ragged(job), steps=2, progress=False, checkpoint=tmp_path)

    def other(state, batch):
        return job.step(state, batch)[0], {"other": ps.mean(batch["x"])}

    with pytest.raises(ValueError, match=r"metrics must have the same names .* got 'loss', .* and then 'other'"):
        fit(other, job.state(), ragged(job), steps=4, progress=False, checkpoint=tmp_path, resume="auto")


def test_a_step_that_does_not_count_itself_is_refused(job, tmp_path):
    def step(state, batch):
        return job.step(state, batch)[0].replace(calls=state.calls), {}

    with pytest.raises(ValueError, match=r"step must count itself for a checkpoint, .* calls 1 here, got 0"):
        fit(step, job.state(), ragged(job), steps=2, progress=False, checkpoint=tmp_path)


# Who saves, and errors of saving.


def test_two_runs_on_one_folder(tmp_path):
    run = Run()
    with Manager(tmp_path), pytest.raises(CheckpointLockedError, match="being written by"):
        run.fit(3, checkpoint=tmp_path)
    assert run.seen == {}
    run.fit(3, checkpoint=tmp_path)
    Manager(tmp_path).close()  # let go of, also where it fails
    with pytest.raises(AwayError):
        run.fit(**in_a_step(run, 1), checkpoint=tmp_path / "other")
    Manager(tmp_path / "other").close()


def test_a_closed_manager_is_refused_before_the_first_step(tmp_path):
    manager = Manager(tmp_path)
    manager.close()
    run = Run()
    with pytest.raises(ValueError, match="is closed: make another one"):
        run.fit(3, checkpoint=manager)
    assert run.seen == {}


def test_a_manager_that_is_given_stays_open(tmp_path):
    with Manager(tmp_path) as manager:
        Run().fit(3, checkpoint=manager)
        Run().fit(6, checkpoint=manager, resume="auto")
        assert manager.latest().name == "step-000000006"


def test_a_write_that_fails_in_the_background_is_told_at_a_step(tmp_path):
    run = Run()
    with Manager(tmp_path, every=2, asynchronous=True) as manager:
        write, calls = manager._write, count(1)

        def fails(number, what):
            if next(calls) == 2:
                (tmp_path / f"step-{number:09d}").write_text("in the way")
            write(number, what)

        manager._write = fails

        def step(state, batch):
            if manager._writer._thread is not None:
                manager._writer._thread.join()
            return run.step(state, batch)

        with pytest.raises(ValueError, match=r"got the file .*step-000000004") as caught:
            run.fit(step=step, checkpoint=manager)
    assert int(caught.value.fit.state.calls) in (4, 5)
    assert "step 4 was not written" in " ".join(caught.value.__notes__)
    newest = latest(tmp_path)
    assert newest.name in ("step-000000002", "step-000000005")


def test_the_state_in_a_checkpoint_is_the_state(whole, tmp_path):
    run = Run()
    result = run.fit(checkpoint=tmp_path)
    assert same(load(latest(tmp_path), like=run.state()), result.state)
    assert Path(latest(tmp_path)).name == f"step-{STEPS:09d}"
    assert STEPS % LOG_EVERY  # a window was open
