"""Kill -9 at random moments: a resumed run sees what the unbroken one does. ``make faults`` kills more often."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.utils.data import Dataset

from purestep.data import Loader, Pipeline, loader, pipeline, sequential, shuffled

N, SIZE, BATCHES = 61, 4, 40
KINDS = ("inline", "threads", "processes", "out of turn", "loader", "loader with workers")


class Slow:
    """A source whose examples take a little while, and draw."""

    draws = True

    def __len__(self) -> int:
        return N

    def fetch(self, indices: Tensor, *, keys: Tensor) -> TensorDictBase:
        time.sleep(0.002)
        return TensorDict({"row": indices.clone(), "key": keys}, [len(indices)])


class Examples(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(0.0005)
        return {"row": index, "key": torch.randint(0, 2**40, (2,))}


def make(kind: str) -> Pipeline | Loader:
    if kind.startswith("loader"):
        return loader(Examples(), SIZE, shuffle=True, num_workers=2 if "workers" in kind else 0)
    arguments: dict[str, Any] = {
        "inline": {"prefetch": 0},
        "threads": {"workers": 2, "prefetch": 3},
        "processes": {"workers": 2, "method": "process"},
        "out of turn": {"workers": 2, "in_order": False},
    }[kind]
    return pipeline(Slow(), shuffled(N, seed=7), batch_size=SIZE, epochs=1, **arguments)


def train(kind: str, path: str, dies_at: int | None = None) -> None:
    """See BATCHES batches, over three epochs; after each, what was seen and the state are replaced in one go."""
    batches, seen = make(kind), []
    if os.path.exists(path):
        saved = json.loads(Path(path).read_text())
        seen = saved["seen"]
        batches.load_state_dict(saved["state"])
    while len(seen) < BATCHES:
        for batch in batches:
            seen.append([batch["row"].tolist(), batch["key"].tolist()])
            pool = getattr(batches, "_pool", None)
            workers = [process.pid for process in pool.processes] if pool else []
            Path(f"{path}.new").write_text(
                json.dumps({"seen": seen, "state": batches.state_dict(), "workers": workers})
            )
            os.replace(f"{path}.new", path)
            if len(seen) == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if len(seen) == BATCHES:
                break


def seen_in(path: Path) -> list[Any]:
    return json.loads(path.read_text())["seen"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What a run sees that nobody kills, inline; the kinds of each must agree with one of the two."""
    folder = tmp_path_factory.mktemp("unbroken")
    for kind in ("inline", "loader"):
        train(kind, str(folder / kind))
    return {kind: seen_in(folder / ("loader" if kind.startswith("loader") else "inline")) for kind in KINDS}


def killed_again_and_again(kind: str, path: Path, kills: int, seed: int) -> int:
    """Run to the end, killed at random moments, each time in a new process; return how often it was killed."""
    moments, killed = random.Random(seed), 0
    context = multiprocessing.get_context("fork")
    while True:
        process = context.Process(target=train, args=(kind, str(path)))
        process.start()
        if killed < kills:
            process.join(moments.uniform(0.0, 0.12))
        else:
            process.join(120)
        if process.exitcode is not None:
            assert process.exitcode == 0
            return killed
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
        killed += 1


def check(kind: str, seen: list[Any], right: list[Any]) -> None:
    if kind != "out of turn":
        assert seen == right
        return
    # Each epoch's batches in any order, each once.
    per_epoch = -(-N // SIZE)
    for start in range(0, BATCHES - per_epoch + 1, per_epoch):
        assert sorted(seen[start : start + per_epoch]) == sorted(right[start : start + per_epoch])
    rest = BATCHES - BATCHES % per_epoch
    assert len({str(batch) for batch in seen[rest:]}) == BATCHES - rest


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_some_moments(kind: str, tmp_path: Path, unbroken: dict[str, list[Any]]) -> None:
    assert killed_again_and_again(kind, tmp_path / "run", kills=4, seed=1) >= 1
    check(kind, seen_in(tmp_path / "run"), unbroken[kind])


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_fifty_moments(kind: str, tmp_path: Path, unbroken: dict[str, list[Any]]) -> None:
    killed = 0
    for run in range(50):
        killed += killed_again_and_again(kind, tmp_path / f"run{run}", kills=50 - killed, seed=100 + run)
        check(kind, seen_in(tmp_path / f"run{run}"), unbroken[kind])
        if killed >= 50:
            break
    assert killed >= 50


def test_a_new_interpreter_goes_on_and_no_worker_outlives_a_killed_run(
    tmp_path: Path, unbroken: dict[str, list[Any]]
) -> None:
    path = tmp_path / "run"
    program = "import sys; import test_data_faults; test_data_faults.train('processes', sys.argv[1], dies_at=19)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])}
    run = subprocess.run([sys.executable, "-c", program, str(path)], env=environment, check=False, timeout=300)
    assert run.returncode == -signal.SIGKILL
    saved = json.loads(path.read_text())
    assert len(saved["seen"]) == 19
    assert len(saved["workers"]) == 2
    train("threads", str(path))  # with other workers
    assert seen_in(path) == unbroken["processes"]
    until = time.monotonic() + 30
    while any(alive(pid) for pid in saved["workers"]):
        assert time.monotonic() < until, "a worker outlives its run"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ------------------------------------------------------------------------------------- what goes wrong in data


class Faulty:
    """A source of 12 rows in which something goes wrong at row 7."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 0 if self.fault == "empty" else 12

    def fetch(self, indices: Tensor) -> Any:
        if 7 in indices:
            if self.fault == "dies":
                os._exit(3)
            if self.fault == "raises":
                raise OSError("cannot read 'f.png' (row 7 of t.csv)")
            if self.fault == "short":
                indices = indices[:-1]
        return TensorDict({"row": indices.clone()}, [len(indices)])


def flips_the_shape(batch: TensorDictBase) -> TensorDictBase:
    return batch[:1] if 7 in batch["row"] else batch


def unpicklable(batch: TensorDictBase) -> TensorDictBase:
    return batch.set_non_tensor("no", lambda: 0) if 7 in batch["row"] else batch


FAULTS: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "a decoder that fails": ("raises", {}, OSError, r"cannot read 'f\.png' \(row 7 of t\.csv\)"),
    "in threads": ("raises", {"workers": 2}, OSError, r"cannot read 'f\.png' \(row 7 of t\.csv\)"),
    "in a process": (
        "raises",
        {"workers": 1, "method": "process"},
        OSError,
        r"cannot read 'f\.png' \(row 7 of t\.csv\)",
    ),
    "a worker that dies": (
        "dies",
        {"workers": 1, "method": "process"},
        RuntimeError,
        r"worker 0 \(pid \d+\) ended with exit code 3, before it handed over the batch of positions [04] to [37]",
    ),
    "a fetch of another length": (
        "short",
        {},
        ValueError,
        r"Faulty\.fetch must return a TensorDict of batch_size \[4\]",
    ),
    "a transform of another shape": (
        "none",
        {"transform": flips_the_shape},
        ValueError,
        r"transform must return a TensorDict of batch_size \[4\], got \[1\]",
    ),
    "what no process can pass on": (
        "none",
        {"transform": unpicklable, "workers": 1, "method": "process"},
        TypeError,
        r"a batch must be of what can be passed between processes, and it is not",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_an_error_before_whose_batch_the_state_stands(fault: str) -> None:
    kind, arguments, error, message = FAULTS[fault]
    batches = pipeline(Faulty(kind), sequential(12), batch_size=4, epochs=1, **arguments)
    seen = []
    with pytest.raises(error, match=message):
        seen.extend(batch["row"].tolist() for batch in batches)
    # A batch that was ready, and not yet fetched, goes down with its worker.
    assert seen == [[0, 1, 2, 3]] or (kind == "dies" and not seen)
    assert batches.state_dict()["position"] == 4 * len(seen)
    batches.close()


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(ValueError, match=r"order must keep within the source's 0 examples, got sequential\(12\)"):
        pipeline(Faulty("empty"), sequential(12), batch_size=4)
