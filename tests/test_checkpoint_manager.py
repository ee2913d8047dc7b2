"""The manager: what is kept, who may write, and what is written in the background."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import purestep as ps
from _fit import same
from purestep.checkpoint import CheckpointLockedError, Manager, latest, load, load_extra, load_metrics, read_manifest
from purestep.checkpoint._background import HostCopy, Writer

MODEL, OPTIMIZER = nn.Linear(3, 2), ps.adamw(0.1)


def state_at(number: int) -> ps.TrainState:
    state = ps.init_state(MODEL, OPTIMIZER, seed=number)
    return state.replace(calls=state.calls + number, step=state.step + number)


def there(folder: Path) -> list[int]:
    return sorted(int(name.removeprefix("step-")) for name in os.listdir(folder) if name.startswith("step-"))


@pytest.fixture(params=[False, True], ids=["at once", "in the background"])
def asynchronous(request) -> bool:
    return request.param


def test_what_is_saved_is_found_again(tmp_path, asynchronous):
    with Manager(tmp_path / "runs" / "one", asynchronous=asynchronous) as manager:
        assert manager.latest() is None
        path = manager.save(
            state_at(7),
            data={"epoch": 1},
            optimizer=OPTIMIZER,
            metrics={"train": {"loss": torch.tensor(2.0)}},
            extra=[1],
            scores={"val/loss": 3},
        )
        assert manager.latest() == path == tmp_path / "runs" / "one" / "step-000000007"
        assert same(load(path, like=state_at(0)), state_at(7))
    manifest = read_manifest(path)
    assert (manifest.calls, manifest.data, manifest.scores) == (7, {"epoch": 1}, {"val/loss": 3.0})
    assert manifest.optimizer["name"] == "adamw"
    assert load_extra(path) == [1]
    assert load_metrics(path) == {"train/loss": torch.tensor(2.0)}


KEPT = {
    "by default the last three": ({}, [8, 9, 10]),
    "all": ({"keep_last": None}, list(range(1, 11))),
    "the last": ({"keep_last": 1}, [10]),
    "multiples": ({"keep_last": 1, "keep_every": 4}, [4, 8, 10]),
    "the lowest": ({"keep_last": 1, "keep_best": 2, "best": ("loss", "min")}, [3, 6, 10]),
    "the highest": ({"keep_last": 1, "keep_best": 2, "best": ("loss", "max")}, [1, 2, 10]),
    "all of it": ({"keep_last": 2, "keep_every": 5, "keep_best": 1, "best": ("loss", "min")}, [5, 6, 9, 10]),
    "nobody has the score": ({"keep_last": 1, "keep_best": 2, "best": ("accuracy", "max")}, [10]),
}
LOSSES = [9.0, 8.0, 2.0, float("nan"), 3.0, 2.0, 4.0, 5.0, 6.0, None]


@pytest.mark.parametrize("case", KEPT)
def test_what_is_kept(case, tmp_path, asynchronous):
    options, right = KEPT[case]
    half = Manager(tmp_path, **options, asynchronous=asynchronous)
    for number, loss in enumerate(LOSSES, start=1):
        half.save(state_at(number), scores=None if loss is None else {"loss": loss})
        if number == 5:  # a new process finds what the one before kept, and its scores
            half.close()
            half = Manager(tmp_path, **options, asynchronous=asynchronous)
    half.close()
    assert there(tmp_path) == right
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".removed")]


def test_the_best_is_the_newest_of_equals(tmp_path):
    with Manager(tmp_path, best=("loss", "min")) as manager:
        assert manager.best() is None
        for number, loss in ((1, 2.0), (2, 1.0), (3, 1.0), (4, float("nan"))):
            manager.save(state_at(number), scores={"loss": loss})
        assert manager.best() == tmp_path / "step-000000003"


def test_a_save_at_the_same_step_replaces(tmp_path, asynchronous):
    with Manager(tmp_path, asynchronous=asynchronous) as manager:
        manager.save(state_at(5), extra=1)
        manager.save(state_at(5), extra=2)
    assert load_extra(latest(tmp_path)) == 2


def test_a_later_step_stands_in_the_way(tmp_path):
    with Manager(tmp_path) as manager:
        manager.save(state_at(5))
        with pytest.raises(ValueError, match=r"no checkpoint of a later step.* at step 3: '.*step-000000005' is there"):
            manager.save(state_at(3))
    assert there(tmp_path) == [5]


def test_a_damaged_one_does_not_stand_in_the_way_and_is_not_counted(tmp_path):
    with Manager(tmp_path, keep_last=2) as manager:
        for number in (1, 2, 3):
            manager.save(state_at(number))
    data = next((tmp_path / "step-000000003").glob("*.safetensors"))
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    with Manager(tmp_path, keep_last=2) as manager:
        with pytest.warns(UserWarning, match=r"step-000000003/.*damaged"):
            assert manager.latest() == tmp_path / "step-000000002"
        manager.save(state_at(2), extra="again")
        assert there(tmp_path) == [2, 3]
        manager.save(state_at(3))
        assert manager.latest() == tmp_path / "step-000000003"


def test_the_leavings_of_a_killed_process_are_cleared_away_and_nothing_else(tmp_path):
    with Manager(tmp_path) as manager:
        manager.save(state_at(1))
    (tmp_path / ".removed-step-000000000-ab").mkdir()
    (tmp_path / ".new-step-000000002-ab").mkdir()
    (tmp_path / ".new-step-000000002-ab" / ".tmp-1-2").write_bytes(b"half")
    (tmp_path / "step-000000003").mkdir()
    (tmp_path / "step-000000003" / "notes.txt").write_text("mine")
    (tmp_path / "step-000000004").mkdir()
    (tmp_path / "step-000000004" / "manifest.json").write_text("{")
    (tmp_path / "step-7").mkdir()
    (tmp_path / "log.jsonl").write_text("")
    os.symlink(tmp_path / "step-000000001", tmp_path / "step-000000009")
    Manager(tmp_path, keep_last=1).close()
    assert sorted(os.listdir(tmp_path)) == [
        ".lock",
        "log.jsonl",
        "step-000000001",
        "step-000000003",
        "step-000000004",
        "step-000000009",
        "step-7",
    ]


def test_an_ensemble_is_numbered_by_its_furthest_member(tmp_path):
    with Manager(tmp_path) as manager:
        states = torch.stack([state_at(2), state_at(4)])
        assert manager.save(states).name == "step-000000004"


# Who may write.


def test_a_second_manager_is_refused_and_gets_in_once_the_first_is_closed(tmp_path):
    with Manager(tmp_path) as first:
        with pytest.raises(CheckpointLockedError, match=f"process {os.getpid()} on"):
            Manager(tmp_path)
        first.save(state_at(1))
    with Manager(tmp_path) as second:
        assert second.latest() is not None


def test_one_thread_may_close_what_another_opened(tmp_path):
    manager = Manager(tmp_path)
    thread = threading.Thread(target=manager.close)
    thread.start()
    thread.join()
    Manager(tmp_path).close()


def _holds(folder, ready, go):
    with Manager(folder):
        ready.set()
        go.wait(60)


def test_another_process_is_refused_and_a_dead_one_holds_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    process = context.Process(target=_holds, args=(tmp_path, ready, go))
    process.start()
    assert ready.wait(60)
    with pytest.raises(CheckpointLockedError, match=f"process {process.pid} on"):
        Manager(tmp_path)
    process.kill()
    process.join()
    Manager(tmp_path).close()


def _sleeps(go):
    go.wait(60)


def test_a_child_that_outlives_it_does_not_hold_the_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    go = context.Event()
    with Manager(tmp_path):
        child = context.Process(target=_sleeps, args=(go,))
        child.start()
    Manager(tmp_path).close()
    go.set()
    child.join()


def test_a_closed_manager_saves_nothing(tmp_path):
    manager = Manager(tmp_path)
    manager.close()
    manager.close()
    assert "closed" in repr(manager)
    with pytest.raises(ValueError, match=r"the manager of '.*' is closed: make another one"):
        manager.save(state_at(1))


# In the background.


def test_a_copy_is_written_and_not_what_becomes_of_the_state(tmp_path):
    state, place, sums = state_at(3), {"epoch": 1, "seen": [1]}, torch.tensor([1.0])
    before = state.clone()
    with Manager(tmp_path, asynchronous=True) as manager:
        held = threading.Event()
        _hold(manager, held)
        manager.save(state, data=place, metrics={"sums": sums})
        for leaf in (*state.params.values(), sums):
            leaf.fill_(9.0)
        place["seen"].append(2)
        held.set()
    path = latest(tmp_path)
    assert same(load(path, like=state), before)
    assert read_manifest(path).data == {"epoch": 1, "seen": [1]}
    assert load_metrics(path) == {"sums": torch.tensor([1.0])}


def _hold(manager: Manager, held: threading.Event) -> None:
    """Have the next writes wait."""
    write = manager._write

    def waits(number, what):
        assert held.wait(60)
        write(number, what)

    manager._write = waits


def test_the_memory_of_a_copy_is_used_again():
    copy = HostCopy()
    for value in (1.0, 2.0):
        copy.take({"a": torch.full((3,), value), "b": torch.full((2, 2), value).t()})
        taken = copy.ready()
        assert (taken["a"] == value).all()
        if value == 1.0:
            first = taken["a"].data_ptr()
    assert taken["a"].data_ptr() == first
    copy.take({"a": torch.zeros(5)})
    assert set(copy.ready()) == {"a"}
    assert copy.ready()["a"].shape == (5,)


def test_a_copy_of_all_dtypes_and_shapes():
    dtypes = (torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool, torch.int8, torch.uint16)
    tensors = {str(dtype): torch.tensor([0, 1, 1]).to(dtype) for dtype in dtypes}
    tensors |= {
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(2.0),
        "strided": torch.arange(12.0).view(3, 4).t()[1:],
    }
    tensors["expanded"] = torch.ones(1).expand(4)
    tensors["conjugated"] = torch.tensor([1j, 2]).conj()
    copy = HostCopy()
    copy.take(tensors)
    for name, taken in copy.ready().items():
        assert taken.is_contiguous()
        assert torch.equal(
            taken.view(torch.uint8) if "8" in name else taken,
            tensors[name].view(torch.uint8) if "8" in name else tensors[name],
        )


def test_one_that_lies_there_under_another_name_counts_too(tmp_path):
    with Manager(tmp_path) as manager:
        for number in (1, 2):
            manager.save(state_at(number))
        (tmp_path / "step-000000002").rename(tmp_path / "kept by hand")
        assert manager.latest() == tmp_path / "kept by hand"
        manager.save(state_at(3))
    assert there(tmp_path) == [1, 3]


@pytest.mark.parametrize("told_by", ["save", "wait", "close", "check"])
def test_a_write_that_failed_is_told_once_and_the_last_good_one_stays(told_by, tmp_path):
    manager = Manager(tmp_path, asynchronous=True)
    manager.save(state_at(1))
    manager.wait()
    (tmp_path / "step-000000002").write_text("a file where the folder goes")
    manager.save(state_at(2))
    manager._writer._thread.join()
    with pytest.raises(Exception, match="step-000000002") as caught:
        getattr(manager, told_by)(*([state_at(3)] if told_by == "save" else []))
    assert "the checkpoint of step 2 was not written" in "".join([str(caught.value), *caught.value.__notes__])
    manager.close()
    assert latest(tmp_path) == tmp_path / "step-000000001"


def test_a_full_disk_is_an_error_that_names_the_path(tmp_path, monkeypatch, asynchronous):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    manager = Manager(tmp_path, asynchronous=asynchronous)
    manager.save(state_at(1))
    manager.wait()
    monkeypatch.setattr("purestep.checkpoint._files.save_file", full)

    def save():
        manager.save(state_at(2))
        manager.wait()

    with pytest.raises(OSError, match=r"No space left.*checkpoint of step 2 was not written.*step-000000002") as caught:
        save()
    assert caught.value.errno == 28
    manager.close()
    assert sorted(os.listdir(tmp_path)) == [".lock", "step-000000001"]


def test_what_cannot_be_kept_is_refused_at_the_save_itself(tmp_path, asynchronous):
    with Manager(tmp_path, asynchronous=asynchronous) as manager:
        with pytest.raises(TypeError, match="extra must be made of dicts"):
            manager.save(state_at(1), extra={1: 2})
        with pytest.raises(TypeError, match="state must be a TrainState"):
            manager.save({"params": 1})
    assert os.listdir(tmp_path) == [".lock"]


def test_one_write_at_a_time(tmp_path):
    with Manager(tmp_path, asynchronous=True, keep_last=None) as manager:
        running = []
        write = manager._write

        def noted(number, what):
            running.append(number)
            assert len(running) == 1
            write(number, what)
            running.remove(number)

        manager._write = noted
        for number in range(1, 6):
            manager.save(state_at(number))
    assert there(tmp_path) == [1, 2, 3, 4, 5]
    assert not [thread for thread in threading.enumerate() if thread.name == "purestep-checkpoint"]


def test_an_error_in_the_block_is_not_hidden_by_a_write_that_fails(tmp_path):
    (tmp_path / "step-000000002").write_text("a file where the folder goes")

    def fails():
        with Manager(tmp_path, asynchronous=True) as manager:
            manager.save(state_at(2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        fails()
    assert "step-000000002" in caught.value.__notes__[0]
    Manager(tmp_path).close()


def test_a_reader_finds_each_whole_or_not_at_all(tmp_path, asynchronous):
    """While one thread saves and deletes, another loads whatever is there, again and again."""
    stop, seen, failed, like = threading.Event(), set(), [], state_at(0)

    def read():
        while not stop.is_set() or not seen:
            for name in os.listdir(tmp_path):
                if name.startswith("step-"):
                    try:
                        found = load(tmp_path / name, like=like)
                    except Exception as error:
                        if (tmp_path / name).exists():
                            failed.append(error)
                        continue
                    seen.add(same(found, state_at(int(found.calls))))

    reader = threading.Thread(target=read)
    with Manager(tmp_path, keep_last=1, asynchronous=asynchronous) as manager:
        reader.start()
        for number in range(1, 30):
            manager.save(state_at(number))
    stop.set()
    reader.join()
    assert not failed
    assert seen == {True}


def test_a_writer_that_is_left_lets_go_when_it_ends(tmp_path):
    manager, held = Manager(tmp_path, asynchronous=True), threading.Event()
    _hold(manager, held)
    manager.save(state_at(1))
    manager.abandon(130)
    manager.close()  # at once
    with pytest.raises(ValueError, match="is closed"):
        manager.save(state_at(2))
    with pytest.raises(CheckpointLockedError):
        Manager(tmp_path)
    held.set()
    manager._writer._thread.join()
    with Manager(tmp_path) as again:
        assert again.latest() is not None


def test_a_writer_without_a_job_waits_for_nothing():
    writer = Writer()
    writer.wait()
    writer.check()
    assert not writer.busy


ARGUMENTS = {
    "no name": ({"folder": 3}, TypeError, "folder must be the name of a folder for checkpoints, got 3 of type int"),
    "a file": ({"folder": __file__}, ValueError, "folder must be a folder for checkpoints, got the file '.*r.py'"),
    "below a file": ({"folder": f"{__file__}/a"}, OSError, "Not a directory"),
    "every": ({"every": 0}, ValueError, "every must be an int of at least 1, got 0"),
    "keep_last": ({"keep_last": 0}, ValueError, "keep_last must be an int of at least 1, got 0"),
    "keep_every": ({"keep_every": 1.5}, TypeError, "keep_every must be an int of at least 1, got 1.5"),
    "keep_best": ({"keep_best": 2}, ValueError, r"best must be given with keep_best=2, such as .* got None"),
    "best": ({"best": "loss"}, ValueError, 'best must be a name among the scores and "min" or "max", .* got .loss.'),
    "a mode": ({"best": ("loss", "low")}, ValueError, "got ..loss., .low.."),
    "asynchronous": ({"asynchronous": 1}, TypeError, "asynchronous must be True or False, got 1"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_arguments_are_named(case, tmp_path):
    changes, kind, message = ARGUMENTS[case]
    with pytest.raises(kind, match=message):
        Manager(**{"folder": tmp_path, **changes})


def test_bad_calls_are_named(tmp_path):
    with Manager(tmp_path) as manager:
        with pytest.raises(ValueError, match="best must be given to the manager"):
            manager.best()
        for scores in ([1], {"a": "b"}, {"a": True}, {1: 2.0}):
            with pytest.raises(TypeError, match="scores"):
                manager.save(state_at(1), scores=scores)
        path = manager.save(state_at(1))
    with pytest.raises(ValueError, match="which is a checkpoint itself"):
        Manager(path)
    assert json.loads((path / "manifest.json").read_text())["scores"] is None
