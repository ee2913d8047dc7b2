"""Law 4: n steps, a save, a load and m steps have the bits of n + m steps, in a new process too."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from purestep import _checks, checkpoint
from purestep.laws._compare import LawViolation, check_same_bits, named_leaves, named_result
from purestep.laws._report import LawDoesNotApplyError, LawReport, check_laws, name_of
from purestep.laws._world import copies
from purestep.state import TrainState

_LAW = "law 4 (resumable)"
RESUMABLE_LAWS = ("saved", "resumed", "data", "rebuilt", "new process")
_NAMES = ("in the run that was resumed", "in the one that was not broken")
_CHILD = "import sys; from purestep.laws.resuming import run_on; run_on(*sys.argv[1:])"

Step = Callable[[TrainState, Any], Any]
Rebuild = Callable[[], tuple[Step, TrainState, Any]]


class _Part(NamedTuple):
    """Some steps of a run: the state, what each step returned and each batch by path, and the place in the data."""

    state: TrainState
    results: list[dict[str, Any]]
    batches: list[dict[str, Any]]
    place: Any


def check_resumable(
    step: Step,
    state: TrainState,
    batches: Any,
    *,
    at: int = 2,
    more: int = 2,
    rebuild: Rebuild | None = None,
    new_process: bool = False,
    laws: Sequence[str] | None = None,
    skip: Sequence[str] = (),
) -> LawReport:
    """Assert law 4: ``at`` steps, a save, a load and ``more`` steps have the bits of all of them in one run.

    - ``saved``: what :func:`purestep.checkpoint.load` returns has the bits of what was saved;
    - ``resumed``: after the load, each step returns the bits that the unbroken run has there;
    - ``data``: a loader goes on with the batch that follows, from the ``state_dict()`` in the checkpoint;
    - ``rebuilt``: the same of what ``rebuild()`` makes: nothing was remembered in a closure;
    - ``new process``: the same in a fresh interpreter (with ``new_process=True``; it takes some seconds).

    Args:
        step: ``(state, batch) -> (state, metrics)``. It may donate: every run begins with a clone.
        state: where the runs begin.
        batches: at least ``at + more`` batches in a sequence; or a loader whose iteration goes on where its
            ``load_state_dict(...)`` put it and whose ``state_dict()`` is made of what JSON holds, such as
            :func:`purestep.data.pipeline`.
        at, more: steps before the save and after the load, at least 1.
        rebuild: a function without arguments that makes the same ``(step, state, batches)`` once more, for
            ``rebuilt`` and ``new process``. For the latter it must be importable: at the top of a module, no lambda.
        new_process: look at ``new process``.
        laws, skip: names of the laws to look at, and of those to leave out.

    Returns:
        The report, where all laws hold.

    Raises:
        LawViolation: with the report: which law is broken, at which step, and by how much.
        LawDoesNotApplyError: a law in ``laws`` that has nothing to look at.
        ValueError, TypeError: too few batches, batches that are no sequence and no loader, counts below 1, names of no
            law, ``new_process=True`` without an importable ``rebuild``.
    """
    _checks.integer("at", at, minimum=1)
    _checks.integer("more", more, minimum=1)
    _check_batches(batches, at + more)
    importable = _importable(rebuild) if new_process else ""
    run = _Run(step, state, batches)
    unbroken = run.unbroken(at, more)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "at")

        def resumed() -> _Part:
            run.save(path, at)
            return run.resume(path, at, more)

        bundle = {
            "saved": lambda: _check_saved(run, path, at),
            "resumed": lambda: _check_part(resumed(), unbroken, at),
            "data": lambda: _check_data(resumed(), unbroken, at, run.loads),
            "rebuilt": lambda: _check_rebuilt(rebuild, run, unbroken, path, at, more),
            "new process": lambda: _check_new_process(importable, run, unbroken, path, at, more),
        }
        return check_laws(name_of("step", step), bundle, laws=laws, skip=skip)


class _Run:
    """A step, the state that its runs begin with, and the batches."""

    def __init__(self, step: Step, state: TrainState, batches: Any) -> None:
        self.step, self.state, self.batches = step, state, batches
        self.loads = not isinstance(batches, (list, tuple))
        self._begin = batches.state_dict() if self.loads else 0

    def unbroken(self, at: int, more: int) -> _Part:
        part = self._go(self.state, self._begin, at + more)
        if len(part.results) < at + more:
            raise ValueError(f"batches must be at least {at + more}, for at + more steps, got {len(part.results)}")
        return _Part(part.state, part.results[at:], part.batches[at:], None)

    def save(self, path: str, at: int) -> TrainState:
        """Take the first steps, save, and return what was saved."""
        part = self._go(self.state, self._begin, at)
        kept = part.state.clone()
        checkpoint.save(path, part.state, data=part.place)
        return kept

    def resume(self, path: str, at: int, more: int) -> _Part:
        place = checkpoint.load_data(path) if self.loads else at
        if self.loads:  # one that ignores what it loads would stand at the right place by chance
            next(iter(self.batches), None)
        return self._go(checkpoint.load(path, like=self.state), place, more)

    def _go(self, state: TrainState, place: Any, count: int) -> _Part:
        state, results, batches = state.clone(), [], []
        for batch in itertools.islice(self._from(place), count):
            batches.append(copies(named_leaves(batch, "batch")))
            state, metrics = self.step(state, batch)
            results.append(copies(named_result((state, metrics))))
        place = json.loads(json.dumps(self.batches.state_dict())) if self.loads else None
        return _Part(state, results, batches, place)

    def _from(self, place: Any) -> Iterator[Any]:
        if not self.loads:
            return iter(self.batches[place:])
        self.batches.load_state_dict(place)
        return iter(self.batches)


def _check_saved(run: _Run, path: str, at: int) -> None:
    kept = named_leaves(run.save(path, at), "state")
    loaded = named_leaves(checkpoint.load(path, like=run.state), "state")
    check_same_bits(_LAW, loaded, kept, names=("once it was loaded", "when it was saved"))


def _check_part(got: _Part, right: _Part, at: int) -> None:
    for number, (mine, wanted) in enumerate(zip(got.results, right.results, strict=True)):
        _check_bits(f"step {at + number}", mine, wanted)


def _check_bits(name: str, got: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    try:
        check_same_bits(_LAW, got, right, names=_NAMES)
    except LawViolation as violation:
        raise LawViolation(f"{violation}, at {name} from 0", by=violation.by, on=name) from None


def _check_data(got: _Part, right: _Part, at: int, loads: bool) -> None:
    if not loads:
        raise LawDoesNotApplyError("batches are a sequence, which has no place of its own")
    if len(got.batches) != len(right.batches):
        says = f"the loader gives {len(got.batches)} batches once it was loaded, and {len(right.batches)} without"
        raise LawViolation(f"{_LAW}: {says}", by=f"{len(right.batches) - len(got.batches)} batches", on=f"batch {at}")
    for number, (mine, wanted) in enumerate(zip(got.batches, right.batches, strict=True)):
        _check_bits(f"batch {at + number}", mine, wanted)


def _check_rebuilt(rebuild: Rebuild | None, run: _Run, right: _Part, path: str, at: int, more: int) -> None:
    if rebuild is None:
        raise LawDoesNotApplyError("rebuild= is not given")
    run.save(path, at)
    _check_part(_Run(*rebuild()).resume(path, at, more), right, at)


def _check_new_process(importable: str, run: _Run, right: _Part, path: str, at: int, more: int) -> None:
    if not importable:
        raise LawDoesNotApplyError("new_process=True is not given")
    run.save(path, at)
    ended = f"{path}.ended"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    # As many threads as here: a sum over more of them has other bits.
    command = [sys.executable, "-c", _CHILD, importable, path, ended, str(at), str(more), str(torch.get_num_threads())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LawViolation(f"{_LAW}: the new process fails: {done.stderr.strip()[-500:]}", by="an error")
    state = checkpoint.load(ended, like=run.state)
    got, wanted = named_leaves(state, "state"), named_leaves(right.state, "state")
    name = f"step {at + more - 1}"
    try:
        check_same_bits(_LAW, got, wanted, names=("in the new process", _NAMES[1]))
    except LawViolation as violation:
        raise LawViolation(f"{violation}, after {name} from 0", by=violation.by, on=name) from None


def run_on(importable: str, path: str, ended: str, at: str, more: str, threads: str) -> None:
    """Go on from a checkpoint in this process, with what ``"module:name"`` makes, and save the state it ends in."""
    torch.set_num_threads(int(threads))
    module, _, name = importable.partition(":")
    rebuild = getattr(importlib.import_module(module), name)
    checkpoint.save(ended, _Run(*rebuild()).resume(path, int(at), int(more)).state)


def _importable(rebuild: Any) -> str:
    """Return ``"module:name"`` of a function that a fresh interpreter can import."""
    module, name = getattr(rebuild, "__module__", None), getattr(rebuild, "__qualname__", "")
    if module in (None, "__main__") or not name.isidentifier() or getattr(sys.modules.get(module), name, None) is None:
        raise ValueError(
            "rebuild must be a function at the top of a module that can be imported, for a new process finds it by "
            f"name, got {rebuild!r}"
        )
    return f"{module}:{name}"


def _check_batches(batches: Any, count: int) -> None:
    if isinstance(batches, (list, tuple)):
        if len(batches) < count:
            raise ValueError(f"batches must be at least {count}, for at + more steps, got {len(batches)}")
    elif not all(hasattr(batches, name) for name in ("state_dict", "load_state_dict", "__iter__")):
        raise TypeError(
            "batches must be a list of batches, or a loader with state_dict() and load_state_dict(...), got "
            f"{type(batches).__name__}"
        )
