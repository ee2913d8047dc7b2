"""A folder of checkpoints of one run: which are kept, who may write, and writing in the background."""

from __future__ import annotations

import copy
import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from purestep import _checks
from purestep.checkpoint._background import HostCopy, Writer
from purestep.checkpoint._errors import CheckpointError, CheckpointLockedError
from purestep.checkpoint._files import flush_folder, locked, make_folder
from purestep.checkpoint._manifest import NAME as MANIFEST
from purestep.checkpoint._paths import check_target
from purestep.checkpoint.latest import latest
from purestep.checkpoint.reading import read_manifest
from purestep.checkpoint.writing import Contents, contents, write
from purestep.state import TrainState

_NAME = re.compile(r"step-(\d{9,})")
_NEW, _REMOVED = ".new-", ".removed-"  # what a folder is called until it is whole, and while it is deleted
_MODES = ("min", "max")


class Manager:
    """A folder with the checkpoints of one run, ``folder/step-000000600`` and so on; the number is ``state.calls``.

    The folder is this manager's while it is open, and refused to another one, of whatever process. What is kept is the
    union of ``keep_last``, ``keep_every`` and ``keep_best``. An old checkpoint is first renamed and then deleted, so a
    reader finds it whole or not at all; the newest one is never deleted, and damaged ones are left for whoever wants to
    look at them.

    Args:
        folder: it is made if it is not there.
        every: steps between two checkpoints, for :func:`purestep.fit`; ``None`` has it save only at the end and when it
            is stopped.
        keep_last: keep so many of the newest, at least 1; ``None``: all.
        keep_every: also keep those whose number is a multiple of it.
        keep_best: also keep so many of the best, by ``best``.
        best: ``(name, mode)``: the name among ``scores``, and ``"min"`` or ``"max"``, such as
            ``("val/loss", "min")``. Of equal ones the newest counts as the best; one without a score, or whose score is
            NaN, does not count.
        asynchronous: ``save`` copies the tensors to the host and returns, and a thread writes them. The copy's memory
            is kept for the next one. A save waits for the write before it.

    Raises:
        TypeError, ValueError: an argument of the wrong kind; ``folder`` is a file, or a checkpoint itself.
        CheckpointLockedError: another manager has the folder.
        OSError: the folder cannot be made or read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int | None = None,
        keep_last: int | None = 3,
        keep_every: int | None = None,
        keep_best: int | None = None,
        best: tuple[str, str] | None = None,
        asynchronous: bool = False,
    ) -> None:
        self.folder = _checked_folder(folder)
        given = {"every": every, "keep_last": keep_last, "keep_every": keep_every, "keep_best": keep_best}
        for name, value in given.items():
            if value is not None:
                _checks.integer(name, value, minimum=1)
        if not isinstance(asynchronous, bool):
            raise TypeError(f"asynchronous must be True or False, got {asynchronous!r}")
        _check_best(keep_best, best)
        self.every, self.keep_last, self.keep_every, self.keep_best = every, keep_last, keep_every, keep_best
        self.ranked_by, self.asynchronous = best, asynchronous
        self._copy, self._writer = HostCopy(), Writer()
        self._open = ExitStack()
        make_folder(self.folder)
        self._open.enter_context(locked(self.folder))
        try:
            self._known = self._found()
        except BaseException:
            self._open.close()
            raise
        self.closed = False

    def __repr__(self) -> str:
        return f"Manager({os.fspath(self.folder)!r}, every={self.every}, {'closed' if self.closed else 'open'})"

    def save(
        self,
        state: TrainState,
        *,
        data: Any = None,
        optimizer: Any = None,
        metrics: Mapping[str, Any] | None = None,
        extra: Any = None,
        scores: Mapping[str, float] | None = None,
    ) -> Path:
        """Save a state into the folder of its number, and delete what is not to be kept.

        Args:
            state, data, optimizer, metrics, extra: as in :func:`save`.
            scores: numbers by name, of which ``best`` is one.

        Returns:
            The checkpoint's path; with ``asynchronous`` it is whole after ``wait()``.

        Raises:
            TypeError, ValueError: as :func:`save`; the folder holds a checkpoint of a later step, which would be taken
                for the newest of this run; the manager is closed.
            OSError: it cannot be written, or the one before could not be, in the background; the message names which.
                What was there is whole.
        """
        self.check_open()
        self._writer.check()
        what = contents(
            state, data=data, optimizer=optimizer, metrics=metrics, extra=extra, scores=_checked_scores(scores)
        )
        number = what.fields["calls"]
        self.check_goes_on(number)  # after the write before, whose memory the copy takes
        path = self._path(number)
        if not self.asynchronous:
            self._write(number, what)
            return path
        theirs = {name: copy.deepcopy(what.fields[name]) for name in ("data", "extra")}
        what = replace(what, fields={**what.fields, **theirs})
        self._copy.take(what.tensors)
        self._writer.start(lambda: self._write(number, replace(what, tensors=self._copy.ready())))
        return path

    def latest(self) -> Path | None:
        """Return the newest whole checkpoint, or ``None``. A write under way is waited for.

        Damaged ones are passed over with a warning, and no longer stand in the way of a save of an earlier step.
        """
        self.wait()
        found = latest(self.folder)
        number = -1 if found is None else read_manifest(found).calls
        self._known = {known: scores for known, scores in self._known.items() if known <= number}
        return found

    def best(self) -> Path | None:
        """Return the checkpoint of the best score, or ``None`` where none has one. A write under way is waited for.

        Raises:
            ValueError: the manager was made without ``best``.
        """
        if self.ranked_by is None:
            raise ValueError('best must be given to the manager, such as ("val/loss", "min"), to have a best one')
        self.wait()
        ranked = self._ranked()
        return self._path(ranked[0]) if ranked else None

    def check(self) -> None:
        """Raise the failure of a write in the background that has ended, without waiting for one that has not."""
        self._writer.check()

    def check_open(self) -> None:
        """Raise ``ValueError`` where the manager is closed."""
        if self.closed:
            raise ValueError(f"the manager of {os.fspath(self.folder)!r} is closed: make another one")

    def check_goes_on(self, number: int) -> None:
        """Raise ``ValueError`` where the folder holds a checkpoint of a later step than ``number``.

        A write in the background is waited for, and its failure raised.
        """
        self.wait()
        newest = max(self._known, default=0)
        if number < newest:
            raise ValueError(
                f"folder must hold no checkpoint of a later step, for it would be taken for the newest of this run, "
                f"which is at step {number}: {os.fspath(self._path(newest))!r} is there. Resume from it, or give "
                "another folder"
            )

    def wait(self) -> None:
        """Wait for a write in the background, and raise its failure."""
        self._writer.wait()

    def close(self) -> None:
        """Wait for a write in the background, and let go of the folder; what fails then is raised after that."""
        if self.closed:
            return
        try:
            self._writer.wait()
        finally:
            self.closed = True
            self._open.close()

    def abandon(self, exit_code: int) -> None:
        """Close without waiting. A write in the background goes on, and lets go of the folder when it ends; a program
        that ends before that ends at once, with this code."""
        self.closed = True
        self._writer.exit_code, self._writer.at_end = exit_code, self._open.close
        if not self._writer.busy:
            self._open.close()

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"and {failure}")

    def _write(self, number: int, what: Contents) -> None:
        path = self._path(number)
        try:
            self._write_whole(path, what)
        except CheckpointLockedError:
            raise
        except OSError as error:
            said = error.strerror or str(error)
            raise OSError(error.errno, f"{said}: the checkpoint of step {number} was not written", str(path)) from error
        except Exception as error:
            error.add_note(f"the checkpoint of step {number} was not written: {os.fspath(path)!r}")
            raise
        self._known[number] = what.fields["scores"] or {}
        self._delete_old()

    def _write_whole(self, path: Path, what: Contents) -> None:
        """A new checkpoint gets its name when it is whole, so that nobody takes it for a damaged one before."""
        if path.exists():
            write(check_target(path), what)
            return
        fresh = path.with_name(f"{_NEW}{path.name}-{secrets.token_hex(4)}")
        try:
            write(check_target(fresh), what)
            fresh.rename(path)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        flush_folder(self.folder)

    def _delete_old(self) -> None:
        newest_first = sorted(self._known, reverse=True)
        keep = set(newest_first[: self.keep_last])
        if self.keep_every is not None:
            keep |= {number for number in self._known if number % self.keep_every == 0}
        if self.keep_best is not None:
            keep |= set(self._ranked()[: self.keep_best])
        for number in newest_first:
            if number not in keep:
                _delete(self._path(number))
                del self._known[number]

    def _ranked(self) -> list[int]:
        """The numbers of those that have a score, the best first, and the newest first among equals."""
        if self.ranked_by is None:
            return []
        name, mode = self.ranked_by
        sign = 1 if mode == "min" else -1
        scored = {number: scores[name] for number, scores in self._known.items() if name in scores}
        there = [number for number, score in scored.items() if not math.isnan(score)]
        return sorted(there, key=lambda number: (sign * scored[number], -number))

    def _found(self) -> dict[int, dict[str, float]]:
        """The checkpoints in the folder and their scores, after the leavings of a process that was killed are gone."""
        known = {}
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith((_NEW, _REMOVED)):
                shutil.rmtree(path, ignore_errors=True)
            if _NAME.fullmatch(path.name) is None or path.is_symlink() or not path.is_dir():
                continue
            with suppress(CheckpointError, FileNotFoundError):
                known[_number(path.name)] = read_manifest(path).scores or {}
        return known

    def _path(self, number: int) -> Path:
        return self.folder / f"step-{number:09d}"


def _number(name: str) -> int:
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else -1


def _delete(path: Path) -> None:
    """Take a checkpoint away in one rename, and then delete it. One that somebody has taken away is no matter."""
    aside = path.with_name(f"{_REMOVED}{path.name}-{secrets.token_hex(4)}")
    with suppress(FileNotFoundError):
        path.rename(aside)
        shutil.rmtree(aside)


def _checked_folder(folder: Any) -> Path:
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(
            f"folder must be the name of a folder for checkpoints, got {folder!r} of type {type(folder).__name__}"
        )
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"folder must be a folder for checkpoints, got the file {os.fspath(folder)!r}")
    if (path / MANIFEST).exists():
        raise ValueError(
            f"folder must be a folder for checkpoints, got {os.fspath(folder)!r}, which is a checkpoint itself"
        )
    return path


def _check_best(keep_best: int | None, best: Any) -> None:
    if best is None:
        if keep_best is not None:
            raise ValueError(f'best must be given with keep_best={keep_best}, such as ("val/loss", "min"), got None')
        return
    named = isinstance(best, tuple) and len(best) == 2 and isinstance(best[0], str) and best[1] in _MODES
    if not named:
        raise ValueError(
            f'best must be a name among the scores and "min" or "max", such as ("val/loss", "min"), got {best!r}'
        )


def _checked_scores(scores: Any) -> dict[str, float] | None:
    if scores is None:
        return None
    if not isinstance(scores, Mapping) or not all(isinstance(name, str) for name in scores):
        raise TypeError(f"scores must be a dict of numbers by name, got {scores!r}")
    for name, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            raise TypeError(f"scores[{name!r}] must be a number, got {score!r} of type {type(score).__name__}")
    return {name: float(score) for name, score in scores.items()}
