"""Faults that really happen while a checkpoint is written: the old one or the new one is whole, and nothing is left."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
import torch

import purestep as ps
from _checkpoints import MANIFEST, assert_same_bits, data_file, files, small_state, with_aux
from purestep import checkpoint
from purestep.checkpoint import CheckpointLockedError, latest, load, load_metrics, save, verify

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, limits and users are POSIX's")

LARGE = 1 << 19  # numbers in a state that is too large for the disk: 2 MiB


def large_state(seed: int) -> ps.TrainState:
    return with_aux(large=torch.full((LARGE,), float(seed)))


def forked(body: Callable[[Callable[[str], None]], None]) -> tuple[int, IO[str]]:
    """Run ``body(say)`` in a forked child; return its number and what it says. The parent's limits and user stay."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        code = 1
        try:
            body(lambda said: os.write(write, f"{said}\n".encode()))
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    return child, os.fdopen(read)


def raised_in_a_child(body: Callable[[], object]) -> str:
    """Run a function in a child, and return what it raised, as text."""

    def guarded(say: Callable[[str], None]) -> None:
        try:
            body()
        except BaseException as error:
            say(f"{type(error).__name__} {getattr(error, 'errno', None)} {error}")

    child, pipe = forked(guarded)
    with pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


# A full disk


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MiB; skipped where none can be mounted. The limits of files below work everywhere."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_in_the_middle_of_the_tensors(small_disk):
    path = save(small_disk / "a", small_state())
    before = files(path)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save(path, large_state(1))
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left on device"):
        save(small_disk / "new", large_state(1))
    assert os.listdir(small_disk) == ["a"]
    assert files(path) == before
    assert latest(small_disk) == path
    assert_same_bits(load(path, like=small_state(1)), small_state())
    save(path, small_state(1))  # which fits


def test_a_full_disk_in_the_middle_of_the_manifest(small_disk):
    path = save(small_disk / "a", small_state())
    before = files(path)
    with pytest.raises(OSError, match="No space left on device"):
        save(path, small_state(1), extra="x" * (2 << 20))
    assert files(path) == before
    assert_same_bits(load(path, like=small_state(1)), small_state())


@pytest.mark.parametrize("which", ["tensors", "manifest"])
def test_a_file_that_may_not_grow(tmp_path, which):
    path = save(tmp_path / "a", small_state())
    before = files(path)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        if which == "tensors":
            save(path, large_state(1))
        else:
            save(path, small_state(1), extra="x" * (1 << 17))

    assert raised_in_a_child(limited).startswith(f"OSError {errno.EFBIG} ")
    assert files(path) == before
    assert_same_bits(load(path, like=small_state(1)), small_state())
    save(path, small_state(1))


# A folder that may not be written


def test_a_folder_that_may_not_be_written(tmp_path):
    path = save(tmp_path / "a", small_state())
    before = files(path)

    def as_nobody():
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        save(path, small_state(1))

    folders = [path, *path.parents][:-2]  # the child must come here, which pytest's folders do not let others
    modes = {folder: folder.stat().st_mode for folder in folders if folder.owner() == path.owner()}
    try:
        for folder, mode in modes.items():
            folder.chmod(mode | 0o055)
        path.chmod(0o555)
        assert raised_in_a_child(as_nobody).startswith(f"PermissionError {errno.EACCES} ")
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)
    assert files(path) == before
    assert_same_bits(load(path, like=small_state(1)), small_state())


def test_a_path_under_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="file"):
        save(tmp_path / "file" / "a", small_state())
    with pytest.raises(NotADirectoryError, match="file"):
        load(tmp_path / "file" / "a", like=small_state())
    assert (tmp_path / "file").read_text() == "x"


# The system's errors, and interrupts, at each call


def failing(nth: int, error: BaseException, real):
    """A function that fails at its nth call."""
    calls = iter(range(1, 1000))

    def call(*arguments, **named):
        if next(calls) == nth:
            raise error
        return real(*arguments, **named)

    return call


CALLS = [(os, "fsync", 4), (os, "replace", 2), (os, "chmod", 1), (checkpoint._files, "_save_file", 1)]


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=["EIO", "Ctrl-C"]
)
@pytest.mark.parametrize(("owner", "name", "nth"), [(o, name, n + 1) for o, name, count in CALLS for n in range(count)])
def test_an_error_at_any_call_leaves_one_whole_checkpoint(tmp_path, monkeypatch, owner, name, nth, error):
    path = save(tmp_path / "a", small_state(0))
    old = files(path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(nth, error, getattr(owner, name)))
        with pytest.raises(type(error)):
            save(path, small_state(1))
    verify(path)
    whole = files(path) == old
    assert_same_bits(load(path, like=small_state(2)), small_state(0 if whole else 1))
    # Only after the manifest has got its name is there the new one, with the old one's tensors beside it.
    assert whole or (name, nth) == ("fsync", 4)
    assert not any(found.startswith(".tmp") for found in files(path))
    save(path, small_state(1))
    assert files(path) == [MANIFEST, data_file(path).name]


FIRST = [(os, "replace", 2), (checkpoint._files, "_save_file", 1), (checkpoint._files.FileLock, "acquire", 1)]


@pytest.mark.parametrize(("owner", "name", "nth"), FIRST)
def test_an_error_in_the_first_save_leaves_no_folder(tmp_path, monkeypatch, owner, name, nth):
    monkeypatch.setattr(owner, name, failing(nth, OSError(errno.EIO, "broken"), getattr(owner, name)))
    with pytest.raises(OSError, match="broken"):
        save(tmp_path / "a", small_state())
    assert os.listdir(tmp_path) == []


# Two writers


def test_a_second_writer_is_refused_by_name(tmp_path, monkeypatch):
    path = save(tmp_path / "a", small_state())
    writing, go_on = threading.Event(), threading.Event()
    real = checkpoint._files._save_file

    def waits(tensors, target):
        writing.set()
        assert go_on.wait(60)
        real(tensors, target)

    monkeypatch.setattr(checkpoint._files, "_save_file", waits)
    writer = threading.Thread(target=save, args=(path, small_state(1)))
    writer.start()
    try:
        assert writing.wait(60)
        message = f"'.*a' is being written by process {os.getpid()} on .*: two writers need two paths"
        with pytest.raises(CheckpointLockedError, match=message):
            save(path, small_state(2))
        assert raised_in_a_child(lambda: save(path, small_state(2))).startswith("CheckpointLockedError None ")
        assert_same_bits(load(path, like=small_state(2)), small_state(0))  # which needs no lock
    finally:
        go_on.set()
        writer.join()
    assert_same_bits(load(path, like=small_state(2)), small_state(1))
    assert files(path) == [MANIFEST, data_file(path).name]


# Processes that write over each other, and are killed


def filled(seed: int) -> ps.TrainState:
    """A state that is one number throughout, so that a mixture would be seen."""
    state = with_aux(large=torch.empty(1 << 14))
    return state.named_apply(lambda _, leaf: torch.full_like(leaf, seed % 100), filter_empty=False)


@contextlib.contextmanager
def writing(path: Path, seed: int) -> Iterator[IO[str]]:
    """A process that saves states of growing numbers for ever and says each; it is killed at the end."""

    def for_ever(say: Callable[[str], None]) -> None:
        number = seed
        while True:
            with contextlib.suppress(CheckpointLockedError):
                save(path, filled(number), metrics={"number": torch.tensor(number)})
                say(str(number))
            number += 2

    child, pipe = forked(for_ever)
    try:
        yield pipe
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def check_whole(path: Path) -> int:
    """Check that a checkpoint is there, is one state throughout and has its own metrics; return its number."""
    number = int(load_metrics(path)["number"])
    verify(path)
    assert_same_bits(load(path, like=filled(0)), filled(number))
    return number


def test_two_processes_that_save_to_one_path(tmp_path):
    path = tmp_path / "a"
    with writing(path, 0) as one, writing(path, 1) as other, one, other:
        for pipe in (one, other) * 3:
            assert pipe.readline()
        for _ in range(20):
            load(path, like=filled(0))
            load_metrics(path)
    check_whole(path)
    save(path, filled(3))
    assert files(path) == [MANIFEST, data_file(path).name]


def killed_while_saving(path: Path, times: int, seed: int) -> None:
    """Kill a process that saves, as often; after each, what is there is whole and not older than what was said."""
    rng = random.Random(seed)
    left = 0
    for _ in range(times):
        with writing(path, 0) as pipe:
            said = [int(pipe.readline())]
            began = time.perf_counter()
            said.append(int(pipe.readline()))
            time.sleep(rng.random() * (time.perf_counter() - began))  # a moment within a save, however fast the disk is
        with pipe:
            said += map(int, pipe.read().split())
        assert check_whole(path) in (said[-1], said[-1] + 2)
        left += len(files(path)) > 2
    assert left or times < 50  # some were killed in the middle, or this has tested little
    save(path, filled(1), metrics={"number": torch.tensor(1)})
    assert check_whole(path) == 1
    assert files(path) == [MANIFEST, data_file(path).name]


def test_killed_while_saving(tmp_path):
    killed_while_saving(tmp_path / "a", times=8, seed=0)


@pytest.mark.faults
def test_killed_while_saving_a_hundred_times(tmp_path):
    killed_while_saving(tmp_path / "a", times=100, seed=1)


def die_at(path: Path, nth: int) -> bool:
    """Save a state in a child that dies at the nth call to the system that saving makes; return whether it did."""
    calls = iter(range(1, 1000))

    def deadly(real):
        def call(*arguments, **named):
            if next(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    def body(say: Callable[[str], None]) -> None:
        for owner, name, _ in (*CALLS, (Path, "unlink", 1)):
            setattr(owner, name, deadly(getattr(owner, name)))
        save(path, filled(7), metrics={"number": torch.tensor(7)})

    child, pipe = forked(body)
    pipe.close()
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


def test_killed_before_each_call(tmp_path):
    path = tmp_path / "a"
    for nth in range(1, 20):
        save(path, filled(1), metrics={"number": torch.tensor(1)})
        died = die_at(path, nth)
        # The seventh call gives the manifest its name.
        assert check_whole(path) == (7 if nth > 7 else 1), nth
        if not died:
            break
    assert nth == 10  # the ninth removes the old tensors


def test_killed_in_the_first_save(tmp_path):
    assert die_at(tmp_path / "a", 3)
    assert any(name.startswith(".tmp") for name in files(tmp_path / "a"))
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "a", like=small_state())
    assert latest(tmp_path) is None
    save(tmp_path / "a", small_state())
    assert files(tmp_path / "a") == [MANIFEST, data_file(tmp_path / "a").name]


def test_no_file_is_left_open(tmp_path):
    def handles() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("the system does not say which files are open")
    path = save(tmp_path / "a", small_state())
    like, threads, before = small_state(1), threading.active_count(), handles()
    for seed in range(8):
        save(path, small_state(seed))
        load(path, like=like)
        with contextlib.suppress(ValueError):
            load(path, like=with_aux(other=torch.ones(1)))
        verify(path)
        latest(tmp_path)
    assert handles() == before
    assert threading.active_count() == threads
