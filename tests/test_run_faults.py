"""Faults that really happen to a run: it is killed, stopped, its disk is full. ``make faults`` kills more often.

What is killed is taken up again in a new process, until it comes to its end; then the state, the batches of each step
and the averages of each window must have the bits of the run that nobody touched.
"""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

import purestep as ps
from _fit import same
from _runs import Run
from purestep.checkpoint import CheckpointLockedError, Manager, latest, load, read_manifest, verify

STEPS = 40
fork = multiprocessing.get_context("fork")


class Told(Run):
    """A run that tells a file, a line at a time, what it sees and logs: what was told before a kill stays told."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file = open(path, "a", buffering=1)  # noqa: SIM115 (until the process ends)

    def step(self, state: ps.TrainState, batch: Any) -> Any:
        result = super().step(state, batch)
        number = max(self.seen)
        print(json.dumps(["seen", number, self.seen[number]]), file=self.file)
        return result

    def log(self, number: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            print(json.dumps([name, number, value]), file=self.file)


def train(folder: Path, asynchronous: bool = False, **options: Any) -> Any:
    """Run, or go on, to the end. Nothing that a kill leaves may be taken for a damaged checkpoint."""
    with warnings.catch_warnings(), Manager(folder / "run", every=2, asynchronous=asynchronous) as manager:
        warnings.simplefilter("error", UserWarning)
        return Told(folder / "told").fit(STEPS, checkpoint=manager, resume="auto", **options)


def told(folder: Path) -> dict[tuple[str, int], Any]:
    """What was told, which must be the same however often it was told."""
    found: dict[tuple[str, int], Any] = {}
    for line in (folder / "told").read_text().splitlines():
        try:
            name, number, value = json.loads(line)
        except ValueError:  # the line that was being written when it was killed
            continue
        assert found.setdefault((name, number), value) == value
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[tuple[str, int], Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return train(folder), told(folder)


def check(folder: Path, whole: tuple[Any, dict[tuple[str, int], Any]]) -> None:
    path = latest(folder / "run")
    assert path is not None
    verify(path)
    right, said = whole
    assert same(load(path, like=right.state), right.state)
    found = told(folder)
    # (A run that was stopped between two validations has made the last of its part, which the unbroken one has not.)
    assert {key: found.get(key) for key in said} == said


def killed_again_and_again(folder: Path, asynchronous: bool, kills: int, seed: int) -> int:
    """Run to the end, killed at random moments, each time in a new process; return how often it was killed."""
    moments, killed = random.Random(seed), 0
    while True:
        process = fork.Process(target=train, args=(folder, asynchronous))
        process.start()
        process.join(moments.uniform(0.0, 0.2) if killed < kills else 120)
        if process.exitcode is not None:
            assert process.exitcode == 0
            return killed
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
        killed += 1


WAYS = pytest.mark.parametrize("asynchronous", [False, True], ids=["at once", "in the background"])


@WAYS
def test_killed_at_some_moments(asynchronous: bool, tmp_path: Path, whole: Any) -> None:
    assert killed_again_and_again(tmp_path, asynchronous, kills=4, seed=1) >= 1
    check(tmp_path, whole)


@pytest.mark.faults
@WAYS
def test_killed_at_a_hundred_moments(asynchronous: bool, tmp_path: Path, whole: Any) -> None:
    killed = 0
    for run in range(100):
        folder = tmp_path / str(run)
        folder.mkdir()
        killed += killed_again_and_again(folder, asynchronous, kills=100 - killed, seed=100 + run)
        check(folder, whole)
        if killed >= 100:
            break
    print(f"killed {killed} times in {run + 1} runs")
    assert killed >= 100


# In interpreters of their own: exit codes are those of whole programs.


def program(way: str, folder: str) -> None:
    """What ``start`` runs."""

    def step(state: ps.TrainState, batch: Any) -> Any:
        if int(state.calls) == 7:
            print("ready", flush=True)
            while not Path(folder, "go").exists():
                time.sleep(0.02)
        return run.step(state, batch)

    run = Told(Path(folder) / "told")
    with Manager(Path(folder) / "run", every=2, asynchronous=True) as manager:
        write = manager._write

        def slowly(number: int, what: Any) -> None:
            write(number, what)
            if number == 6 and way == "twice":
                time.sleep(600)  # in the thread, when both signals come

        manager._write = slowly  # type: ignore[method-assign]
        try:
            run.fit(STEPS, checkpoint=manager, resume="auto", step=step)
        finally:  # a write that is under way when the program is over
            Manager(Path(folder) / "unclosed", asynchronous=True).save(run.state())


def start(way: str, folder: Path) -> subprocess.Popen[str]:
    code = "import sys; import test_run_faults; test_run_faults.program(*sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])}
    command = [sys.executable, "-c", code, way, str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def signalled(process: subprocess.Popen[str], folder: Path, *numbers: signal.Signals) -> tuple[int, str]:
    """Send signals to a program that is in its eighth step, which then goes on."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.2)  # two that come at once are one
    (folder / "go").touch()
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def test_programs_that_are_stopped(tmp_path: Path, whole: Any) -> None:
    folders = {way: tmp_path / way for way in ("once", "twice")}
    for folder in folders.values():
        folder.mkdir()
    processes = {way: start(way, folder) for way, folder in folders.items()}  # at the same time

    began = time.monotonic()
    code, _ = signalled(processes["twice"], folders["twice"], signal.SIGTERM, signal.SIGINT)
    assert code == 128 + signal.SIGINT
    assert time.monotonic() - began < 60  # and not after the ten minutes of its write
    assert verify(latest(folders["twice"] / "run")).calls == 6  # type: ignore[arg-type]

    assert signalled(processes["once"], folders["once"], signal.SIGTERM) == (75, "")
    manifest = read_manifest(latest(folders["once"] / "run"))  # type: ignore[arg-type]
    assert (manifest.calls, manifest.optimizer) == (8, None)
    assert verify(folders["once"] / "unclosed" / "step-000000000").calls == 0
    train(folders["once"])
    check(folders["once"], whole)


# The disk.


def fills_the_disk(folder: Path, asynchronous: bool, results: Any) -> None:
    run = Told(folder / "told")
    with Manager(folder / "run", every=2, asynchronous=asynchronous) as manager:

        def step(state: ps.TrainState, batch: Any) -> Any:
            if int(state.calls) == 5:
                manager.wait()
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            return ps.train_step(run.model, lambda m, b: ps.mean(m(b["x"])), run.optimizer)(state, batch)

        try:
            run.fit(STEPS, checkpoint=manager, step=step, loggers=[])
        except OSError as error:
            results.put((error.errno, str(error), error.__notes__, int(error.fit.state.calls)))  # type: ignore[attr-defined]


@WAYS
def test_a_full_disk(asynchronous: bool, tmp_path: Path, whole: Any) -> None:
    results = fork.SimpleQueue()
    process = fork.Process(target=fills_the_disk, args=(tmp_path, asynchronous, results))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    number, said, notes, calls = results.get()
    assert number == errno.EFBIG
    assert "the checkpoint of step 6 was not written" in said
    assert "step-000000006" in said
    assert calls in ((6, 7, 8) if asynchronous else (6,))
    assert "it could not be saved" in notes[-1]
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "step-000000002", "step-000000004"]
    verify(tmp_path / "run" / "step-000000004")


@WAYS
def test_a_folder_that_is_replaced_by_a_file(asynchronous: bool, tmp_path: Path) -> None:
    run, folder = Told(tmp_path / "told"), tmp_path / "run"

    def step(state: ps.TrainState, batch: Any) -> Any:
        if int(state.calls) == 5:
            manager.wait()
            shutil.rmtree(folder)
            folder.write_text("mine")
        return run.step(state, batch)

    with (
        Manager(folder, every=2, asynchronous=asynchronous) as manager,
        pytest.raises(OSError, match="step 6") as found,
    ):
        run.fit(STEPS, checkpoint=manager, step=step)
    assert "step-000000006" in str(found.value)
    assert int(found.value.fit.state.calls) >= 6  # type: ignore[attr-defined]
    assert folder.read_text() == "mine"


def holds(folder: Path, ready: Any, go: Any) -> None:
    def step(state: ps.TrainState, batch: Any) -> Any:
        ready.set()
        assert go.wait(60)
        return run.step(state, batch)

    run = Told(folder / "told")
    run.fit(3, checkpoint=folder / "run", step=step)


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    ready, go = fork.Event(), fork.Event()
    first = fork.Process(target=holds, args=(tmp_path, ready, go))
    first.start()
    assert ready.wait(60)
    with pytest.raises(CheckpointLockedError, match=f"process {first.pid} on"):
        train(tmp_path)
    go.set()
    first.join(60)
    assert first.exitcode == 0
    assert read_manifest(latest(tmp_path / "run")).calls == 3  # type: ignore[arg-type]


def test_no_thread_and_no_file_is_left(tmp_path: Path) -> None:
    def left() -> tuple[int, int]:
        gc.collect()
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    found = []
    for name in ("a", "b", "c"):
        run = Run()
        with Manager(tmp_path / name, every=2, asynchronous=True) as manager:
            run.fit(10, checkpoint=manager)
        found.append(left())
    assert found[0] == found[1] == found[2]
