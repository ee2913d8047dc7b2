"""What a run keeps of itself, and how one is taken up again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from purestep.checkpoint import latest, load, load_metrics, read_manifest
from purestep.checkpoint._manifest import check_json
from purestep.checkpoint.manager import Manager
from purestep.fit._interrupt import LeftAtOnce
from purestep.fit._places import Feed
from purestep.fit._window import Window
from purestep.state import TrainState
from purestep.updates import Optimizer

AUTO = "auto"
_EXTRA = "fit"  # the key of what a checkpoint's extra holds of a run


class Found(NamedTuple):
    """A run as it was saved.

    Attributes:
        number: of the step after which it was saved.
        validated: the number of the step after which it was last validated, and observed.
    """

    number: int
    state: TrainState
    window: Window
    validated: int | None


class Saving:
    """The checkpoints of one run; without a manager there are none."""

    def __init__(self, checkpoint: str | os.PathLike[str] | Manager | None, step: Any) -> None:
        self.manager = checkpoint if isinstance(checkpoint, Manager) else None
        self._mine = checkpoint is not None and self.manager is None
        if self._mine:
            self.manager = Manager(checkpoint)  # type: ignore[arg-type]
        optimizer = getattr(step, "optimizer", None)
        self._optimizer = optimizer if isinstance(optimizer, Optimizer) else None
        self.saved: int | None = None  # the number of the step whose state is there
        self._scored = False  # with the numbers by which the best is chosen

    @property
    def keeps_best(self) -> bool:
        """Whether a checkpoint is judged by its validation, and has to wait for it."""
        return self.manager is not None and self.manager.ranked_by is not None

    @property
    def folder(self) -> str:
        return "" if self.manager is None else os.fspath(self.manager.folder)

    def find(self, resume: str | os.PathLike[str] | None, like: TrainState, begun: int, feed: Feed) -> Found | None:
        """Return the run that ``resume`` means, with ``feed`` at its place, or ``None``; ``begun`` is of ``like``."""
        path = self._chosen(resume)
        if path is None:
            return None
        state = load(path, like=like)
        reached = int(state.calls.max())
        if reached < begun:
            raise ValueError(
                f"resume must be a checkpoint of this run, which begins with the state's step {begun}, got "
                f"{os.fspath(path)!r} of step {reached}: give the state that the run began with, or resume=None"
            )
        manifest = read_manifest(path)
        self._go_to(feed, manifest.data, path)
        about = manifest.extra.get(_EXTRA) if isinstance(manifest.extra, dict) else None
        if not isinstance(about, dict) or set(about) != {"window", "validated"}:
            about = {"window": None, "validated": None}  # of a checkpoint that a program saved by itself
        window = Window(last_bare=True)
        if about["window"] is not None:
            window = Window.resume(load_metrics(path) or {}, about["window"])
        return Found(reached, state, window, about["validated"])

    def _chosen(self, resume: Any) -> Path | None:
        if resume is None:
            return None
        if resume != AUTO:
            found = latest(resume)
            if found is None:
                raise FileNotFoundError(f"resume must be a checkpoint or a folder of them, got {os.fspath(resume)!r}")
            return found
        assert self.manager is not None
        return self.manager.latest()

    def _go_to(self, feed: Feed, place: Any, path: Path) -> None:
        if place is not None:
            feed.go_to(place)
        elif feed.knows_its_place:
            raise ValueError(
                f"resume must be a checkpoint with the place of the batches, got {os.fspath(path)!r}, which has none: "
                "it was saved without data=, or of batches that have no state_dict(). To begin with these batches, "
                "load the state and give it as state, with resume=None"
            )

    def begin(self, number: int, feed: Feed) -> None:
        """Raise now, and not after hours of training, where this run cannot be saved from step ``number`` on."""
        if self.manager is not None:
            self.manager.check_open()
            self.manager.check_goes_on(number)
            check_json(feed.place, "batches.state_dict()")

    def check_counts(self, number: int, state: TrainState) -> None:
        """Raise ``ValueError`` where a step does not count itself: its states could not be told apart."""
        if self.manager is not None and (calls := int(state.calls.max())) != number:
            raise ValueError(
                f"step must count itself for a checkpoint, and return a state of calls {number} here, got {calls}: "
                "state.replace(calls=state.calls + 1)"
            )

    def due(self, number: int) -> bool:
        return self.manager is not None and self.manager.every is not None and number % self.manager.every == 0

    def check(self) -> None:
        """Raise the failure of a write in the background."""
        if self.manager is not None:
            with self._unsaved_if_it_fails():
                self.manager.check()

    def save(
        self, number: int, state: TrainState, feed: Feed, window: Window, validated: int | None, scores: Any
    ) -> None:
        """Save the run, if it is not there already."""
        if self.manager is None or (self.saved == number and (self._scored or scores is None or not self.keeps_best)):
            return
        tensors, about = window.state() if window.steps else (None, None)
        self.manager.save(
            state,
            data=feed.place,
            optimizer=self._optimizer,
            metrics=tensors or None,
            extra={_EXTRA: {"window": about, "validated": validated}},
            scores=scores,
        )
        self.saved, self._scored = number, scores is not None

    def wait(self) -> None:
        """Wait for a write in the background, and raise its failure."""
        if self.manager is not None:
            with self._unsaved_if_it_fails():
                self.manager.wait()

    @contextmanager
    def _unsaved_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.saved = None
            raise

    def close(self, error: BaseException | None) -> None:
        """Let go of the folder, if it was a path that was given."""
        if self.manager is None:
            return
        if isinstance(error, LeftAtOnce):
            self.manager.abandon(error.code)  # type: ignore[arg-type]
        elif self._mine:
            self.manager.__exit__(type(error), error, None)


def check_arguments(checkpoint: Any, resume: Any) -> None:
    """Raise where ``checkpoint`` or ``resume`` can be none."""
    if checkpoint is not None and not isinstance(checkpoint, (str, os.PathLike, Manager)):
        raise TypeError(
            "checkpoint must be a folder for checkpoints, a ps.checkpoint.Manager or None, got "
            f"{checkpoint!r} of type {type(checkpoint).__name__}"
        )
    if resume is not None and not isinstance(resume, (str, os.PathLike)):
        raise TypeError(
            f'resume must be "auto", a checkpoint\'s folder or None, got {resume!r} of type {type(resume).__name__}'
        )
    if resume == AUTO and checkpoint is None:
        raise ValueError('checkpoint must be given with resume="auto", which looks there, got None')
